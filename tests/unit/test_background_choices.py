"""What is logged of models that the first lines of `lswap up` call `estimating …`."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from llamaswap_py.scheduler.types import Choice, PoolId, PresetId, PresetPlan
from llamaswap_py.server.background import take_choices
from llamaswap_py.units import GIB

if TYPE_CHECKING:
    from llamaswap_py.scheduler.state import SchedulerState


def test_a_choice_is_told_once_as_soon_as_it_is_known() -> None:
    fits = Choice(
        {PoolId("CUDA0"): 5 * GIB, PoolId("host"): GIB}, chosen="8,192 of 131,072 context"
    )
    plans = {
        "fits": PresetPlan(preset=PresetId("fits"), choices=(fits,)),
        "refused": PresetPlan(preset=PresetId("refused"), choices=(Choice({PoolId("host"): GIB}),)),
        "late": PresetPlan(preset=PresetId("late"), choices=(), estimating=True),
    }
    presets = {PresetId(name): SimpleNamespace(plan=plan) for name, plan in plans.items()}
    state = cast("SchedulerState", SimpleNamespace(presets=presets))
    waiting = ["fits", "gone", "late", "refused"]
    assert take_choices(state, waiting) == [
        "fits: 8,192 of 131,072 context; CUDA0 5 GiB + host 1 GiB"
    ]
    assert waiting == ["late"]
    presets[PresetId("late")].plan = replace(plans["late"], choices=(fits,), estimating=False)
    assert take_choices(state, waiting) == [
        "late: 8,192 of 131,072 context; CUDA0 5 GiB + host 1 GiB"
    ]
    assert not waiting
