"""What a request's arrival, leaving or end changes; handlers say whether a pass has to follow."""

from __future__ import annotations

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.control import Control
from llamaswap_py.scheduler.states import State
from llamaswap_py.scheduler.upkeep import Upkeep
from llamaswap_py.scheduler.waiting import Waiter
from llamaswap_py.scheduler.world import Instance, Preset, World


class OnRequests:
    """Handlers of the request events."""

    def __init__(self, world: World, control: Control, upkeep: Upkeep) -> None:
        self.world = world
        self.control = control
        self.upkeep = upkeep

    def grant_at_once(self, event: ev.RequestArrived) -> Instance | None:
        """Grant a request that nobody has to wait for, nor wait longer because of it."""
        world, now = self.world, self.control.now
        preset = world.presets.get(event.preset)
        serving = None if preset is None else preset.serving
        if (
            preset is None
            or serving is None
            or preset.plan.problem is not None
            or self.upkeep.closing_at is not None
            or len(preset.queue) >= min(1, world.policy.queue_limit)
            or not serving.admits(slot=event.slot)
            or (world.demand and not serving.leases)
        ):
            return None
        world.learning.arrived(event.preset, now, again=False)
        waiter = Waiter(
            *(event.request, event.client, event.slot, now, event.priority),
            parent=event.parent,
            allowed=event.allowed,
            weight=event.weight,
        )
        self.control.open_lease(waiter, serving)
        return serving

    def request_arrived(self, event: ev.RequestArrived) -> bool:
        preset = self.world.presets.get(event.preset)
        since = self.control.now if event.since is None else event.since
        waiter = self._waiter(event, preset, since)
        if preset is None:
            self.control.out.append(self.control.refusals.unknown(event))
            return False
        if refusal := self.control.refusals.at_the_door(
            preset, event, waiter, self.control.now, self.upkeep.closing_at
        ):
            self.control.out.append(refusal)
            return False
        serving = preset.serving
        its_turn = not event.slot or not preset.queue
        admitted = serving is not None and its_turn and serving.admits(slot=event.slot)
        has_place, leaver = (True, None) if admitted else self.control.find_place(preset, waiter)
        if not has_place:
            refusal = self.control.refusals.queue_full(preset, waiter, self.control.now)
            self.control.out.append(refusal)
            return False
        self.world.learning.arrived(event.preset, self.control.now, again=waiter.came_back)
        if serving is not None and admitted:
            was_idle = not serving.leases
            self.control.grant(waiter, serving)
            return was_idle and bool(self.world.demand)  # somebody counted on its idleness
        if self.world.is_nested(waiter, serving) and self._from_within(preset, waiter):
            return False
        self.control.enqueue(preset, waiter, leaver)
        return True

    def _from_within(self, preset: Preset, waiter: Waiter) -> bool:
        """Grant or refuse a request under one of the same instance; False: a slot will come free.

        It passes a closed gate, and those who wait: the request above it holds what they wait for.
        """
        serving = preset.serving
        assert serving is not None
        if serving.admits(slot=waiter.slot, nested=True):
            self.control.grant(waiter, serving)
            return True
        if self.world.would_wait_for_itself(preset, waiter):
            self.control.refuse_deadlock(preset, waiter)
            self.world.learning.ended(self.control.now)
            return True
        return False

    def _waiter(self, event: ev.RequestArrived, preset: Preset | None, since: float) -> Waiter:
        when_full = event.when_full or (preset.plan.when_full if preset else "wait")
        if when_full.startswith("substitute") and not event.substitutable:
            when_full = "wait"
        return Waiter(
            event.request,
            event.client,
            event.slot,
            since,
            event.priority,
            None if event.patience is None else since + event.patience,
            when_full,
            event.parent,
            event.allowed,
            event.weight,
            event.since is not None,
        )

    def request_left(self, event: ev.RequestLeft) -> bool:
        if event.request in self.world.leases:  # the grant crossed its leaving
            return self.request_finished(ev.RequestFinished(event.request, ev.Outcome.CANCELLED))
        found = self.world.waiters.get(event.request)
        if found is None:
            return False
        self.control.drop(*found)
        self.control.abandon_unwanted(found[0])
        return True

    def request_finished(self, event: ev.RequestFinished) -> bool:
        lease, now = self.world.leases.pop(event.request, None), self.control.now
        if lease is None:
            return False
        self.world.detached.pop(event.request, None)
        instance = lease.instance
        del instance.leases[event.request]
        instance.generating -= lease.waiter.slot
        instance.last_used = now
        self.world.learning.circulation.closed(now)
        if not instance.leases and not self.world.has_demand(instance):
            self.world.learning.habits(instance.key.preset).became_idle(now)
        if event.outcome is ev.Outcome.OK and lease.waiter.slot:
            self._learn_service(instance, now - lease.granted_at)
        if self.world.demand or instance.state is not State.READY:
            return True
        if instance.ttl is not None and not instance.leases:
            self.upkeep.wake_by(self.control.now + instance.ttl)
        return False

    def lease_detached(self, event: ev.LeaseDetached) -> bool:
        lease = self.world.leases.get(event.request)
        if lease is None:
            return False
        lease.detached_at = self.control.now
        self.world.detached[event.request] = lease
        why = f"the client of {event.request} has left; its answer goes on, should it come back"
        self.control.note("detached", lease.instance, why)
        return True

    def lease_attached(self, event: ev.LeaseAttached) -> bool:
        lease = self.world.detached.pop(event.request, None)
        if lease is None:
            return False
        lease.detached_at = None
        self.control.note("attached", lease.instance, f"{event.request} is read again")
        return True

    def _learn_service(self, instance: Instance, seconds: float) -> None:
        instance.served += 1
        preset = self.world.presets.get(instance.key.preset)
        if preset is not None:
            preset.failures = 0
            preset.service_seconds = self.control.blend(preset.service_seconds, seconds)
