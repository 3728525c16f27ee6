"""What time alone brings about: deadlines of waiters and drains, ttl, and when to look again."""

from __future__ import annotations

from llamaswap_py.scheduler.actions import StopReason
from llamaswap_py.scheduler.control import Control
from llamaswap_py.scheduler.states import State
from llamaswap_py.scheduler.waiting import Waiter, WaitQueue
from llamaswap_py.scheduler.world import Instance, World

_LIVE = (State.READY, State.SLEEPING, State.DRAINING)


class Upkeep:
    """The clock-driven half of a pass. `closing_at` is the shutdown deadline, once there is one."""

    def __init__(self, world: World, control: Control) -> None:
        self.world = world
        self.control = control
        self.closing_at: float | None = None

    def run(self) -> None:
        """Bring everything to the present moment, `control.now`."""
        self._expire_waiters()
        for key in self.world.ledger.settle(self.control.now):
            self.control.settled_late(key)
        for instance in list(self.world.instances.values()):
            self._enforce_drain_deadline(instance)
            self._stop_finished(instance)

    def next_deadline(self, wake: float | None) -> float | None:
        """Return the earliest of `wake` and everything `run` would act upon."""
        times: list[float | None] = [wake]
        for instance in self.world.instances.values():
            times += (self._drain_due(instance), self.ttl_due(instance), self._grace_end(instance))
        times += (left.until for left in self.world.ledger.settling.values())
        for name in self.world.demand:
            queue = self.world.presets[name].queue
            times.append(queue.next_ageing(self.control.now))
            times += (self._gives_up_at(waiter) for waiter in self._impatient(queue))
        return min((time for time in times if time is not None), default=None)

    def ttl_due(self, instance: Instance) -> float | None:
        """Return when an idle instance has been idle for its ttl."""
        ttl = instance.plan.ttl
        if ttl is None or instance.state is not State.READY or self.world.has_demand(instance):
            return None
        return None if self.world.is_pinned(instance) else instance.last_used + ttl

    def _gives_up_at(self, waiter: Waiter) -> float:
        limit = waiter.since + self.world.policy.queue_timeout
        return limit if waiter.deadline is None else min(limit, waiter.deadline)

    def _impatient(self, queue: WaitQueue) -> list[Waiter]:
        """Return the waiters among whom the next one to give up is."""
        waiters = list(queue)
        own = [one for one in waiters if one.deadline is not None]
        rest = [one for one in waiters if one.deadline is None]
        return own + ([min(rest, key=lambda one: one.since)] if rest else [])

    def _expire_waiters(self) -> None:
        now = self.control.now
        for preset in [self.world.presets[one] for one in self.world.demand]:
            late = [one for one in preset.queue if self._gives_up_at(one) <= now]
            for waiter in late:
                self.control.out.append(self.control.refusals.timed_out(preset, waiter, now))
                self.control.drop(preset, waiter)
            if late:
                self.control.abandon_unwanted(preset)

    def _enforce_drain_deadline(self, instance: Instance) -> None:
        due = self._drain_due(instance)
        if due is not None and self.control.now >= due:
            closing = self.closing_at is not None
            self.control.end_leases(
                instance, StopReason.SHUTDOWN_DEADLINE if closing else StopReason.DRAIN_DEADLINE
            )

    def _drain_due(self, instance: Instance) -> float | None:
        """Return when the open leases of a draining instance are revoked, if ever."""
        if not instance.leases or instance.revoked_at is not None or instance.state not in _LIVE:
            return None
        if self.closing_at is not None:
            return self.closing_at
        if instance.drain_from is None or not instance.plan.cancel_at_drain_deadline:
            return None
        return instance.drain_from + instance.plan.drain_timeout

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
            why = f"{instance.reason}, and its open requests did not end in time"
            self.control.stop(instance, StopReason.DRAIN_DEADLINE, why)
        elif ttl is not None and now >= ttl:
            idle = f"idle for its ttl of {instance.plan.ttl:g} s"
            self.control.stop(instance, StopReason.TTL, idle)
