"""Handlers: each applies one kind of event, and returns whether a pass has to follow.

One class for each kind of event: of files, of instances, of operators (with measurements, reloads
and the shutdown), and of requests.
"""

from __future__ import annotations

from dataclasses import replace

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Refuse, StopReason
from llamaswap_py.scheduler.effects import Effects
from llamaswap_py.scheduler.feasibility import judge, remedies
from llamaswap_py.scheduler.lifecycle import State, Trigger
from llamaswap_py.scheduler.queues import Waiter
from llamaswap_py.scheduler.state import READY, Instance, Lease, Preset, SchedulerState
from llamaswap_py.scheduler.timers import Timers
from llamaswap_py.scheduler.types import Choice, Failure, PresetId, PresetPlan
from llamaswap_py.units import format_size


class OnFiles:
    """Handlers of events about files; an event of a removed preset changes nothing."""

    def __init__(self, state: SchedulerState, effects: Effects) -> None:
        self.state = state
        self.effects = effects

    def download_asked(self, event: ev.DownloadAsked) -> bool:
        preset = self.state.presets.get(event.preset)
        if preset is not None and preset.plan.absent and preset.downloading_since is None:
            self.effects.download(preset)
        return False

    def download_progressed(self, event: ev.DownloadProgressed) -> bool:
        preset = self.state.presets.get(event.preset)
        if preset is not None and preset.downloading_since is not None:
            preset.downloaded = min(max(event.fraction, 0.0), 1.0)
        return False

    def download_finished(self, event: ev.DownloadFinished) -> bool:
        preset = self.state.presets.get(event.preset)
        if preset is None:
            return False
        pin = preset.pin
        self.state.add_preset(event.plan)
        preset.pin = pin
        preset.downloading_since = None
        preset.failures, preset.failure = 0, None
        self.effects.record_preset("downloaded", preset, "its files are there")
        return True

    def download_failed(self, event: ev.DownloadFailed) -> bool:
        preset = self.state.presets.get(event.preset)
        if preset is None or preset.downloading_since is None:
            return False
        preset.downloading_since = None
        preset.failures += 1
        preset.failure = event.failure
        self.effects.record_preset("failed", preset, event.failure.summary)
        self.effects.back_off(preset, preset.failures - 1)
        return True

    def files_read(self, event: ev.FilesRead) -> bool:
        preset = self.state.presets.get(event.preset)
        if preset is None:
            return False
        state = preset.reason
        self.effects.record_preset(
            "kept in memory" if event.kept else "read ahead",
            preset,
            f"{format_size(event.there)} of {format_size(event.size)} are in the page cache, "
            f"{format_size(event.read)} were read in {event.seconds:.1f} s",
        )
        preset.reason = state  # a read-ahead is not the reason of the model's state
        return False


