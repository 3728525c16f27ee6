"""What time alone brings about: deadlines of waiters and drains, ttl, and when to look again."""

from __future__ import annotations

from llamaswap_py.scheduler.actions import StopReason
from llamaswap_py.scheduler.effects import Control
from llamaswap_py.scheduler.lifecycle import State
from llamaswap_py.scheduler.state import Instance, Lease, World

_LIVE = (State.READY, State.SLEEPING, State.DRAINING)


class Upkeep:
    """The clock-driven half of a pass. `closing_at` is the shutdown deadline, once there is one."""

    def __init__(self, world: World, control: Control) -> None:
        self.world = world
        self.control = control
        self.closing_at: float | None = None
        self.deadline: float | None = None

    def run(self) -> None:
        """Bring everything to the present moment, `control.now`."""
        self._expire_waiters()
        for key in self.world.ledger.settle(self.control.now):
            self.control.settled_late(key)
        for request, lease in list(self.world.detached.items()):
            if self.control.now >= self._detached_due(lease):
                self.control.end_detached(request, lease)
        for instance in list(self.world.instances.values()):
            self._enforce_drain_deadline(instance)
            self._stop_finished(instance)

    def wake_by(self, when: float) -> None:
        """Look again at `when`, if not before."""
        self.deadline = when if self.deadline is None else min(self.deadline, when)

    def set_deadline(self, wake: float | None) -> None:
        """Look again at the earliest of `wake` and everything `run` would act upon."""
        times: list[float | None] = [wake]
        for instance in self.world.instances.values():
            times += (self._drain_due(instance), self.ttl_due(instance), self._grace_end(instance))
        times += map(self._detached_due, self.world.detached.values())
        times += (left.until for left in self.world.ledger.settling.values())
        for name in self.world.demand:
            queue = self.world.presets[name].queue
            times.append(queue.next_ageing(self.control.now))
            times.append(queue.next_give_up(self.world.policy.queue_timeout))
        self.deadline = min((time for time in times if time is not None), default=None)

    def ttl_due(self, instance: Instance) -> float | None:
        """Return when an idle instance has been idle for its ttl."""
        ttl = instance.ttl
        if ttl is None or instance.state not in (State.READY, State.SLEEPING):
            return None
        if self.world.has_demand(instance):
            return None
        return None if self.world.is_pinned(instance) else instance.last_used + ttl

    def _expire_waiters(self) -> None:
        now, timeout = self.control.now, self.world.policy.queue_timeout
        for preset in [self.world.presets[one] for one in self.world.demand]:
            due = preset.queue.next_give_up(timeout)
            if due is None or due > now:
                continue
            for waiter in [one for one in preset.queue if one.gives_up_at(timeout) <= now]:
                self.control.out.append(self.control.refusals.timed_out(preset, waiter, now))
                self.control.drop(preset, waiter)
            self.control.abandon_unwanted(preset)

    def _enforce_drain_deadline(self, instance: Instance) -> None:
        due = self._drain_due(instance)
        if due is not None and self.control.now >= due:
            reason = StopReason.DRAIN_DEADLINE
            if self.closing_at is not None:
                reason = StopReason.SHUTDOWN_DEADLINE
            elif instance.drain_reason is StopReason.REFUSED:
                reason = StopReason.REFUSED
            self.control.end_leases(instance, reason)

    def _drain_due(self, instance: Instance) -> float | None:
        """Return when the open leases of a draining instance are revoked, if ever."""
        if not instance.leases or instance.revoked_at is not None or instance.state not in _LIVE:
            return None
        if self.closing_at is not None:
            return self.closing_at
        if instance.drain_from is None or not instance.plan.cancel_at_drain_deadline:
            return None
        return instance.drain_from + instance.plan.drain_timeout

    def _detached_due(self, lease: Lease) -> float:
        """Return when an answer that nobody reads has gone on for long enough."""
        assert lease.detached_at is not None
        if self.closing_at is not None:
            return lease.detached_at  # nobody can come back any more
        policy, wanted = self.world.policy, self.world.wanted_since(lease.instance)
        due = lease.detached_at + policy.detached_timeout
        if wanted is None:
            return due
        return min(due, max(lease.detached_at, wanted) + policy.detached_patience)

    def _grace_end(self, instance: Instance) -> float | None:
        """Return when revoked leases that did not end stop counting."""
        if instance.revoked_at is None or not instance.leases or instance.state not in _LIVE:
            return None
        return instance.revoked_at + self.world.policy.revoke_grace

    def _stop_finished(self, instance: Instance) -> None:
        now = self.control.now
        grace, ttl = self._grace_end(instance), self.ttl_due(instance)
        if instance.state is State.DRAINING and not instance.leases:
            self.control.stop(instance, instance.drain_reason, instance.reason)
        elif grace is not None and now >= grace:
            refused = instance.drain_reason is StopReason.REFUSED
            reason = StopReason.REFUSED if refused else StopReason.DRAIN_DEADLINE
            why = f"{instance.reason}, and its open requests did not end in time"
            self.control.stop(instance, reason, why)
        elif ttl is not None and now >= ttl:
            idle = f"idle for its ttl of {instance.ttl:g} s"
            self.control.stop(instance, StopReason.TTL, idle)
