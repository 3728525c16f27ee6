"""A short soak: as `python -m bench.soak`, of which a long run is a command away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.plots import Series, draw
from bench.soak import FAULTS, report, soak

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_mixed_clients_and_a_fault_every_second(short_dir: Path, llama_server: str) -> None:
    """It checks itself as after each single fault; here only that it did something."""
    run = await soak(short_dir, seconds=8, every=1, clients=4)
    assert run.crowd.wrongs == []
    assert run.crowd.right.total() > 20
    assert run.faults.total() >= 3
    assert run.samples
    assert sum(one.done.total() for one in run.attackers) >= 2
    assert [one.wrongs for one in run.attackers] == [[], []]
    assert "wrong or missing     0" in report(run)


def test_every_fault_has_words() -> None:
    assert len({one.__name__ for one in FAULTS}) == len(FAULTS)
    assert all(one.__doc__ for one in FAULTS)


def test_a_plot_has_a_panel_for_each_series() -> None:
    svg = draw([0, 1, 2], [Series("one", [1, 2, 4]), Series("two", [0, 0, 0])], "minutes")
    assert svg.count("<polyline") == 2
    assert "2 minutes" in svg
    assert draw([], [Series("none", [])], "s").endswith("</svg>\n")
