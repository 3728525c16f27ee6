"""What a pin at run time makes impossible: the presets that can never be loaded beside the model.

A pin refits no other preset, so the answer to it names them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamaswap_py.scheduler.feasibility import judge
from llamaswap_py.scheduler.ledger import Ledger, add

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamaswap_py.scheduler.state import Preset, SchedulerState
    from llamaswap_py.scheduler.types import Choice, Footprint, InstanceKey, PresetId, PresetPlan


def shut_out_by(state: SchedulerState, pinned: Preset) -> list[PresetId]:
    """Return the presets that could be loaded if `pinned` were not pinned, and cannot beside it.

    Those whose memory is still being estimated are not judged.
    """
    held = [] if pinned.plan.estimating else _charges(state, pinned)
    return [
        preset.plan.preset
        for preset in state.presets.values()
        if preset is not pinned and _is_known(preset.plan)
        if _is_shut_out(state.ledger, preset.plan, _kept(state, preset, pinned), held)
    ]


def _charges(state: SchedulerState, pinned: Preset) -> list[Footprint]:
    """Return what a preset takes: as it is loaded, else for each of the ways to load it."""
    loaded = pinned.serving and state.ledger.charges.get(pinned.serving.key)
    if loaded:
        return [loaded]
    options, _ = judge(state.ledger, pinned.plan, _kept(state, pinned, pinned))
    return [one.charge for one in options if _is_lasting(one.choice)]


def _kept(state: SchedulerState, newcomer: Preset, pinned: Preset) -> list[InstanceKey]:
    """Return the instances that no eviction frees for `newcomer`, without that of `pinned`."""
    return [key for key in state.kept_from(newcomer) if key.preset != pinned.plan.preset]


def _is_shut_out(
    ledger: Ledger, plan: PresetPlan, kept: Sequence[InstanceKey], held: Sequence[Footprint]
) -> bool:
    options = [one for one in judge(ledger, plan, kept)[0] if _is_lasting(one.choice)]
    return bool(options and held) and all(
        ledger.shortfall(_sum(one.charge, other), kept) for one in options for other in held
    )


def _is_known(plan: PresetPlan) -> bool:
    return not plan.reservation and not plan.estimating and plan.problem is None


def _is_lasting(choice: Choice) -> bool:
    return not choice.passing


def _sum(charge: Footprint, other: Footprint) -> Footprint:
    amounts = dict(charge)
    add(amounts, other, 1)
    return amounts
