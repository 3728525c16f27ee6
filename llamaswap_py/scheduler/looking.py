"""Reads: which instance answers a request that changes nothing, or why none does. Changes nothing.

A read asks a child what it is or does. It loads, wakes and evicts nothing, and waits for nothing.
It does not count as use, neither for the ttl nor for the choice of the model to evict.
"""

from __future__ import annotations

from llamaswap_py.scheduler.actions import Reject, StopReason
from llamaswap_py.scheduler.lifecycle import State
from llamaswap_py.scheduler.queues import Waiter
from llamaswap_py.scheduler.refusals import Refusals
from llamaswap_py.scheduler.state import Instance, Preset, World
from llamaswap_py.scheduler.types import ClientId, InstanceKey, RequestId


def look(
    world: World, preset: Preset, now: float, *, wakes: bool, closing: bool
) -> InstanceKey | Reject:
    """Return the instance that answers a read of a preset; `wakes`: a child asleep would wake."""
    refusals = Refusals(world)
    waiter = Waiter(RequestId(""), ClientId(""), False, now)
    found = _answering(world, preset)
    if found is not None and not (wakes and found.state is State.SLEEPING):
        return found.key
    if closing:
        return refusals.closing(preset)(waiter)
    if found is None and preset.plan.problem is None and preset.serving is not None:
        return refusals.still_loading(preset, waiter, now)
    refusal = refusals.broken(preset, waiter, now)
    return refusal or refusals.not_loaded(preset, waiter, asleep=found is not None)


def _answering(world: World, preset: Preset) -> Instance | None:
    """Return the instance that serves, else the newest of those that still finish their answers."""
    serving = preset.serving
    if serving is not None and serving.state in (State.READY, State.SLEEPING):
        return serving
    draining = [
        one
        for one in world.instances.values()
        if one.key.preset == preset.plan.preset
        and one.state is State.DRAINING
        and one.ready_at is not None
        and one.drain_reason is not StopReason.REFUSED
    ]
    return max(draining, key=lambda one: one.key.epoch, default=None)
