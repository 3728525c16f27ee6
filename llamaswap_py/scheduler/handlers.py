"""What a request's arrival, leaving or end changes; handlers say whether a pass has to follow.

What is done to a preset's files: their download, and what was read of them ahead of need.

What an instance's progress, readiness, sleep or end changes.

What operators, measurements, a new configuration and the shutdown change.
"""

from __future__ import annotations

from dataclasses import replace

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Refuse, StopReason
from llamaswap_py.scheduler.effects import Control
from llamaswap_py.scheduler.judging import judge, remedies
from llamaswap_py.scheduler.lifecycle import State, Trigger
from llamaswap_py.scheduler.queues import Waiter
from llamaswap_py.scheduler.state import Instance, Preset, World
from llamaswap_py.scheduler.timers import Upkeep
from llamaswap_py.scheduler.types import Choice, Failure, PresetId, PresetPlan
from llamaswap_py.units import format_size


class OnFiles:
    """Handlers of events about files; those of a preset that is gone change nothing."""

    def __init__(self, world: World, control: Control) -> None:
        self.world = world
        self.control = control

    def download_asked(self, event: ev.DownloadAsked) -> bool:
        preset = self.world.presets.get(event.preset)
        if preset is not None and preset.plan.absent and preset.downloading_since is None:
            self.control.download(preset)
        return False

    def download_progressed(self, event: ev.DownloadProgressed) -> bool:
        preset = self.world.presets.get(event.preset)
        if preset is not None and preset.downloading_since is not None:
            preset.downloaded = min(max(event.fraction, 0.0), 1.0)
        return False

    def download_finished(self, event: ev.DownloadFinished) -> bool:
        preset = self.world.presets.get(event.preset)
        if preset is None:
            return False
        pin = preset.pin
        self.world.add_preset(event.plan)
        preset.pin = pin
        preset.downloading_since = None
        preset.failures, preset.failure = 0, None
        self.control.note_preset("downloaded", preset, "its files are there")
        return True

    def download_failed(self, event: ev.DownloadFailed) -> bool:
        preset = self.world.presets.get(event.preset)
        if preset is None or preset.downloading_since is None:
            return False
        preset.downloading_since = None
        preset.failures += 1
        preset.failure = event.failure
        self.control.note_preset("failed", preset, event.failure.summary)
        self.control.back_off(preset, preset.failures - 1)
        return True

    def files_read(self, event: ev.FilesRead) -> bool:
        preset = self.world.presets.get(event.preset)
        if preset is None:
            return False
        state = preset.reason
        self.control.note_preset(
            "kept in memory" if event.kept else "read ahead",
            preset,
            f"{format_size(event.there)} of {format_size(event.size)} are in the page cache, "
            f"{format_size(event.read)} were read in {event.seconds:.1f} s",
        )
        preset.reason = state  # it is no reason for what state the model is in
        return False


