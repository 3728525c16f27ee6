"""What an instance's progress, readiness, sleep or end changes."""

from __future__ import annotations

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import StopReason
from llamaswap_py.scheduler.control import Control
from llamaswap_py.scheduler.records import Failure
from llamaswap_py.scheduler.states import State, Trigger
from llamaswap_py.scheduler.world import World


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