class OnInstances:
    """Handlers of the instance events; a late one, of an old epoch, changes nothing."""

    def __init__(self, state: SchedulerState, effects: Effects) -> None:
        self.state = state
        self.effects = effects

    def instance_progressed(self, event: ev.InstanceProgressed) -> bool:
        instance = self.state.instances.get(event.instance)
        if instance is not None and event.fraction is not None:
            instance.fraction = event.fraction
        return False

    def instance_ready(self, event: ev.InstanceReady) -> bool:
        instance = self.state.instances.get(event.instance)
        if instance is None or instance.state is not State.LOADING:
            return False  # it was told to stop before this reached us
        instance.move(Trigger.BECAME_READY)
        instance.ready_at = instance.last_used = self.effects.now
        instance.slots = max(event.slots, 1)
        preset = self.state.presets.get(instance.key.preset)
        if preset is not None:
            known = None if preset.load_seeded else preset.load_seconds
            preset.load_seconds = self.effects.blend(known, instance.load_seconds)
            preset.load_seeded = False
            preset.loads += 1
            preset.failure = None
            preset.retried_memory = preset.refitted = False
            preset.after = frozenset()
            self.effects.clear_wanted(preset)
            if not preset.queue:
                self.state.demand.habits(instance.key.preset).idle_from = self.effects.now
        self.effects.record("ready", instance, f"loaded in {instance.load_seconds:.2f} s")
        return True

    def instance_slept(self, event: ev.InstanceSlept) -> bool:
        instance = self.state.instances.get(event.instance)
        if instance is None or instance.state is not State.READY or instance.leases:
            return False  # a request is on its way to it, and wakes it at once
        instance.move(Trigger.SLEPT)
        ledger, left = self.state.ledger, instance.choice.sleeping
        if left is not None:
            full = ledger.spread(instance.choice.footprint or {})
            kept = {pool: size for pool, size in instance.charge.items() if pool not in full}
            self.effects.recharge(instance, {**kept, **ledger.spread(left)})
        self.effects.record("sleep", instance, "idle: it gave its memory back")
        return True

    def instance_woke(self, event: ev.InstanceWoke) -> bool:
        instance = self.state.instances.get(event.instance)
        if instance is None or instance.state is not State.SLEEPING:
            return False
        full = self.state.ledger.charge_of(instance.plan, instance.choice)
        self.effects.recharge(instance, full)  # also if it woke without lswap
        instance.waking = False
        instance.move(Trigger.WOKE)
        instance.last_used = self.effects.now
        if preset := self.state.presets.get(instance.key.preset):
            self.effects.clear_wanted(preset)
        return True

    def instance_stalled(self, event: ev.InstanceStalled) -> bool:
        instance = self.state.instances.get(event.instance)
        if instance is None or instance.state is not State.LOADING:
            return False
        self.effects.fail(instance, event.failure, loading=True)
        self.effects.stop(instance, StopReason.LOAD_STALL, event.failure.summary, kill=True)
        return True

    def instance_hung(self, event: ev.InstanceHung) -> bool:
        instance = self.state.instances.get(event.instance)
        if instance is None or instance.state not in (State.READY, State.SLEEPING, State.DRAINING):
            return False
        refused = instance.drain_reason is StopReason.REFUSED  # it was about to end, unasked
        self.effects.revoke_leases(
            instance, StopReason.REFUSED if refused else StopReason.FOUND_HUNG
        )
        self.effects.fail(instance, event.failure, loading=False)
        self.effects.stop(instance, StopReason.FOUND_HUNG, event.failure.summary, kill=True)
        return True

    def instance_lost(self, event: ev.InstanceLost) -> bool:
        """Grant no more leases of it; the event of its exit tells why it ended."""
        instance = self.state.instances.get(event.instance)
        if instance is None or instance.state not in (State.READY, State.SLEEPING):
            return False
        self.effects.drain(instance, StopReason.LOST, "its process has ended")
        if preset := self.state.presets.get(instance.key.preset):
            preset.after |= {instance.key}  # its exit decides whether and when to try again
        return True

    def instance_refused(self, event: ev.InstanceRefused) -> bool:
        """Grant no more leases of it; if it outlives its open leases, stop it."""
        instance = self.state.instances.get(event.instance)
        if instance is None or instance.state not in (State.READY, State.SLEEPING, State.DRAINING):
            return False
        if instance.state is not State.DRAINING:
            why = "it ends, and was not told to" if event.ends else "it refuses connections"
            self.effects.drain(instance, StopReason.REFUSED, why)
            instance.drain_from = self.effects.now
            if event.ends and (preset := self.state.presets.get(instance.key.preset)):
                preset.after |= {instance.key}  # as with one that is lost
        if event.ends:
            self.effects.revoke_leases(instance, StopReason.REFUSED)
        return True

    def instance_noted(self, event: ev.InstanceNoted) -> bool:
        if instance := self.state.instances.get(event.instance):
            self.effects.record(event.kind, instance, event.text)
        return False

    def server_tried(self, event: ev.ServerTried) -> bool:
        """Note whether an RPC server answered, for all presets that need it."""
        self.state.rpc_servers.tried(event.endpoint, event.failure, self.effects.now)
        for preset in list(self.state.presets.values()):
            if event.endpoint in preset.plan.endpoints:
                self.effects.judge_servers(preset)
        return True

    def instance_outlived(self, event: ev.InstanceOutlived) -> bool:
        """Keep its memory charged, and let the preset wait until all of it is gone."""
        instance = self.state.instances.get(event.instance)
        if instance is None:
            return False
        instance.outlived = event.text
        if instance.state is State.LOADING:
            ended = Failure("exited", f"it ended while loading; {event.text}", None)
            self.effects.fail(instance, ended, loading=True)
        if instance.state is not State.STOPPING:
            self.effects.revoke_leases(instance, StopReason.REFUSED)
            self.effects.stop(instance, StopReason.REFUSED, event.text)
        if preset := self.state.presets.get(instance.key.preset):
            preset.after |= {instance.key}
        self.effects.record("outlived", instance, event.text)
        return True

    def instance_exited(self, event: ev.InstanceExited) -> bool:
        instance = self.state.instances.pop(event.instance, None)
        if instance is None:
            return False
        before = instance.state
        instance.move(Trigger.EXITED)
        self.state.ledger.release(instance.key, self.effects.now)
        self.effects.detach(instance)
        unasked = instance.drain_reason in (StopReason.LOST, StopReason.REFUSED)
        told = before is State.STOPPING and not unasked
        failure = event.failure
        if failure is None and instance.drain_reason is StopReason.REFUSED:
            why = "it refused connections and did not end by itself: lswap ended it"
            failure = Failure("killed", why, None)
        if before is State.LOADING or (failure and not told):
            failure = failure or Failure("exited", "it ended while loading", 0)
            self.effects.fail(instance, failure, loading=before is State.LOADING)
        else:
            self.effects.record("gone", instance, instance.reason or "it ended by itself")
        return True


