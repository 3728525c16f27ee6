"""`Scheduler.handle(event, now) -> actions`: applies an event, then settles what follows from it.

Theory of operation. An event changes the world (world.py) a little. Then one pass runs, always in
the same order: what time alone brings about (upkeep.py); the planner decides for everyone who
waits (planner.py); free slots are granted. A request for a ready instance with a free slot takes
none of this: it is granted, and given back, in constant time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Action, StopReason
from llamaswap_py.scheduler.control import Control
from llamaswap_py.scheduler.ledger import Ledger
from llamaswap_py.scheduler.planner import Claim, Plan, make_plan
from llamaswap_py.scheduler.records import (
    Decision,
    Failure,
    Policy,
    Pool,
    PoolId,
    PresetId,
    PresetPlan,
)
from llamaswap_py.scheduler.states import State, Trigger
from llamaswap_py.scheduler.upkeep import Upkeep
from llamaswap_py.scheduler.waiting import Waiter
from llamaswap_py.scheduler.world import Instance, Preset, World


class Scheduler:
    """The core. Feed it events in order of time; carry out the actions it returns, in order.

    `deadline()` is the time at which it wants a `TimePassed`. Same events, same actions.
    """

    def __init__(
        self,
        plans: Iterable[PresetPlan],
        pools: Mapping[PoolId, Pool],
        policy: Policy | None = None,
        *,
        first_epoch: int = 1,
    ) -> None:
        self.policy = policy or Policy()
        self.world = World(Ledger(pools, self.policy), self.policy)
        for plan in plans:
            self.world.add_preset(plan)
        self._control = Control(self.world, first_epoch=first_epoch)
        self._upkeep = Upkeep(self.world, self._control)
        self._deadline: float | None = None
        # Each returns whether a pass has to follow.
        self._handlers: dict[type, Callable[[Any], bool]] = {
            ev.RequestArrived: self._request_arrived,
            ev.RequestLeft: self._request_left,
            ev.RequestFinished: self._request_finished,
            ev.InstanceProgressed: self._instance_progressed,
            ev.InstanceReady: self._instance_ready,
            ev.InstanceStalled: self._instance_stalled,
            ev.InstanceLost: self._instance_lost,
            ev.InstanceExited: self._instance_exited,
            ev.LoadAsked: self._load_asked,
            ev.UnloadAsked: self._unload_asked,
            ev.PinChanged: self._pin_changed,
            ev.PoolsMeasured: self._pools_measured,
            ev.PresetsChanged: self._presets_changed,
            ev.ShutdownAsked: self._shutdown_asked,
            ev.TimePassed: lambda _: True,
        }

    @property
    def decisions(self) -> deque[Decision]:
        """The newest decisions, oldest first."""
        return self._control.decisions

    @property
    def loads(self) -> int:
        """How many instances were ever spawned."""
        return self._control.loads

    @property
    def evictions(self) -> int:
        """How many instances were stopped to make room."""
        return self._control.evictions

    @property
    def now(self) -> float:
        """The time of the last event."""
        return self._control.now

    @property
    def closing(self) -> bool:
        """Whether a shutdown was asked for."""
        return self._upkeep.closing_at is not None

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        """Apply one event at time `now` (seconds, any origin; going back counts as standing)."""
        control = self._control
        control.now = max(now, control.now)
        control.out = []
        if self._handlers[type(event)](event):
            self._settle()
        return control.out

    def deadline(self) -> float | None:
        """Return when to send `TimePassed`, or None."""
        return self._deadline

    def eta(self, preset: PresetId, position: int = 0) -> float | None:
        """Return the expected seconds until a waiter at `position` gets its lease."""
        return self._control.refusals.eta(self.world.presets[preset], position, self._control.now)

    def _settle(self) -> None:
        self._upkeep.run()
        plan = make_plan(self.world, self._control.now)
        while self._turn_away(plan):
            plan = make_plan(self.world, self._control.now)
        self._carry_out(plan)
        self._grant_waiting()
        self._deadline = self._upkeep.next_deadline(plan.wake)

    # Requests

    def _request_arrived(self, event: ev.RequestArrived) -> bool:
        preset = self.world.presets.get(event.preset)
        since = self._control.now if event.since is None else event.since
        waiter = self._waiter(event, preset, since)
        if preset is None:
            self._control.out.append(self._control.refusals.unknown(event))
            return False
        if refusal := self._control.refusals.at_the_door(
            preset, event, self._control.now, self._upkeep.closing_at
        ):
            self._control.out.append(refusal)
            return False
        again = event.since is not None
        self.world.learning.arrived(event.preset, self._control.now, again=again)
        serving = preset.serving
        its_turn = not event.slot or not preset.queue
        if serving is not None and its_turn and serving.admits(slot=event.slot):
            self._control.grant(waiter, serving)
            return False
        self.world.enqueue(preset, waiter)
        return True

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
        )

    def _request_left(self, event: ev.RequestLeft) -> bool:
        if event.request in self.world.leases:  # the grant crossed its leaving
            return self._request_finished(ev.RequestFinished(event.request, ev.Outcome.CANCELLED))
        found = self.world.waiters.get(event.request)
        if found is None:
            return False
        self._control.drop(*found)
        self._control.abandon_unwanted(found[0])
        return True

    def _request_finished(self, event: ev.RequestFinished) -> bool:
        lease = self.world.leases.pop(event.request, None)
        if lease is None:
            return False
        instance = lease.instance
        del instance.leases[event.request]
        instance.generating -= lease.waiter.slot
        instance.last_used = self._control.now
        self.world.learning.ended(self._control.now)
        if not self.world.has_demand(instance):
            self.world.learning.habits(instance.key.preset).became_idle(self._control.now)
        if event.outcome is ev.Outcome.OK and lease.waiter.slot:
            self._learn_service(instance, self._control.now - lease.granted_at)
        if self.world.demand or instance.state is not State.READY:
            return True
        if instance.plan.ttl is not None and not instance.leases:
            self._deadline = _earliest(self._deadline, self._control.now + instance.plan.ttl)
        return False

    def _learn_service(self, instance: Instance, seconds: float) -> None:
        instance.served += 1
        preset = self.world.presets.get(instance.key.preset)
        if preset is not None:
            preset.failures = 0
            preset.service_seconds = self._mean(preset.service_seconds, seconds)

    def _mean(self, old: float | None, new: float) -> float:
        return new if old is None else old + self.policy.learning * (new - old)

    # Instances

    def _instance_progressed(self, event: ev.InstanceProgressed) -> bool:
        instance = self.world.instances.get(event.instance)
        if instance is not None and event.fraction is not None:
            instance.fraction = event.fraction
        return False

    def _instance_ready(self, event: ev.InstanceReady) -> bool:
        instance = self.world.instances.get(event.instance)
        if instance is None or instance.state is not State.LOADING:
            return False  # it was told to stop before this reached us
        instance.move(Trigger.BECAME_READY)
        instance.ready_at = instance.last_used = self._control.now
        instance.slots = max(event.slots, 1)
        preset = self.world.presets.get(instance.key.preset)
        if preset is not None:
            preset.load_seconds = self._mean(preset.load_seconds, instance.load_seconds)
            preset.loads += 1
            preset.failure = None
            preset.retried_memory = False
            preset.after = frozenset()
            self._control.forget_wish(preset)
            if not preset.queue:
                self.world.learning.habits(instance.key.preset).became_idle(self._control.now)
        self._control.note("ready", instance, f"loaded in {instance.load_seconds:.2f} s")
        return True

    def _instance_stalled(self, event: ev.InstanceStalled) -> bool:
        instance = self.world.instances.get(event.instance)
        if instance is None or instance.state is not State.LOADING:
            return False
        self._control.fail(instance, event.failure, loading=True)
        self._control.stop(instance, StopReason.LOAD_STALL, event.failure.summary, kill=True)
        return True

    def _instance_lost(self, event: ev.InstanceLost) -> bool:
        """Grant it to nobody any more; what became of it, its exit will say."""
        instance = self.world.instances.get(event.instance)
        if instance is None or instance.state is not State.READY:
            return False
        self._control.drain(instance, StopReason.LOST, "its process has ended")
        return True

    def _instance_exited(self, event: ev.InstanceExited) -> bool:
        instance = self.world.instances.pop(event.instance, None)
        if instance is None:
            return False
        before = instance.state
        instance.move(Trigger.EXITED)
        self.world.ledger.release(instance.key, self._control.now)
        self._control.detach(instance)
        if before is State.LOADING or (event.failure and before is not State.STOPPING):
            failure = event.failure or Failure("exited", "it ended while loading", 0)
            self._control.fail(instance, failure, loading=before is State.LOADING)
        else:
            self._control.note("gone", instance, instance.reason or "it ended by itself")
        return True

    # Operators

    def _load_asked(self, event: ev.LoadAsked) -> bool:
        preset = self.world.presets.get(event.preset)
        if preset is None or preset.plan.problem or self._upkeep.closing_at is not None:
            return False
        if preset.serving is not None and preset.serving.gate_for is None:
            return False
        preset.retry_at = self._control.now
        preset.wanted_since = self._control.now
        preset.wanted_by_eviction = event.evict
        self.world.demand[event.preset] = None
        return True

    def _unload_asked(self, event: ev.UnloadAsked) -> bool:
        preset = self.world.presets.get(event.preset)
        if preset is not None:
            preset.wanted_since = None
            self.world.settle_demand(preset)
            if event.force:
                self._control.reject_all(preset, self._control.refusals.unloaded(preset))
        for instance in [i for i in self.world.instances.values() if i.key.preset == event.preset]:
            if event.force:
                self._control.end_leases(instance, StopReason.FORCE)
            if instance.state is State.LOADING:
                self._unload_loading(instance, preset, force=event.force)
            elif instance.state is State.READY:
                self._control.drain(instance, StopReason.UNLOADED, "unloaded by an operator")
        return True

    def _unload_loading(self, instance: Instance, preset: Preset | None, *, force: bool) -> None:
        if force:
            self._control.stop(instance, StopReason.FORCE, "unloaded by an operator")
        elif preset is None or not preset.queue:
            self._control.stop(
                instance, StopReason.ABANDONED, "unloaded by an operator while loading"
            )

    def _pin_changed(self, event: ev.PinChanged) -> bool:
        if preset := self.world.presets.get(event.preset):
            preset.pin = event.pin
        return True

    def _pools_measured(self, event: ev.PoolsMeasured) -> bool:
        self.world.ledger.measure(event.pools)
        return True

    def _presets_changed(self, event: ev.PresetsChanged) -> bool:
        """Apply a new configuration: what is unchanged is untouched, what changed drains."""
        plans = {plan.preset: plan for plan in event.plans}
        for name, preset in list(self.world.presets.items()):
            plan = plans.pop(name, None)
            if plan == preset.plan:
                continue
            if preset.serving is not None:
                self._retire(preset.serving)
            if plan is None:
                self._control.reject_all(preset, self._control.refusals.removed(preset))
                self.world.demand.pop(name, None)
                del self.world.presets[name]
            else:
                preset.failures, preset.failure, preset.retry_at = 0, None, self._control.now
                self.world.add_preset(plan)
        for plan in plans.values():
            self.world.add_preset(plan)
        return True

    def _retire(self, instance: Instance) -> None:
        if instance.state is State.LOADING:
            self._control.stop(instance, StopReason.ABANDONED, "its preset changed")
        else:
            self._control.drain(instance, StopReason.RETIRED, "its preset changed")

    def _shutdown_asked(self, event: ev.ShutdownAsked) -> bool:
        self._upkeep.closing_at = self._control.now + (0.0 if event.force else event.timeout)
        for preset in list(self.world.presets.values()):
            preset.wanted_since = None
            self._control.reject_all(preset, self._control.refusals.closing(preset))
        for instance in list(self.world.instances.values()):
            if event.force:
                self._control.end_leases(instance, StopReason.FORCE)
                self._control.kill(instance, StopReason.FORCE)
            elif instance.state is State.LOADING:
                self._control.stop(instance, StopReason.ABANDONED, "lswap is shutting down")
            elif instance.state is State.READY:
                self._control.drain(instance, StopReason.SHUTDOWN, "lswap is shutting down")
        return True

    # The pass

    def _turn_away(self, plan: Plan) -> bool:
        """Refuse or redirect those who do not want to wait; True if the plan must be made anew.

        Whoever is redirected waits from then on, so this comes to an end.
        """
        refusals = self._control.refusals
        for preset, waiter in plan.deadlocked:
            self._control.out.append(refusals.would_deadlock(preset, waiter))
            self._control.drop(preset, waiter)
        for preset, waiter, why in plan.full:
            self._turn_one_away(preset, waiter, why)
        return bool(plan.deadlocked or plan.full)

    def _turn_one_away(self, preset: Preset, waiter: Waiter, why: str) -> None:
        now, how = self._control.now, waiter.when_full
        if how == "refuse":
            self._control.note_preset("refused", preset, f"would disturb what runs: {why}")
            self._control.out.append(self._control.refusals.full(preset, waiter, why, now))
            self._control.drop(preset, waiter)
            return
        waiter.when_full = "wait"
        other = self._substitute(preset, how.removeprefix("substitute:"))
        if other is not None:
            self._control.note_preset("substituted", preset, f"{other.plan.preset} answers: {why}")
            self.world.dequeue(preset, waiter)
            self.world.enqueue(other, waiter)

    def _substitute(self, preset: Preset, name: str) -> Preset | None:
        """Return the preset to ask instead: a named one, or the one used last of those loaded."""
        if name != "loaded":
            return self.world.presets.get(PresetId(name))
        loaded = [
            one.serving
            for one in self.world.presets.values()
            if one is not preset and one.serving and one.serving.admits(slot=False)
        ]
        best = max(loaded, key=lambda one: (one.last_used, one.key), default=None)
        return None if best is None else self.world.presets[best.key.preset]

    def _carry_out(self, plan: Plan) -> None:
        for preset, shortfall in plan.impossible:
            self._control.note_preset("refused", preset, f"can never fit: {shortfall}")
            self._control.reject_all(preset, self._control.refusals.too_large(preset, shortfall))
            self._control.forget_wish(preset)
        for preset, why in plan.given_up:
            self._control.note_preset("not preloaded", preset, f"no free memory: {why}")
            self._control.forget_wish(preset)
        for instance, winner, why in plan.evictions:
            self._control.evictions += 1
            reason = why
            if winner is not None:
                self.world.presets[winner].evicted_at = self._control.now
                reason = f"makes room for {winner} ({why})"
            self._control.stop(instance, StopReason.EVICTED, reason)
        self._set_gates(plan)
        for preset, choice, why in plan.spawns:
            self._control.spawn(preset, choice, why)

    def _set_gates(self, plan: Plan) -> None:
        """Close and reopen gates as planned, and run the clock of each drain somebody awaits."""
        for instance in self.world.instances.values():
            claim = plan.claims.get(instance.key)
            instance.claimed_by = claim.preset if claim else None
            self._set_gate(instance, claim, plan.closed.get(instance.key))
            draining = instance.state is State.DRAINING
            if instance.gate_for is None and not (plan.awaited and draining):
                instance.drain_from = None
            elif instance.drain_from is None:
                instance.drain_from = self._control.now

    def _set_gate(self, instance: Instance, claim: Claim | None, gate: PresetId | None) -> None:
        if gate == instance.gate_for:
            return
        instance.gate_for = gate
        if claim is not None and gate is not None:
            self._control.note("drain", instance, f"gate closed for {gate} ({claim.why})")
        elif instance.state is State.READY:
            instance.revoked_at = None
            self._control.note("reopened", instance, "its memory is no longer needed")

    def _grant_waiting(self) -> None:
        for name in list(self.world.demand):
            preset = self.world.presets[name]
            serving = preset.serving
            now = self._control.now
            while serving and (waiter := preset.queue.peek(now)):
                if not serving.admits(slot=waiter.slot):
                    break
                self.world.dequeue(preset, waiter)
                self._control.grant(waiter, serving)
            self.world.settle_demand(preset)


def _earliest(one: float | None, other: float) -> float:
    return other if one is None else min(one, other)