class OnInstances:
    """Handlers of the instance events; a late one, of an old epoch, changes nothing."""

    def __init__(self, world: World, control: Control) -> None:
        self.world = world
        self.control = control

    def instance_progressed(self, event: ev.InstanceProgressed) -> bool:
        instance = self.world.instances.get(event.instance)
        if instance is not None and event.fraction is not None:
            instance.fraction = event.fraction
        return False

    def instance_ready(self, event: ev.InstanceReady) -> bool:
        instance = self.world.instances.get(event.instance)
        if instance is None or instance.state is not State.LOADING:
            return False  # it was told to stop before this reached us
        instance.move(Trigger.BECAME_READY)
        instance.ready_at = instance.last_used = self.control.now
        instance.slots = max(event.slots, 1)
        preset = self.world.presets.get(instance.key.preset)
        if preset is not None:
            known = None if preset.load_seeded else preset.load_seconds
            preset.load_seconds = self.control.blend(known, instance.load_seconds)
            preset.load_seeded = False
            preset.loads += 1
            preset.failure = None
            preset.retried_memory = False
            preset.after = frozenset()
            self.control.forget_wish(preset)
            if not preset.queue:
                self.world.learning.habits(instance.key.preset).became_idle(self.control.now)
        self.control.note("ready", instance, f"loaded in {instance.load_seconds:.2f} s")
        return True

    def instance_slept(self, event: ev.InstanceSlept) -> bool:
        instance = self.world.instances.get(event.instance)
        if instance is None or instance.state is not State.READY or instance.leases:
            return False  # a request is on its way to it, and wakes it at once
        instance.move(Trigger.SLEPT)
        full = instance.choice.footprint or {}
        left = instance.choice.sleeping
        if left is not None:
            kept = {pool: size for pool, size in instance.charge.items() if pool not in full}
            self.control.recharge(instance, {**kept, **left})
        self.control.note("sleep", instance, "idle: it gave its memory back")
        return True

    def instance_woke(self, event: ev.InstanceWoke) -> bool:
        instance = self.world.instances.get(event.instance)
        if instance is None or instance.state is not State.SLEEPING:
            return False
        full = self.world.ledger.charge_of(instance.plan, instance.choice)
        self.control.recharge(instance, full)  # also if something else than us woke it
        instance.waking = False
        instance.move(Trigger.WOKE)
        instance.last_used = self.control.now
        if preset := self.world.presets.get(instance.key.preset):
            self.control.forget_wish(preset)
        return True

    def instance_stalled(self, event: ev.InstanceStalled) -> bool:
        instance = self.world.instances.get(event.instance)
        if instance is None or instance.state is not State.LOADING:
            return False
        self.control.fail(instance, event.failure, loading=True)
        self.control.stop(instance, StopReason.LOAD_STALL, event.failure.summary, kill=True)
        return True

    def instance_hung(self, event: ev.InstanceHung) -> bool:
        instance = self.world.instances.get(event.instance)
        if instance is None or instance.state not in (State.READY, State.SLEEPING, State.DRAINING):
            return False
        refused = instance.drain_reason is StopReason.REFUSED  # it was about to end, unasked
        self.control.end_leases(instance, StopReason.REFUSED if refused else StopReason.FOUND_HUNG)
        self.control.fail(instance, event.failure, loading=False)
        self.control.stop(instance, StopReason.FOUND_HUNG, event.failure.summary, kill=True)
        return True

    def instance_lost(self, event: ev.InstanceLost) -> bool:
        """Grant it to nobody any more; what became of it, its exit will say."""
        instance = self.world.instances.get(event.instance)
        if instance is None or instance.state not in (State.READY, State.SLEEPING):
            return False
        self.control.drain(instance, StopReason.LOST, "its process has ended")
        if preset := self.world.presets.get(instance.key.preset):
            preset.after |= {instance.key}  # whether to try again, and when, its exit will say
        return True

    def instance_refused(self, event: ev.InstanceRefused) -> bool:
        """Grant it to nobody any more; it is stopped, if it does not end before its leases do."""
        instance = self.world.instances.get(event.instance)
        if instance is None or instance.state not in (State.READY, State.SLEEPING, State.DRAINING):
            return False
        if instance.state is not State.DRAINING:
            why = "it ends, and was not told to" if event.ends else "it refuses connections"
            self.control.drain(instance, StopReason.REFUSED, why)
            instance.drain_from = self.control.now
            if event.ends and (preset := self.world.presets.get(instance.key.preset)):
                preset.after |= {instance.key}  # as with one that is lost
        if event.ends:
            self.control.end_leases(instance, StopReason.REFUSED)
        return True

    def instance_noted(self, event: ev.InstanceNoted) -> bool:
        if instance := self.world.instances.get(event.instance):
            self.control.note(event.kind, instance, event.text)
        return False

    def instance_exited(self, event: ev.InstanceExited) -> bool:
        instance = self.world.instances.pop(event.instance, None)
        if instance is None:
            return False
        before = instance.state
        instance.move(Trigger.EXITED)
        self.world.ledger.release(instance.key, self.control.now)
        self.control.detach(instance)
        unasked = instance.drain_reason in (StopReason.LOST, StopReason.REFUSED)
        told = before is State.STOPPING and not unasked
        failure = event.failure
        if failure is None and instance.drain_reason is StopReason.REFUSED:
            why = "it refused connections and did not end by itself: lswap ended it"
            failure = Failure("killed", why, None)
        if before is State.LOADING or (failure and not told):
            failure = failure or Failure("exited", "it ended while loading", 0)
            self.control.fail(instance, failure, loading=before is State.LOADING)
        else:
            self.control.note("gone", instance, instance.reason or "it ended by itself")
        return True


