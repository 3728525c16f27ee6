"""What other programs steadily hold: the least of ten minutes, kept from run to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamaswap_py.devices import Device
from llamaswap_py.supervisor.strangers import SteadyStrangers
from llamaswap_py.units import GIB, MIB


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return [1000.0]


def test_the_least_of_ten_minutes_counts(clock: list[float]) -> None:
    strangers = SteadyStrangers(lambda: clock[0])
    assert strangers.least() == {}
    strangers.record({"host": 3 * GIB, "CUDA0": 0})
    strangers.record({"host": 2 * GIB, "CUDA0": 500 * MIB})
    assert strangers.least() == {"host": 2 * GIB, "CUDA0": 0}
    for _ in range(9):
        clock[0] += 60
        strangers.record({"host": 8 * GIB, "CUDA0": 500 * MIB})
    assert strangers.least() == {"host": 2 * GIB, "CUDA0": 0}, "nine minutes are not long"
    for _ in range(3):
        clock[0] += 60
        strangers.record({"host": 8 * GIB, "CUDA0": 500 * MIB})
    assert strangers.least() == {"host": 8 * GIB, "CUDA0": 500 * MIB}


@pytest.mark.anyio
async def test_a_restart_begins_with_what_was_seen_before(clock: list[float]) -> None:
    before = SteadyStrangers(lambda: clock[0])
    before.record({"host": 2 * GIB})
    before.save()
    after = SteadyStrangers(lambda: clock[0])
    await after.recall()
    after.record({"host": 9 * GIB})
    assert after.least() == {"host": 2 * GIB}


@pytest.mark.anyio
async def test_other_devices_have_a_record_of_their_own(clock: list[float]) -> None:
    """Of a declared host nothing is measured, so its zero says nothing of the real one."""
    real = (Device("host", 16 * GIB, GIB, "psutil"),)
    declared = SteadyStrangers(lambda: clock[0], (Device("host", 2 * GIB, GIB, "declared"),))
    declared.record({"host": 0})
    declared.save()
    for seen in (6 * GIB, 9 * GIB):
        measured = SteadyStrangers(lambda: clock[0], real)
        await measured.recall()
        measured.record({"host": seen})
        measured.save()
        assert measured.least() == {"host": 6 * GIB}


@pytest.mark.anyio
async def test_the_first_run_begins_with_what_is_held_now(clock: list[float]) -> None:
    first = SteadyStrangers(lambda: clock[0])
    await first.recall()
    first.record({"host": 9 * GIB})
    assert first.least() == {"host": 9 * GIB}
