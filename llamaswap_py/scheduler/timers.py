"""Deadlines of waiters and drains, the ttl of idle instances, and the time of the next look."""

from __future__ import annotations

from llamaswap_py.scheduler.actions import StopReason
from llamaswap_py.scheduler.effects import Effects
from llamaswap_py.scheduler.lifecycle import State
from llamaswap_py.scheduler.state import Instance, Lease, SchedulerState

_LIVE = (State.READY, State.SLEEPING, State.DRAINING)


class Timers:
    """The clock-driven half of a pass. `closing_at` is the shutdown deadline, once there is one."""

    def __init__(self, state: SchedulerState, effects: Effects) -> None:
        self.state = state
        self.effects = effects
        self.closing_at: float | None = None
        self.deadline: float | None = None

    def run(self) -> None:
        """Bring everything to the present moment, `effects.now`."""
        self._expire_waiters()
        for key in self.state.ledger.settle(self.effects.now):
            self.effects.settled_late(key)
        for request, lease in list(self.state.detached.items()):
            if self.effects.now >= self._detached_due(lease):
                self.effects.revoke_detached(request, lease)
        for instance in list(self.state.instances.values()):
            self._enforce_drain_deadline(instance)
            self._stop_finished(instance)

    def wake_by(self, when: float) -> None:
        """Look again at `when`, if not before."""
        self.deadline = when if self.deadline is None else min(self.deadline, when)

    def set_deadline(self, wake: float | None) -> None:
        """Look again at the earliest of `wake` and the deadlines that `run` acts upon."""
        times: list[float | None] = [wake]
        for instance in self.state.instances.values():
            times += (self._drain_due(instance), self.ttl_due(instance), self._grace_end(instance))
        times += map(self._detached_due, self.state.detached.values())
        times += (left.until for left in self.state.ledger.settling.values())
        for name in self.state.wanted:
            queue = self.state.presets[name].queue
            times.append(queue.next_ageing(self.effects.now))
            times.append(queue.next_give_up(self.state.policy.queue_timeout))
        self.deadline = min((time for time in times if time is not None), default=None)

    def ttl_due(self, instance: Instance) -> float | None:
        """Return when an idle instance has been idle for its ttl."""
        ttl = instance.ttl
        if ttl is None or instance.state not in (State.READY, State.SLEEPING):
            return None
        if self.state.has_demand(instance):
            return None
        return None if self.state.is_pinned(instance) else instance.last_used + ttl

    def _expire_waiters(self) -> None:
        now, timeout = self.effects.now, self.state.policy.queue_timeout
        for preset in [self.state.presets[one] for one in self.state.wanted]:
            due = preset.queue.next_give_up(timeout)
            if due is None or due > now:
                continue
            why = self.effects.refusals.timed_out_reason(preset)
            self.effects.record_preset("refused", preset, why)
            for waiter in [one for one in preset.queue if one.gives_up_at(timeout) <= now]:
                self.effects.out.append(self.effects.refusals.timed_out(preset, waiter, now))
                self.effects.remove_waiter(preset, waiter)
            self.effects.abandon_unwanted(preset)

    def _enforce_drain_deadline(self, instance: Instance) -> None:
        due = self._drain_due(instance)
        if due is not None and self.effects.now >= due:
            reason = StopReason.DRAIN_DEADLINE
            if self.closing_at is not None:
                reason = StopReason.SHUTDOWN_DEADLINE
            elif instance.drain_reason is StopReason.REFUSED:
                reason = StopReason.REFUSED
            self.effects.revoke_leases(instance, reason)

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
        """Return when an answer without a reader ends."""
        assert lease.detached_at is not None
        if self.closing_at is not None:
            return lease.detached_at  # its client cannot come back any more
        policy, wanted = self.state.policy, self.state.wanted_since(lease.instance)
        due = lease.detached_at + policy.detached_timeout
        if wanted is None:
            return due
        return min(due, max(lease.detached_at, wanted) + policy.detached_patience)

    def _grace_end(self, instance: Instance) -> float | None:
        """Return when revoked leases that did not end stop counting."""
        if instance.revoked_at is None or not instance.leases or instance.state not in _LIVE:
            return None
        return instance.revoked_at + self.state.policy.revoke_grace

    def _stop_finished(self, instance: Instance) -> None:
        now = self.effects.now
        grace, ttl = self._grace_end(instance), self.ttl_due(instance)
        if instance.state is State.DRAINING and not instance.leases:
            self.effects.stop(instance, instance.drain_reason, instance.reason)
        elif grace is not None and now >= grace:
            refused = instance.drain_reason is StopReason.REFUSED
            reason = StopReason.REFUSED if refused else StopReason.DRAIN_DEADLINE
            why = f"{instance.reason}, and its open requests did not end in time"
            self.effects.stop(instance, reason, why)
        elif ttl is not None and now >= ttl:
            idle = f"idle for its ttl of {instance.ttl:g} s"
            self.effects.stop(instance, StopReason.TTL, idle)