class OnOperators:
    """Handlers of commands, measurements, reloads and the shutdown."""

    def __init__(self, state: SchedulerState, effects: Effects, timers: Timers) -> None:
        self.state = state
        self.effects = effects
        self.timers = timers

    def load_asked(self, event: ev.LoadAsked) -> bool:
        preset = self.state.presets.get(event.preset)
        if preset is None or preset.plan.problem or self.timers.closing_at is not None:
            return False
        serving = preset.serving
        if serving is not None and serving.gate_for is None and not serving.is_asleep:
            return False
        preset.retry_at = self.effects.now
        preset.wanted_since = self.effects.now
        preset.wanted_by_eviction = event.evict
        self.state.wanted[event.preset] = None
        return True

    def unload_asked(self, event: ev.UnloadAsked) -> bool:
        preset = self.state.presets.get(event.preset)
        if preset is not None:
            preset.wanted_since = None
            self.state.settle_demand(preset)
            if event.force:
                self.effects.reject_all(preset, self.effects.refusals.unloaded(preset))
        for instance in [i for i in self.state.instances.values() if i.key.preset == event.preset]:
            if event.force:
                self.effects.revoke_leases(instance, StopReason.FORCE)
            if instance.state is State.LOADING:
                self._unload_loading(instance, preset, force=event.force)
            elif instance.state in (State.READY, State.SLEEPING):
                self.effects.drain(instance, StopReason.UNLOADED, "unloaded by command")
        return True

    def _unload_loading(self, instance: Instance, preset: Preset | None, *, force: bool) -> None:
        if force:
            self.effects.stop(instance, StopReason.FORCE, "unloaded by command")
        elif preset is None or not preset.queue:
            self.effects.stop(instance, StopReason.ABANDONED, "unloaded by command while loading")

    def ttl_changed(self, event: ev.TtlChanged) -> bool:
        preset = self.state.presets.get(event.preset)
        if preset is None or preset.serving is None:
            return False
        preset.serving.ttl = event.ttl
        return True

    def pin_changed(self, event: ev.PinChanged) -> bool:
        if preset := self.state.presets.get(event.preset):
            preset.pin = event.pin
        return True

    def reservation_asked(self, event: ev.ReservationAsked) -> bool:
        name = PresetId(event.name)
        if name in self.state.presets:
            return False
        if self.timers.closing_at is not None:
            self.effects.out.append(Refuse(name, "lswap is shutting down"))
            return False
        plan = PresetPlan(
            preset=name, choices=(Choice(event.footprint),), reservation=True, pin=True
        )
        self.state.add_preset(plan)
        self.state.presets[name].wanted_since = self.effects.now
        self.state.presets[name].wanted_by_eviction = event.evict
        self.state.wanted[name] = None
        return True

    def reservation_released(self, event: ev.ReservationReleased) -> bool:
        name = PresetId(event.name)
        if name not in self.state.presets or not self.state.presets[name].plan.reservation:
            return False
        self.state.ledger.reserved.pop(name, None)
        self.state.wanted.pop(name, None)
        del self.state.presets[name]
        return True

    def pools_measured(self, event: ev.PoolsMeasured) -> bool:
        self.state.ledger.measure(event.pools)
        return True

    def choices_estimated(self, event: ev.ChoicesEstimated) -> bool:
        """Take a better footprint; if memory is then too short, idle instances are evicted."""
        preset = self.state.presets.get(event.preset)
        if preset is None:
            return False
        self.state.add_preset(replace(preset.plan, choices=event.choices, estimating=False))
        if preset.load_seconds is None:
            preset.load_seconds, preset.load_seeded = event.load_seconds, event.seeded
        for instance in self.state.instances.values():
            if instance.key.preset == event.preset:
                self._recharge(instance, event.choices)
        self._record_impossible(preset)
        return True

    def _record_impossible(self, preset: Preset) -> None:
        """Warn of a preset that can never fit, with remedies, before it is asked for."""
        options, shortfall = judge(self.state.ledger, preset.plan)
        if not options and preset.serving is None:
            why = f"can never fit: {shortfall} - {remedies(self.state.ledger, preset.plan)}"
            if why != preset.reason.removeprefix("refused: "):
                self.effects.record_preset("refused", preset, why)

    def _recharge(self, instance: Instance, choices: tuple[Choice, ...]) -> None:
        same = [
            choice
            for choice in choices
            if choice.variant == instance.choice.variant
            and choice.devices == instance.choice.devices
            and choice.words == instance.choice.words
        ]
        if same and instance.state is not State.SLEEPING:
            instance.choice = same[0]
            charge = self.state.ledger.charge_of(instance.plan, same[0])
            self.effects.recharge(instance, charge)

    def traffic_recalled(self, event: ev.TrafficRecalled) -> bool:
        self.state.demand.recall(event.traffic, max(event.age, 0.0), self.effects.now)
        return False

    def presets_changed(self, event: ev.PresetsChanged) -> bool:
        """Apply a new configuration: unchanged presets stay untouched, changed ones drain."""
        plans = {plan.preset: plan for plan in event.plans}
        for name, preset in list(self.state.presets.items()):
            plan = plans.pop(name, None)
            if preset.plan.reservation:
                continue
            if plan is not None and plan.same_as(preset.plan):
                if preset.plan.absent and not plan.absent:
                    self.state.add_preset(plan)  # its files were added in another way
                    preset.downloading_since = None
                elif not plan.estimating:
                    self.choices_estimated(ev.ChoicesEstimated(name, plan.choices))
                continue
            if preset.serving is not None:
                self._retire(preset.serving)
            if plan is None:
                self.effects.reject_all(preset, self.effects.refusals.removed(preset))
                self.state.wanted.pop(name, None)
                del self.state.presets[name]
            else:
                preset.failures, preset.failure, preset.retry_at = 0, None, self.effects.now
                self.state.add_preset(plan)
        for plan in plans.values():
            self.state.add_preset(plan)
        return True

    def _retire(self, instance: Instance) -> None:
        if instance.state is State.LOADING:
            self.effects.stop(instance, StopReason.ABANDONED, "its preset changed")
        else:
            self.effects.drain(instance, StopReason.RETIRED, "its preset changed")

    def shutdown_asked(self, event: ev.ShutdownAsked) -> bool:
        self.timers.closing_at = self.effects.now + (0.0 if event.force else event.timeout)
        for preset in list(self.state.presets.values()):
            if preset.plan.reservation and preset.wanted_since is not None:
                self.effects.out.append(Refuse(preset.plan.preset, "lswap is shutting down"))
            preset.wanted_since = None
            self.effects.reject_all(preset, self.effects.refusals.closing(preset))
        for instance in list(self.state.instances.values()):
            if event.force:
                self.effects.revoke_leases(instance, StopReason.SHUTDOWN_NOW)
                self.effects.kill(instance, StopReason.SHUTDOWN_NOW)
            elif instance.state is State.LOADING:
                self.effects.stop(instance, StopReason.ABANDONED, "lswap is shutting down")
            elif instance.state in (State.READY, State.SLEEPING):
                self.effects.drain(instance, StopReason.SHUTDOWN, "lswap is shutting down")
        return True


