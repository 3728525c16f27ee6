"""Invariants: conditions that hold after every event. Tests and simulations check them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llamaswap_py.scheduler.lifecycle import State
from llamaswap_py.scheduler.queues import Waiter
from llamaswap_py.scheduler.scheduler import Scheduler
from llamaswap_py.scheduler.state import SchedulerState
from llamaswap_py.scheduler.types import ClientId, InstanceKey


def check(scheduler: Scheduler) -> None:
    """Raise AssertionError, with words, if the scheduler's state contradicts itself."""
    state = scheduler.state
    _check_requests(state, scheduler.now)
    _check_instances(state)
    _check_ledger(state)


def _check_requests(state: SchedulerState, now: float) -> None:
    queued = {w.request for preset in state.presets.values() for w in preset.queue}
    assert queued == set(state.waiters), "queues and the index of waiters differ"
    leased = {one for instance in state.instances.values() for one in instance.leases}
    assert leased <= set(state.leases), "an instance holds an unknown lease"
    assert not queued & set(state.leases), "a request both waits and holds a lease"
    assert set(state.detached) <= set(state.leases), "a detached lease is unknown"
    for name, preset in state.presets.items():
        wanted = bool(preset.queue) or preset.wanted_since is not None
        assert wanted == (name in state.wanted), f"demand for {name} is not what its queue says"
        waiter, serving = preset.queue.peek(now), preset.serving
        if waiter is not None and serving is not None:
            assert not serving.admits(slot=waiter.slot), f"{name} could serve but lets wait"


def _check_instances(state: SchedulerState) -> None:
    for key, instance in state.instances.items():
        assert instance.state is not State.GONE, f"{key} is gone but still listed"
        generating = sum(lease.waiter.slot for lease in instance.leases.values())
        assert instance.generating == generating, f"{key} counts its generations wrong"
        if instance.state is State.LOADING:
            assert not instance.leases, f"{key} is loading and has leases"
        if instance.gate_for is not None and instance.state is State.READY:
            assert instance.gate_for in state.wanted, f"{key}: gate closed for a preset not wanted"
            newcomer = state.presets[instance.gate_for].plan
            assert not state.is_kept(instance, newcomer), f"{key}: gate closed, yet it is kept"
        preset = state.presets.get(key.preset)
        serves = instance.state in (State.LOADING, State.READY, State.SLEEPING)
        if preset is not None:
            assert serves == (preset.serving is instance), (
                f"{key}: {instance.state} but not serving"
            )


def check_spawn(scheduler: Scheduler, key: InstanceKey) -> None:
    """Raise AssertionError if a just spawned instance does not fit: invariant 2.

    It holds only then: other programs or a corrected footprint may exceed the sum later.
    """
    state = scheduler.state
    free, lowered = state.ledger.free(), state.instances[key].choice.lowered
    for pool in state.ledger.charges[key]:
        assert free[pool] + lowered.get(pool, 0) >= 0, (
            f"2: {pool}: {-free[pool]} more promised than there is"
        )


def _check_ledger(state: SchedulerState) -> None:
    assert set(state.ledger.charges) == set(state.instances), "charges and instances differ"


def unfair_refusal(
    refused: Waiter, newcomer: Waiter, waiting: Sequence[Waiter], now: float, ageing: float
) -> str | None:
    """Return what is wrong with a refusal because of a full queue, or None: invariant 10.

    `waiting` are all that wait after `newcomer` has come and `refused` has left. It counts the
    places anew, independently of the scheduler's own choice.
    """
    if any(one.came_back for one in waiting):
        return None  # these keep their places in any case
    counts = Counter(one.client for one in waiting)

    def level(client: ClientId, more: int, weight: int) -> int:
        return -(-(counts[client] + more) // weight)

    def aged(one: Waiter) -> int:
        return one.priority + (int((now - one.since) // ageing) if ageing > 0 else 0)

    would = level(refused.client, 1, refused.weight)
    if refused is newcomer:
        for one in waiting:
            if level(one.client, 0, one.weight) > would:
                return f"{refused.request} was refused, and {one.client} holds more than its share"
        if waiting and all(aged(one) < refused.priority for one in waiting):
            return f"{refused.request} was refused for a queue full of lower ones"
        return None
    theirs = level(newcomer.client, 0, newcomer.weight)
    lower = aged(refused) < newcomer.priority
    if refused.client == newcomer.client and lower:
        return None
    if theirs < would or (lower and theirs <= would):
        return None
    return f"{refused.request} was displaced for {newcomer.request}, which has no better right"
