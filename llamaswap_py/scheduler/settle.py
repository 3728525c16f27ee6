"""One pass: brings the state to the present, plans for all that wait, and carries the plan out."""

from __future__ import annotations

from llamaswap_py.scheduler.actions import ReadAhead, Refuse, StopReason
from llamaswap_py.scheduler.effects import Effects
from llamaswap_py.scheduler.lifecycle import State
from llamaswap_py.scheduler.planner import Claim, Plan, make_plan
from llamaswap_py.scheduler.queues import Waiter
from llamaswap_py.scheduler.state import Instance, Preset, SchedulerState
from llamaswap_py.scheduler.timers import Timers
from llamaswap_py.scheduler.types import PresetId


class SchedulingPass:
    """Runs a pass, always in the same order: deadlines, the plan, the free slots."""

    def __init__(self, state: SchedulerState, effects: Effects, timers: Timers) -> None:
        self.state = state
        self.effects = effects
        self.timers = timers
        self._upcoming: tuple[tuple[PresetId, str], ...] = ()

    def run(self) -> None:
        """Settle everything, and decide when to look again."""
        self.timers.run()
        self._download_wanted()
        plan = make_plan(self.state, self.effects.now)
        while self._turn_away(plan):
            plan = make_plan(self.state, self.effects.now)
        self._carry_out(plan)
        self._grant_waiting()
        self.timers.set_deadline(plan.wake)

    def _download_wanted(self) -> None:
        for preset in [self.state.presets[name] for name in self.state.wanted]:
            if preset.plan.absent and preset.downloading_since is None:
                self.effects.download(preset)

    def _turn_away(self, plan: Plan) -> bool:
        """Refuse or redirect requests that do not want to wait; True: plan once more.

        A redirected request waits from then on, so the repetition ends.
        """
        for preset, waiter in plan.deadlocked:
            self.effects.refuse_deadlock(preset, waiter)
            self.effects.remove_waiter(preset, waiter)
        for preset, waiter, why in plan.full:
            if waiter.request in self.state.waiters:  # it has not lost its place meanwhile
                self._turn_one_away(preset, waiter, why)
        return bool(plan.deadlocked or plan.full)

    def _turn_one_away(self, preset: Preset, waiter: Waiter, why: str) -> None:
        now, how = self.effects.now, waiter.when_full
        if how == "refuse":
            self.effects.record_preset(
                "refused", preset, f"no room without unloading a busy model: {why}"
            )
            self.effects.out.append(self.effects.refusals.full(preset, waiter, why, now))
            self.effects.remove_waiter(preset, waiter)
            return
        waiter.when_full = "wait"
        other = self._substitute(preset, how.removeprefix("substitute:"), waiter.allowed)
        if other is None:
            return
        has_place, leaver = self.effects.find_place(other, waiter)
        if has_place:
            self.effects.record_preset("substituted", preset, f"{other.plan.preset} answers: {why}")
            self.state.dequeue(preset, waiter)
            self.effects.enqueue(other, waiter, leaver)

    def _substitute(
        self, preset: Preset, name: str, allowed: frozenset[str] | None
    ) -> Preset | None:
        """Return the preset to ask instead: the named one, or the loaded one that was used last."""
        if name != "loaded":
            if allowed is not None and name not in allowed:
                return None
            other = self.state.presets.get(PresetId(name))
            return other if other is not None and self._can_answer(other) else None
        loaded = [
            one.serving
            for one in self.state.presets.values()
            if one is not preset
            and (allowed is None or one.plan.preset in allowed)
            and one.plan.kind == preset.plan.kind
            and one.serving
            and one.serving.admits(slot=False)
        ]
        best = max(loaded, key=lambda one: (one.last_used, one.key), default=None)
        return None if best is None else self.state.presets[best.key.preset]

    def _can_answer(self, other: Preset) -> bool:
        """Return whether a request for it would be accepted on arrival."""
        if other.serving is not None:
            return True
        backing_off = other.failure is not None and self.effects.now < other.retry_at
        unready = other.plan.estimating or other.plan.absent
        return other.plan.problem is None and not backing_off and not unready

    def _carry_out(self, plan: Plan) -> None:
        for preset, shortfall, remedy in plan.impossible:
            why = f"can never fit: {shortfall} - {remedy}"
            self.effects.record_preset("refused", preset, why)
            if preset.plan.reservation:
                self.effects.out.append(Refuse(preset.plan.preset, why))
            refuse = self.effects.refusals.too_large(preset, shortfall, remedy)
            self.effects.reject_all(preset, refuse)
            self.effects.clear_wanted(preset)
        for preset, why in plan.given_up:
            if preset.plan.reservation:
                self.effects.out.append(Refuse(preset.plan.preset, f"no free memory: {why}"))
            else:
                self.effects.record_preset("not preloaded", preset, f"no free memory: {why}")
            self.effects.clear_wanted(preset)
        for instance, winner, why in plan.evictions:
            self.effects.evictions += 1
            reason = why
            if winner is not None:
                self.state.presets[winner].evicted_at = self.effects.now
                reason = f"makes room for {winner} ({why})"
            self.effects.stop(instance, StopReason.EVICTED, reason, hurried=winner is None)
        self.effects.try_servers(plan.unsure)
        for name in self.state.wanted:
            preset = self.state.presets[name]
            if name not in plan.kept_out:
                preset.kept_out_since = None
            elif preset.kept_out_since is None:
                preset.kept_out_since = self.effects.now
        for preset, room, why in plan.refits:
            self.effects.refit(preset, room, why)
        self._set_gates(plan)
        self._announce(tuple(plan.upcoming))
        for preset, choice, why in plan.begins:
            self.effects.begin(preset, choice, why)

    def _announce(self, upcoming: tuple[tuple[PresetId, str], ...]) -> None:
        """Emit the presets that load next, if they have changed."""
        if upcoming != self._upcoming:
            self._upcoming = upcoming
            self.effects.out.append(ReadAhead(upcoming))

    def _set_gates(self, plan: Plan) -> None:
        """Close and reopen gates as planned, and start the clock of drains that are waited for."""
        for instance in self.state.instances.values():
            claim = plan.claims.get(instance.key)
            instance.claimed_by = claim.preset if claim else None
            self._set_gate(instance, claim, plan.closed.get(instance.key))
            awaited = plan.awaited or instance.drain_reason is StopReason.REFUSED
            draining = instance.state is State.DRAINING
            if instance.gate_for is None and not (awaited and draining):
                instance.drain_from = None
            elif instance.drain_from is None:
                instance.drain_from = self.effects.now

    def _set_gate(self, instance: Instance, claim: Claim | None, gate: PresetId | None) -> None:
        if gate == instance.gate_for:
            return
        instance.gate_for = gate
        if claim is not None and gate is not None:
            said = f"no new requests until {gate} has had its turn ({claim.why})"
            self.effects.record("drain", instance, said)
        elif instance.state is State.READY:
            instance.revoked_at = None
            self.effects.record("reopened", instance, "its memory is no longer needed")

    def _grant_waiting(self) -> None:
        for name in list(self.state.wanted):
            preset = self.state.presets[name]
            serving = preset.serving
            now = self.effects.now
            self._grant_nested(preset)
            while serving and (waiter := preset.queue.peek(now)):
                if not serving.admits(slot=waiter.slot):
                    break
                self.state.dequeue(preset, waiter)
                self.effects.grant(waiter, serving)
            self.state.settle_demand(preset)

    def _grant_nested(self, preset: Preset) -> None:
        """Serve first the requests whose parent holds the instance, even if its gate is closed."""
        serving = preset.serving
        for waiter in list(preset.queue.nested.values()):
            if serving is None or not serving.admits(slot=waiter.slot, nested=True):
                continue
            if self.state.is_nested(waiter, serving):
                self.state.dequeue(preset, waiter)
                self.effects.grant(waiter, serving)
