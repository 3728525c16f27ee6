"""What is logged of models that the first lines of `lswap up` call `estimating …`."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.endpoint import Endpoint
from llamaswap_py.scheduler.ledger import Ledger
from llamaswap_py.scheduler.state import SchedulerState
from llamaswap_py.scheduler.types import Choice, Policy, PoolId, PresetId, PresetPlan
from llamaswap_py.server.background import take_choices, telling_choices
from llamaswap_py.units import GIB
from tests.unit.supervisors import configured, make_supervisor

if TYPE_CHECKING:
    from pathlib import Path


def state_of(*plans: PresetPlan) -> SchedulerState:
    state = SchedulerState(Ledger({}, Policy()), Policy())
    for plan in plans:
        state.add_preset(plan)
    return state


FITS = Choice({PoolId("host"): GIB}, chosen="8,192 of 131,072 context")


def test_a_choice_is_told_once_as_soon_as_it_is_known() -> None:
    fits = Choice(
        {PoolId("CUDA0"): 5 * GIB, PoolId("host"): GIB}, chosen="8,192 of 131,072 context"
    )
    plans = {
        "fits": PresetPlan(preset=PresetId("fits"), choices=(fits,)),
        "refused": PresetPlan(preset=PresetId("refused"), choices=(Choice({PoolId("host"): GIB}),)),
        "late": PresetPlan(preset=PresetId("late"), choices=(), estimating=True),
    }
    state = state_of(*plans.values())
    waiting = ["fits", "gone", "late", "refused"]
    assert take_choices(state, waiting) == [
        "fits: 8,192 of 131,072 context; CUDA0 5 GiB + host 1 GiB"
    ]
    assert waiting == ["late"]
    state.add_preset(replace(plans["late"], choices=(fits,), estimating=False))
    assert take_choices(state, waiting) == [
        "late: 8,192 of 131,072 context; CUDA0 5 GiB + host 1 GiB"
    ]
    assert not waiting


@pytest.mark.anyio
async def test_it_is_looked_for_only_when_an_estimate_has_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    late = PresetPlan(preset=PresetId("late"), choices=(), estimating=True)
    state = state_of(late)
    estimates = iter((late, replace(late, choices=(FITS,), estimating=False)))
    told, came = asyncio.Event(), []

    async def next_estimate() -> None:
        state.add_preset(next(estimates))
        came.append(caplog.text)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.set()

    handler = Handler()
    logging.getLogger("lswap").addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, "lswap"):
            async with asyncio.timeout(60), telling_choices(state, next_estimate, ["late"]):
                await told.wait()
    finally:
        logging.getLogger("lswap").removeHandler(handler)
    assert came == ["", ""]
    assert "late: 8,192 of 131,072 context; 1 GiB" in caplog.text


@pytest.mark.anyio
async def test_a_supervisor_says_when_an_estimate_has_come(tmp_path: Path) -> None:
    config = configured("models: {a: {model: /m/a.gguf}}")
    async with asyncio.timeout(60), make_supervisor(tmp_path, config, Endpoint()) as supervisor:
        for _ in range(2):
            supervisor.estimation.redo(["a"])
            await supervisor.estimation.next()
