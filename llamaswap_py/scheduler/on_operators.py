"""What operators, measurements, a new configuration and the shutdown change."""

from __future__ import annotations

from dataclasses import replace

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Refuse, StopReason
from llamaswap_py.scheduler.control import Control
from llamaswap_py.scheduler.judging import judge, remedies
from llamaswap_py.scheduler.records import Choice, PresetId, PresetPlan
from llamaswap_py.scheduler.states import State
from llamaswap_py.scheduler.upkeep import Upkeep
from llamaswap_py.scheduler.world import Instance, Preset, World


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