class OnOperators:
    """Handlers of everything that comes from outside the traffic."""

    def __init__(self, world: World, control: Control, upkeep: Upkeep) -> None:
        self.world = world
        self.control = control
        self.upkeep = upkeep

    def load_asked(self, event: ev.LoadAsked) -> bool:
        preset = self.world.presets.get(event.preset)
        if preset is None or preset.plan.problem or self.upkeep.closing_at is not None:
            return False
        serving = preset.serving
        if serving is not None and serving.gate_for is None and not serving.is_asleep:
            return False
        preset.retry_at = self.control.now
        preset.wanted_since = self.control.now
        preset.wanted_by_eviction = event.evict
        self.world.demand[event.preset] = None
        return True

    def unload_asked(self, event: ev.UnloadAsked) -> bool:
        preset = self.world.presets.get(event.preset)
        if preset is not None:
            preset.wanted_since = None
            self.world.settle_demand(preset)
            if event.force:
                self.control.reject_all(preset, self.control.refusals.unloaded(preset))
        for instance in [i for i in self.world.instances.values() if i.key.preset == event.preset]:
            if event.force:
                self.control.end_leases(instance, StopReason.FORCE)
            if instance.state is State.LOADING:
                self._unload_loading(instance, preset, force=event.force)
            elif instance.state in (State.READY, State.SLEEPING):
                self.control.drain(instance, StopReason.UNLOADED, "unloaded by command")
        return True

    def _unload_loading(self, instance: Instance, preset: Preset | None, *, force: bool) -> None:
        if force:
            self.control.stop(instance, StopReason.FORCE, "unloaded by command")
        elif preset is None or not preset.queue:
            self.control.stop(instance, StopReason.ABANDONED, "unloaded by command while loading")

    def ttl_changed(self, event: ev.TtlChanged) -> bool:
        preset = self.world.presets.get(event.preset)
        if preset is None or preset.serving is None:
            return False
        preset.serving.ttl = event.ttl
        return True

    def pin_changed(self, event: ev.PinChanged) -> bool:
        if preset := self.world.presets.get(event.preset):
            preset.pin = event.pin
        return True

    def reservation_asked(self, event: ev.ReservationAsked) -> bool:
        name = PresetId(event.name)
        if name in self.world.presets:
            return False
        if self.upkeep.closing_at is not None:
            self.control.out.append(Refuse(name, "lswap is shutting down"))
            return False
        plan = PresetPlan(
            preset=name, choices=(Choice(event.footprint),), reservation=True, pin=True
        )
        self.world.add_preset(plan)
        self.world.presets[name].wanted_since = self.control.now
        self.world.presets[name].wanted_by_eviction = event.evict
        self.world.demand[name] = None
        return True

    def reservation_released(self, event: ev.ReservationReleased) -> bool:
        name = PresetId(event.name)
        if name not in self.world.presets or not self.world.presets[name].plan.reservation:
            return False
        self.world.ledger.reserved.pop(name, None)
        self.world.demand.pop(name, None)
        del self.world.presets[name]
        return True

    def pools_measured(self, event: ev.PoolsMeasured) -> bool:
        self.world.ledger.measure(event.pools)
        return True

    def choices_estimated(self, event: ev.ChoicesEstimated) -> bool:
        """Take a better footprint; what it breaks, idle instances mend by giving way."""
        preset = self.world.presets.get(event.preset)
        if preset is None:
            return False
        self.world.add_preset(replace(preset.plan, choices=event.choices, estimating=False))
        if preset.load_seconds is None:
            preset.load_seconds, preset.load_seeded = event.load_seconds, event.seeded
        for instance in self.world.instances.values():
            if instance.key.preset == event.preset:
                self._recharge(instance, event.choices)
        self._note_impossible(preset)
        return True

    def _note_impossible(self, preset: Preset) -> None:
        """Say of a preset that can never fit what would help, before anybody asks for it."""
        options, shortfall = judge(self.world.ledger, preset.plan)
        if not options and preset.serving is None:
            why = f"can never fit: {shortfall} - {remedies(self.world.ledger, preset.plan)}"
            if why != preset.reason.removeprefix("refused: "):
                self.control.note_preset("refused", preset, why)

    def _recharge(self, instance: Instance, choices: tuple[Choice, ...]) -> None:
        same = [
            choice
            for choice in choices
            if choice.variant == instance.choice.variant
            and choice.devices == instance.choice.devices
        ]
        if same and instance.state is not State.SLEEPING:
            instance.choice = same[0]
            charge = self.world.ledger.charge_of(instance.plan, same[0])
            self.control.recharge(instance, charge)

    def traffic_recalled(self, event: ev.TrafficRecalled) -> bool:
        self.world.learning.recall(event.traffic, max(event.age, 0.0), self.control.now)
        return False

    def presets_changed(self, event: ev.PresetsChanged) -> bool:
        """Apply a new configuration: what is unchanged is untouched, what changed drains."""
        plans = {plan.preset: plan for plan in event.plans}
        for name, preset in list(self.world.presets.items()):
            plan = plans.pop(name, None)
            if preset.plan.reservation:
                continue
            if plan is not None and plan.same_as(preset.plan):
                if preset.plan.absent and not plan.absent:
                    self.world.add_preset(plan)  # somebody put its files there
                    preset.downloading_since = None
                elif not plan.estimating:
                    self.choices_estimated(ev.ChoicesEstimated(name, plan.choices))
                continue
            if preset.serving is not None:
                self._retire(preset.serving)
            if plan is None:
                self.control.reject_all(preset, self.control.refusals.removed(preset))
                self.world.demand.pop(name, None)
                del self.world.presets[name]
            else:
                preset.failures, preset.failure, preset.retry_at = 0, None, self.control.now
                self.world.add_preset(plan)
        for plan in plans.values():
            self.world.add_preset(plan)
        return True

    def _retire(self, instance: Instance) -> None:
        if instance.state is State.LOADING:
            self.control.stop(instance, StopReason.ABANDONED, "its preset changed")
        else:
            self.control.drain(instance, StopReason.RETIRED, "its preset changed")

    def shutdown_asked(self, event: ev.ShutdownAsked) -> bool:
        self.upkeep.closing_at = self.control.now + (0.0 if event.force else event.timeout)
        for preset in list(self.world.presets.values()):
            if preset.plan.reservation and preset.wanted_since is not None:
                self.control.out.append(Refuse(preset.plan.preset, "lswap is shutting down"))
            preset.wanted_since = None
            self.control.reject_all(preset, self.control.refusals.closing(preset))
        for instance in list(self.world.instances.values()):
            if event.force:
                self.control.end_leases(instance, StopReason.SHUTDOWN_NOW)
                self.control.kill(instance, StopReason.SHUTDOWN_NOW)
            elif instance.state is State.LOADING:
                self.control.stop(instance, StopReason.ABANDONED, "lswap is shutting down")
            elif instance.state in (State.READY, State.SLEEPING):
                self.control.drain(instance, StopReason.SHUTDOWN, "lswap is shutting down")
        return True


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
