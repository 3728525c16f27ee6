"""Estimates ahead of need: what happens to a preset that leaves the file meanwhile."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

from llamaswap_py.scheduler.types import Choice, PresetId
from llamaswap_py.supervisor.estimation import Estimation, ReadyChild
from tests.unit.supervisors import configured, prepared

if TYPE_CHECKING:
    from llamaswap_py.estimate import Estimator, Wanted

PROGRAMS = """models:
  alpha: {cmd: [sleep, "{port}"]}
  beta: {cmd: [sleep, "{port}"]}
"""


@pytest.mark.anyio
async def test_a_preset_may_leave_the_file_while_it_is_measured() -> None:
    presets = {
        name: replace(prepared(preset), engine=None)
        for name, preset in configured(PROGRAMS).models.items()
    }
    measured: list[str] = []
    told = asyncio.Event()

    class Measuring:
        async def learn_ready(self, wanted: Wanted, *_: object) -> str:
            measured.append(wanted.preset)
            presets.pop("alpha", None)  # a reload
            return "it takes less"

        async def learned_load(self, wanted: Wanted) -> float:
            return 1.0

    estimator = cast("Estimator", Measuring())
    estimation = Estimation(presets, (), 0, lambda *_: told.set(), list, estimator)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(estimation.run())
        for name in ("alpha", "beta"):
            estimation.record_ready(ReadyChild(PresetId(name), Choice(), os.getpid(), 0.1))
        async with asyncio.timeout(30):
            await told.wait()  # of beta: it goes on with the next one
        running.cancel()
    assert measured == ["alpha", "beta"]
