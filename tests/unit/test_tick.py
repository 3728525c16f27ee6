"""The common beat of everything that looks now and then."""

from __future__ import annotations

import pytest

from llamaswap_py.tasks.tick import BEAT, until_beat

NOW = [0.0, 0.001, 0.9, 1.0, 1.999, 2.0, 34_403.014, 1e6 + 1.75]


@pytest.mark.parametrize("now", NOW)
def test_all_meet_at_the_next_multiple(now: float) -> None:
    for period in (BEAT, 2 * BEAT, 5 * BEAT):
        at = now + until_beat(now, period)
        assert at % period == pytest.approx(0, abs=1e-6) or at % period == pytest.approx(period)


@pytest.mark.parametrize("now", NOW)
@pytest.mark.parametrize("period", [0.001, 0.3, BEAT, 10.0])
def test_nobody_sleeps_much_longer_or_much_shorter(now: float, period: float) -> None:
    assert period / 65 <= until_beat(now, period) <= period * 65 / 64


def test_a_timer_that_fires_early_is_no_second_beat() -> None:
    assert until_beat(4.0 - 1e-6) == pytest.approx(BEAT)