class OnRequests:
    """Handlers of the request events."""

    def __init__(self, state: SchedulerState, effects: Effects, timers: Timers) -> None:
        self.state = state
        self.effects = effects
        self.timers = timers

    def grant_at_once(self, event: ev.RequestArrived) -> Instance | None:
        """Grant a request that need not wait, if no other waits longer because of it."""
        state, now = self.state, self.effects.now
        preset = state.presets.get(event.preset)
        serving = None if preset is None else preset.serving
        if (
            preset is None
            or serving is None
            or preset.plan.problem is not None
            or self.timers.closing_at is not None
            or preset.queue.size >= min(1, state.policy.queue_limit)
            or not serving.admits(slot=event.slot)
            or (state.wanted and not serving.leases)
        ):
            return None
        state.demand.arrived(event.preset, now, again=False)
        waiter = Waiter(
            *(event.request, event.client, event.slot, now, event.priority),
            parent=event.parent,
            allowed=event.allowed,
            weight=event.weight,
        )
        self.effects.open_lease(waiter, serving)
        return serving

    def request_arrived(self, event: ev.RequestArrived) -> bool:
        preset = self.state.presets.get(event.preset)
        since = self.effects.now if event.since is None else event.since
        waiter = self._waiter(event, preset, since)
        if preset is None:
            self.effects.out.append(self.effects.refusals.unknown(event))
            return False
        if refusal := self.effects.refusals.at_the_door(
            preset, event, waiter, self.effects.now, self.timers.closing_at
        ):
            self.effects.out.append(refusal)
            return False
        serving = preset.serving
        its_turn = not event.slot or not preset.queue
        admitted = serving is not None and its_turn and serving.admits(slot=event.slot)
        has_place, leaver = (True, None) if admitted else self.effects.find_place(preset, waiter)
        if not has_place:
            self.effects.refuse_full_queue(preset, waiter)
            return False
        self.state.demand.arrived(event.preset, self.effects.now, again=waiter.came_back)
        if serving is not None and admitted:
            was_idle = not serving.leases
            self.effects.grant(waiter, serving)
            return was_idle and bool(self.state.wanted)  # a waiter counted on its being idle
        if self.state.is_nested(waiter, serving) and self._from_within(preset, waiter):
            return False
        self.effects.enqueue(preset, waiter, leaver)
        return True

    def _from_within(self, preset: Preset, waiter: Waiter) -> bool:
        """Grant or refuse a request made by one of the same instance; False: a slot will come free.

        It passes a closed gate, and requests that wait: its own parent holds what they wait for.
        """
        serving = preset.serving
        assert serving is not None
        if serving.admits(slot=waiter.slot, nested=True):
            self.effects.grant(waiter, serving)
            return True
        if self.state.would_wait_for_itself(preset, waiter):
            self.effects.refuse_deadlock(preset, waiter)
            self.state.demand.ended(self.effects.now)
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
        if event.request in self.state.leases:  # it was granted just before it left
            return self.request_finished(ev.RequestFinished(event.request, ev.Outcome.CANCELLED))
        found = self.state.waiters.get(event.request)
        if found is None:
            return False
        self.effects.remove_waiter(*found)
        self.effects.abandon_unwanted(found[0])
        return True

    def request_finished(self, event: ev.RequestFinished) -> bool:
        lease = self.state.leases.get(event.request)
        if lease is None:
            return False
        self.close(event, lease)
        instance = lease.instance
        if self.state.wanted or instance.state is not READY:
            return True
        if instance.ttl is not None and not instance.leases:
            self.timers.wake_by(self.effects.now + instance.ttl)
        return False

    def close(self, event: ev.RequestFinished, lease: Lease) -> None:
        """Take a lease back, and learn from it."""
        state, now, request = self.state, self.effects.now, event.request
        del state.leases[request]
        if state.detached:
            state.detached.pop(request, None)
        instance, slot = lease.instance, lease.waiter.slot
        leases = instance.leases
        del leases[request]
        instance.generating -= slot
        instance.last_used = now
        state.demand.circulation.closed(now)
        if not leases and not state.has_demand(instance):
            state.demand.habits(instance.key.preset).idle_from = now
        if slot and event.outcome is ev.OK:
            self._learn_service(instance, now - lease.granted_at)

    def lease_detached(self, event: ev.LeaseDetached) -> bool:
        lease = self.state.leases.get(event.request)
        if lease is None:
            return False
        lease.detached_at = self.effects.now
        self.state.detached[event.request] = lease
        why = f"the client of {event.request} has left; its answer goes on, should it come back"
        self.effects.record("detached", lease.instance, why)
        return True

    def lease_attached(self, event: ev.LeaseAttached) -> bool:
        lease = self.state.detached.pop(event.request, None)
        if lease is None:
            return False
        lease.detached_at = None
        self.effects.record("attached", lease.instance, f"{event.request} is read again")
        return True

    def _learn_service(self, instance: Instance, seconds: float) -> None:
        instance.served += 1
        preset = self.state.presets.get(instance.key.preset)
        if preset is not None:
            preset.failures = 0
            preset.service_seconds = self.effects.blend(preset.service_seconds, seconds)
