"""What must hold after every event, whatever happened. For tests and simulations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llamaswap_py.scheduler.lifecycle import State
from llamaswap_py.scheduler.queues import Waiter
from llamaswap_py.scheduler.scheduler import Scheduler
from llamaswap_py.scheduler.state import World
from llamaswap_py.scheduler.types import ClientId, InstanceKey


def check(scheduler: Scheduler) -> None:
    """Raise AssertionError, with words, if the scheduler's state contradicts itself."""
    world = scheduler.world
    _check_requests(world, scheduler.now)
    _check_instances(world)
    _check_ledger(world)


def _check_requests(world: World, now: float) -> None:
    queued = {w.request for preset in world.presets.values() for w in preset.queue}
    assert queued == set(world.waiters), "queues and the index of waiters differ"
    leased = {one for instance in world.instances.values() for one in instance.leases}
    assert leased <= set(world.leases), "an instance holds a lease nobody knows"
    assert not queued & set(world.leases), "a request both waits and holds a lease"
    assert set(world.detached) <= set(world.leases), "a detached lease nobody knows"
    for name, preset in world.presets.items():
        wanted = bool(preset.queue) or preset.wanted_since is not None
        assert wanted == (name in world.demand), f"demand for {name} is not what its queue says"
        waiter, serving = preset.queue.peek(now), preset.serving
        if waiter is not None and serving is not None:
            assert not serving.admits(slot=waiter.slot), f"{name} could serve but lets wait"


def _check_instances(world: World) -> None:
    for key, instance in world.instances.items():
        assert instance.state is not State.GONE, f"{key} is gone but still listed"
        generating = sum(lease.waiter.slot for lease in instance.leases.values())
        assert instance.generating == generating, f"{key} counts its generations wrong"
        if instance.state is State.LOADING:
            assert not instance.leases, f"{key} is loading and has leases"
        if instance.gate_for is not None and instance.state is State.READY:
            assert instance.gate_for in world.demand, f"{key}: gate closed for nobody"
            newcomer = world.presets[instance.gate_for].plan
            assert not world.is_kept(instance, newcomer), f"{key}: gate closed, yet it is kept"
        preset = world.presets.get(key.preset)
        serves = instance.state in (State.LOADING, State.READY, State.SLEEPING)
        if preset is not None:
            assert serves == (preset.serving is instance), (
                f"{key}: {instance.state} but not serving"
            )


def check_spawn(scheduler: Scheduler, key: InstanceKey) -> None:
    """Raise AssertionError if what was just spawned does not fit: invariant 2.

    Only then: strangers or a corrected footprint may break the sum afterwards.
    """
    world = scheduler.world
    free = world.ledger.free()
    for pool in world.ledger.charges[key]:
        assert free[pool] >= 0, f"2: {pool}: {-free[pool]} more promised than there is"


def _check_ledger(world: World) -> None:
    assert set(world.ledger.charges) == set(world.instances), "charges and instances differ"


def unfair_refusal(
    refused: Waiter, newcomer: Waiter, waiting: Sequence[Waiter], now: float, ageing: float
) -> str | None:
    """Return what is wrong with a refusal for want of a place in a queue, or None: invariant 10.

    `waiting` are all that wait once `newcomer` has come and `refused` is out. It counts anew, and
    knows nothing of how the scheduler chose.
    """
    if any(one.came_back for one in waiting):
        return None  # those keep their places, whatever they are
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
