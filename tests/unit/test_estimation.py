"""Estimates ahead of need: what happens to a preset that leaves the file meanwhile."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import pytest

from llamaswap_py.cli.load_progress import progress_line
from llamaswap_py.cli.show import print_why
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.scheduler.types import Choice, PresetId
from llamaswap_py.supervisor.estimation import Estimation, ReadyChild
from tests.unit.supervisors import configured, make_supervisor, prepared

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llamaswap_py.estimate import Estimator, Wanted
    from llamaswap_py.supervisor.supervisor import Supervisor

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
        async with asyncio.timeout(60):
            await told.wait()  # of beta: it goes on with the next one
        running.cancel()
    assert measured == ["alpha", "beta"]


def later_by(clock: Callable[[], float], seconds: float) -> float:
    return clock() + seconds


FITTED = "models: {alpha: {model: /a.gguf}, beta: {model: /b.gguf}, gamma: {model: /c.gguf}}"


def reasons(supervisor: Supervisor) -> dict[str, str]:
    return {one.id: one.reason for one in supervisor.snapshot().models}


@pytest.mark.anyio
async def test_why_says_that_a_model_is_fitted_since_when_and_what_comes_next(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A request waits until a model is fitted, and another one for the turn of its model."""
    supervisor = make_supervisor(short_dir, configured(FITTED), Endpoint(port=1))
    for name, one in supervisor.prepared.items():
        plan = replace(one.plan, estimating=True, choices=(Choice(),))
        supervisor.prepared[name] = replace(one, plan=plan)
        supervisor.scheduler.state.add_preset(plan)
    began, go_on = asyncio.Event(), asyncio.Event()
    told: list[str] = []
    estimation = supervisor.estimation

    async def slow(preset: str) -> None:
        began.set()
        await go_on.wait()
        told.append(preset)
        supervisor._estimated(preset, (Choice({}),), None, False)

    monkeypatch.setattr(estimation, "_estimate", slow)
    for name in ("gamma", "beta", "alpha"):  # the last one is first
        estimation.hurry(name)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(estimation.run())
        for name in ("alpha", "beta"):
            supervisor.scheduler.state.presets[PresetId(name)].wanted_since = 0.0
        async with asyncio.timeout(60):
            await began.wait()
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", partial(later_by, loop.time, 12))
        said = reasons(supervisor)
        awaits = "waiting until its memory is known: "
        fitted = f"{awaits}lswap has been choosing its context and layers for 12 s; "
        assert said["alpha"] == f"{fitted}then it is loaded"
        assert said["beta"] == (f"{awaits}lswap works on alpha (for 12 s) first; then it is loaded")
        assert said["gamma"] == (
            "its memory is not known yet: lswap works on alpha (for 12 s) and 1 other model first; "
            "it is loaded when a request comes"
        )
        snapshot = supervisor.snapshot()
        print_why(snapshot.models[0], [], snapshot.now)
        assert capsys.readouterr().out.startswith(f"alpha is unloaded: {fitted}")
        assert progress_line(snapshot, "alpha") == "alpha: waiting until its memory is known"
        assert supervisor.outlook("alpha").startswith("estimating the memory of alpha")
        go_on.set()
        async with asyncio.timeout(60):
            while len(told) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0)
        running.cancel()
    assert not any("known" in reason for reason in reasons(supervisor).values())
