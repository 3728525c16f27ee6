"""Pools that are parts of others: memory under several names is promised once."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace

import pytest

from llamaswap_py.scheduler import Policy, Pool, PresetPlan, Scheduler
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Action, Grant, Spawn, Stop
from llamaswap_py.scheduler.ledger import Ledger
from llamaswap_py.scheduler.types import Choice, ClientId, PoolId, PresetId, RequestId

HOST, CUDA, VULKAN = PoolId("host"), PoolId("CUDA0"), PoolId("Vulkan0")
RPC0, RPC1 = PoolId("RPC0"), PoolId("RPC1")

ONE_CARD = {HOST: Pool(64), CUDA: Pool(24, 2), VULKAN: Pool(24, 2, within=CUDA)}
SOFTWARE = {HOST: Pool(16, 1), VULKAN: Pool(8, 1, within=HOST)}
TWO_LENDERS = {HOST: Pool(24, 1), RPC0: Pool(24, within=HOST), RPC1: Pool(24, within=RPC0)}


def plan(name: str, **sizes: int) -> PresetPlan:
    footprint = {PoolId(pool): size for pool, size in sizes.items()}
    devices = tuple(pool for pool in footprint if pool != HOST)
    return PresetPlan(preset=PresetId(name), choices=(Choice(footprint, devices),))


def test_a_charge_counts_in_the_memory_around_it() -> None:
    card = Ledger(ONE_CARD, Policy())
    assert card.charge_of(plan("a", Vulkan0=5, host=1)) == {VULKAN: 5, CUDA: 5, HOST: 1}
    assert card.charge_of(plan("a", CUDA0=5)) == {CUDA: 5}
    software = Ledger(SOFTWARE, Policy())
    assert software.charge_of(plan("a", Vulkan0=5, host=1)) == {VULKAN: 5, HOST: 6}
    lent = Ledger(TWO_LENDERS, Policy())
    assert lent.charge_of(plan("a", RPC0=3, RPC1=4)) == {RPC0: 7, RPC1: 4, HOST: 7}


@pytest.mark.parametrize(
    ("pools", "sizes", "lacking"),
    [
        (SOFTWARE, {"Vulkan0": 7, "host": 9}, "host"),
        (TWO_LENDERS, {"RPC0": 12, "RPC1": 12}, "RPC0|host"),
        (SOFTWARE, {"Vulkan0": 8}, "Vulkan0"),
    ],
)
def test_what_is_too_large_for_the_memory_around_never_fits(
    pools: dict[PoolId, Pool], sizes: dict[str, int], lacking: str
) -> None:
    ledger = Ledger(pools, Policy())
    said = ledger.shortfall(ledger.charge_of(plan("a", **sizes)), ())
    assert said.partition(":")[0] in lacking.split("|")


@pytest.mark.parametrize("pools", [ONE_CARD, SOFTWARE, TWO_LENDERS])
def test_the_sum_of_charges_never_passes_the_memory(pools: dict[PoolId, Pool]) -> None:
    """Many presets on all names of it, asked for in a random order."""
    names = [pool for pool in pools if pool != HOST] + [HOST]
    draw = random.Random(5)
    plans = [
        plan(f"{pool}-{number}", **{pool: draw.randint(1, 6)})
        for pool in names
        for number in range(5)
    ]
    scheduler = Scheduler(tuple(plans), pools, Policy())
    footprints = {one.preset: one.choices[0].footprint or {} for one in plans}
    spawned: set[PresetId] = set()
    for number in range(300):
        name = draw.choice(plans).preset
        request = RequestId(f"r{number}")
        events: deque[ev.Event] = deque(
            [ev.RequestArrived(request=request, preset=name, client=ClientId("c"))]
        )
        while events:
            for action in scheduler.handle(events.popleft(), float(number)):
                events += answers(action)
                if isinstance(action, Spawn):
                    spawned.add(action.instance.preset)
            charged = [footprints[one.preset] for one in scheduler.state.ledger.charges]
            for root in (pool for pool, size in pools.items() if size.within is None):
                inside = {pool for pool in pools if root in around(pool, pools)}
                held = sum(sum(sizes.get(pool, 0) for pool in inside) for sizes in charged)
                assert held <= pools[root].total - pools[root].margin
    assert spawned == set(footprints)


def answers(action: Action) -> list[ev.Event]:
    """Return what children and clients do next: all load at once, and end when they should."""
    match action:
        case Spawn(instance=key):
            return [ev.InstanceReady(key, slots=1)]
        case Grant(request=request):
            return [ev.RequestFinished(request)]
        case Stop(instance=key):
            return [ev.InstanceExited(key, None)]
    return []


def around(pool: PoolId, pools: dict[PoolId, Pool]) -> list[PoolId]:
    found = [pool]
    while (within := pools[found[-1]].within) is not None:
        found.append(within)
    return found


def test_models_of_unknown_memory_are_alone_on_a_card_under_all_its_names() -> None:
    unknown = [
        PresetPlan(preset=PresetId(pool), choices=(Choice(None, (pool,)),))
        for pool in (CUDA, VULKAN)
    ]
    ledger = Ledger(ONE_CARD, Policy())
    assert ledger.charge_of(unknown[0]) == ledger.charge_of(unknown[1]) != {}
    software = Ledger(SOFTWARE, Policy())
    assert software.charge_of(unknown[1]) == {PoolId("unmeasured@Vulkan0"): 1}


def test_a_model_that_sleeps_gives_the_memory_around_back() -> None:
    sleeper = plan("a", Vulkan0=5, host=1)
    choice = replace(sleeper.choices[0], sleeping={VULKAN: 1, HOST: 1})
    scheduler = Scheduler((replace(sleeper, choices=(choice,)),), SOFTWARE, Policy())
    scheduler.handle(ev.LoadAsked(PresetId("a")), 0.0)
    ledger = scheduler.state.ledger
    key = next(iter(ledger.charges))
    assert ledger.charges[key] == {VULKAN: 5, HOST: 6}
    scheduler.handle(ev.InstanceReady(key, slots=1), 1.0)
    scheduler.handle(ev.InstanceSlept(key), 2.0)
    assert ledger.charges[key] == {VULKAN: 1, HOST: 2}
