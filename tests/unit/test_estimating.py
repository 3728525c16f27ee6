"""Estimates ahead of need: what happens to a preset that leaves the file meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llamaswap_py.scheduler.types import Choice, PresetId
from llamaswap_py.supervisor.estimation import Estimation, ReadyChild


@pytest.mark.anyio
async def test_a_preset_may_leave_the_file_while_it_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared: dict[str, Any] = {
        "alpha": SimpleNamespace(engine=None, plan=SimpleNamespace(estimating=False))
    }
    estimating = Estimation(prepared, (), 0, lambda *_: None, list)
    measured = asyncio.Event()

    class Estimator:
        async def estimate(self, wanted: object) -> object:
            return wanted

        async def learn_ready(self, *_: object) -> str:
            prepared.clear()  # a reload
            measured.set()
            return "it takes less"

    async def use(ready: ReadyChild) -> dict[str, int]:
        return {}

    wanted = SimpleNamespace(files=(), declared=None)
    monkeypatch.setattr(estimating, "_estimator", cast("Any", Estimator()))
    monkeypatch.setattr(estimating, "_wanted", lambda *_: wanted)
    monkeypatch.setattr(estimating, "_use", use)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(estimating.run())
        estimating.note_ready(ReadyChild(PresetId("alpha"), Choice(), 1, 0.1))
        await measured.wait()
        asked = asyncio.Event()
        monkeypatch.setattr(estimating, "_wanted", lambda *_: asked.set())
        estimating.note_ready(ReadyChild(PresetId("beta"), Choice(), 1, 0.1))
        async with asyncio.timeout(10):
            await asked.wait()  # it goes on with the next one
        running.cancel()
