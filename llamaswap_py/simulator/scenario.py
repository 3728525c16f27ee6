"""Makes a case from a configuration: its presets' memory and load times, and the devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from llamaswap_py.scheduler.ledger import LOADED, Amounts, is_counting
from llamaswap_py.scheduler.types import Policy, Pool, PoolId, PresetPlan
from llamaswap_py.simulator.run_records import Case, Model, TraceRequest


@dataclass(frozen=True, slots=True)
class SimulatedChild:
    """A preset's behaviour: seconds to load, and how many requests it answers at the same time.

    `by_variant` has the seconds of each variant by its name, where they differ.
    """

    seconds: float
    slots: int
    by_variant: Mapping[str, float] = field(default_factory=dict)


def make_case(
    name: str,
    plans: Iterable[tuple[PresetPlan, SimulatedChild]],
    pools: Mapping[PoolId, Pool],
    policy: Policy,
    asks: tuple[TraceRequest, ...],
) -> Case:
    """Return a case of these presets; problems that keep them from running here are ignored."""
    room = dict(pools)
    if policy.max_loaded:
        room[LOADED] = Pool(policy.max_loaded)
    models = tuple(
        Model(
            name=plan.preset,
            footprint=_footprint(plan, room),
            load=loading.seconds,
            variant_loads=loading.by_variant,
            slots=loading.slots,
            pin=plan.pin,
            ttl=plan.ttl,
            drain_timeout=plan.drain_timeout,
            given=replace(plan, problem=None),
        )
        for plan, loading in plans
    )
    return Case(name=name, models=models, pools=room, asks=asks, policy=policy)


def _footprint(plan: PresetPlan, pools: Mapping[PoolId, Pool]) -> Amounts:
    """Return the footprint that a peer assumes; an unknown one fills its devices."""
    choice = plan.choices[0]
    footprint: Amounts = dict(choice.footprint or {})
    if LOADED in pools:
        footprint[LOADED] = 1
    elif choice.footprint is None:
        for pool in choice.devices or pools:
            if not is_counting(pool):
                footprint[pool] = pools[pool].total - pools[pool].margin
    return footprint
