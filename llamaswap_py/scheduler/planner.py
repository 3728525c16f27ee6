"""The planner: one pass over all waiters decides loads, evictions, and which gates close.

A closed gate means that an instance accepts no more requests. The planner is a pure function of the
state: it returns a plan and changes nothing. It looks at the oldest waiter first, and hides from
younger ones the memory that the older one will get. So no waiter takes memory that was freed for
another. A claim moves or lapses if the next pass finds something better. To choose how to load a
preset, it compares variants and placements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from llamaswap_py.scheduler.feasibility import LoadOption, judge, remedies
from llamaswap_py.scheduler.ledger import Amounts, add, fits, is_counting
from llamaswap_py.scheduler.lifecycle import State
from llamaswap_py.scheduler.queues import Waiter
from llamaswap_py.scheduler.state import Instance, Preset, SchedulerState
from llamaswap_py.scheduler.types import Choice, Footprint, InstanceKey, PresetId
from llamaswap_py.scheduler.victims import choose_idle, enough


def best_fit(options: Sequence[LoadOption], free: Amounts, coming: Amounts) -> LoadOption | None:
    """Return the option to load without an eviction, None if there is none.

    It takes the best variant. Of its placements it prefers one device to a split, then the one that
    leaves the least memory free.
    """
    fitting = [one for one in options if fits(one.need, free) and fits(one.need, coming)]
    return min(fitting, key=lambda one: _fit_rank(one, free), default=None)


def _fit_rank(option: LoadOption, free: Amounts) -> tuple[int, int, int]:
    touched = [pool for pool in option.charge if not is_counting(pool)]
    left = sum(free[pool] - option.need[pool] for pool in touched)
    return option.variant, len(option.choice.devices), left


def waking_option(state: SchedulerState, sleeping: Instance) -> LoadOption:
    """Return the memory that waking takes: what the instance freed when it fell asleep."""
    full = state.ledger.charge_of(sleeping.plan, sleeping.choice)
    extra = {pool: size - sleeping.charge.get(pool, 0) for pool, size in full.items()}
    return LoadOption(sleeping.choice, {pool: size for pool, size in extra.items() if size > 0}, 0)


@dataclass(slots=True)
class Claim:
    """A waiter's claim on busy instances, which will make room for it."""

    preset: PresetId
    why: str


@dataclass(slots=True)
class Plan:
    """The decisions of a pass. `wake` is when a gate would close or a claim become possible."""

    begins: list[tuple[Preset, Choice, str]] = field(default_factory=list)
    evictions: list[tuple[Instance, PresetId | None, str]] = field(default_factory=list)
    full: list[tuple[Preset, Waiter, str]] = field(default_factory=list)
    """Waiters that do not want to wait for memory of busy instances."""
    deadlocked: list[tuple[Preset, Waiter]] = field(default_factory=list)
    """Waiters for a model that could only load by ending the waiter's own parent request."""
    claims: dict[InstanceKey, Claim] = field(default_factory=dict)
    closed: dict[InstanceKey, PresetId] = field(default_factory=dict)
    upcoming: list[tuple[PresetId, str]] = field(default_factory=list)
    """Presets that wait for memory, with the variant that will probably load."""
    impossible: list[tuple[Preset, str, str]] = field(default_factory=list)
    given_up: list[tuple[Preset, str]] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)
    """RPC servers to try before anything is done for a preset that needs them."""
    kept_out: set[PresetId] = field(default_factory=set)
    """Presets that other programs alone keep out."""
    refits: list[tuple[Preset, Footprint, str]] = field(default_factory=list)
    """Presets that they keep out for longer than a load takes, and the memory that is left."""
    awaited: bool = False
    """Whether a waiter waits for memory that is being drained or freed."""
    wake: float | None = None

    def wake_at(self, when: float) -> None:
        self.wake = when if self.wake is None else min(self.wake, when)


def make_plan(state: SchedulerState, now: float) -> Plan:
    """Plan for every preset that is wanted and does not have a serving instance."""
    return _Pass(state, now).run()


class _Pass:
    """The working state of one pass: `free` now, and `coming` once all stops are done."""

    def __init__(self, state: SchedulerState, now: float) -> None:
        self.state = state
        self.now = now
        self.plan = Plan()
        self.free: Amounts = state.ledger.free()
        self.coming: Amounts = dict(self.free)
        for instance in state.instances.values():
            if instance.state in (State.DRAINING, State.STOPPING):
                add(self.coming, instance.charge, 1)
        self.going: set[InstanceKey] = set()
        self.unsure: Amounts = {}
        """The part of `coming` that is only claimed so far: it may take minutes."""

    def run(self) -> Plan:
        self._give_way()
        wants = [
            (self._urgency(preset), self._place_in_line(preset, since), since, preset)
            for preset in (self.state.presets[one] for one in self.state.wanted)
            if (preset.serving is None or preset.serving.is_asleep)
            and not preset.plan.estimating
            and not preset.plan.absent
            and (since := preset.since) is not None
        ]
        for _, _, since, preset in sorted(wants, key=_turn):
            self._place(preset, since)
        return self.plan

    def _place_in_line(self, preset: Preset, since: float) -> float:
        """Return the time that orders presets: of the oldest waiter, plus load time per waiter.

        A short load for many goes before a long load for one. It puts that off by at most the long
        one's own load time, and by at most `max_wait`.
        """
        load = min(preset.load_seconds or 0.0, self.state.policy.max_wait)
        return since + load / max(preset.queue.size, 1)

    def _urgency(self, preset: Preset) -> int:
        return preset.plan.priority + preset.queue.urgency(self.now)

    def _give_way(self) -> None:
        """Evict idle instances where other programs took promised memory, or the margin."""
        lowered = self.state.lowered()
        short = {p: 0 for p, size in self.coming.items() if size + lowered.get(p, 0) < 0}
        if not short:
            return
        idle = list(self.state.idle(None))
        least = {pool: -lowered.get(pool, 0) for pool in short}
        victims = choose_idle(least, self.coming, idle, self._reload_cost)
        if victims is None:
            victims = [one for one in idle if set(one.charge) & set(short)]
        for one in victims:
            why = "other programs took memory: " + self.state.ledger.explain(
                short, self.free, lowered
            )
            self.plan.evictions.append((one, None, why))
            self._count_as_coming(one)

    def _place(self, preset: Preset, since: float) -> None:
        ledger, kept = self.state.ledger, self.state.kept_from(preset)
        options, shortfall = judge(ledger, preset.plan, kept)
        if preset.serving is not None:
            self.going.add(preset.serving.key)  # it sleeps, and waits for its own waking
            options, shortfall = [waking_option(self.state, preset.serving)], ""
        if preset.serving is None and not preset.refitted:
            options = [one for one in options if not one.choice.passing]
        if not options:
            groups = self.state.groups_of(kept)
            remedy = remedies(ledger, preset.plan, kept, groups)
            self.plan.impossible.append((preset, shortfall, remedy))
            return
        self.plan.unsure += (unsure := self.state.unsure_servers(preset, self.now))
        if unsure or self.state.left_by(preset):
            self._await(preset, options[0])
            self._hold(options[0].charge)
            return
        option = best_fit(options, self.free, self.coming)
        if option is not None:
            self.plan.begins.append((preset, option.choice, self._why(option)))
            add(self.free, option.charge, -1)
            add(self.coming, option.charge, -1)
            return
        on_its_way = next((one for one in options if fits(one.need, self.coming)), None)
        if on_its_way is not None:
            self._await(preset, on_its_way)
            self._hold(on_its_way.charge)
        elif not preset.wanted_by_eviction and not preset.queue:
            self.plan.given_up.append((preset, self._why(options[0])))
        elif not self._refit(preset, kept, options):
            self._await(preset, options[0])
            if not self._evict_idle(preset, since, options):
                self._disturb(preset, since, options)

    def _refit(self, preset: Preset, kept: list[InstanceKey], options: list[LoadOption]) -> bool:
        """Have a preset fitted to what other programs leave, if they keep it out as long as a load.

        Only what lswap has chosen itself may be chosen otherwise.
        """
        ledger, policy = self.state.ledger, self.state.policy
        left = ledger.left_by_strangers(kept)
        whole = {pool: size + ledger.pools[pool].strangers for pool, size in left.items()}
        if any(fits(one.charge, left) or not fits(one.charge, whole) for one in options):
            return False
        if preset.refitted or not all(one.choice.chosen for one in options):
            return False
        self.plan.kept_out.add(preset.plan.preset)
        since = self.now if preset.kept_out_since is None else preset.kept_out_since
        # A stopped child's memory may look like other programs' for as long as `settle`.
        due = since + max(self.state.patience(preset), policy.settle)
        if self.now < due:
            self.plan.wake_at(due)
            return False
        room = {pool: max(size, 0) for pool, size in left.items() if not is_counting(pool)}
        why = (
            f"other programs keep it out ({self._why(options[0])}); "
            "lswap now chooses what fits into the memory that they leave"
        )
        self.plan.refits.append((preset, room, why))
        return True

    def _disturb(self, preset: Preset, since: float, options: list[LoadOption]) -> None:
        """Claim busy instances, but not for waiters that refuse that or would end their parent."""
        kept = self.state.kept_from(preset)
        spared: set[InstanceKey] = set()
        for waiter in preset.queue:
            above = self.state.ancestors(waiter)
            if above and not judge(self.state.ledger, preset.plan, [*kept, *above])[0]:
                self.plan.deadlocked.append((preset, waiter))
            elif waiter.when_full != "wait":
                self.plan.full.append((preset, waiter, self._why(options[0])))
            else:
                spared |= above
        gone = sum(one is preset for one, *_ in (*self.plan.deadlocked, *self.plan.full))
        if gone < len(preset.queue) or preset.wanted_since is not None:
            self._claim(preset, since, options, spared)

    def _why(self, option: LoadOption) -> str:
        return self.state.ledger.explain(option.charge, self.free, option.choice.lowered)

    def _await(self, preset: Preset, option: LoadOption) -> None:
        """Note which preset loads next; a reservation has no files to read ahead."""
        if not preset.plan.reservation:
            self.plan.upcoming.append((preset.plan.preset, option.choice.variant))

    def _hold(self, charge: Footprint) -> None:
        """Keep memory that is being freed for this waiter: hide it from younger ones."""
        add(self.coming, charge, -1)
        self.plan.awaited = True

    def _evict_idle(self, preset: Preset, since: float, options: list[LoadOption]) -> bool:
        """Evict the cheapest idle set; wait a little if it would need lingering instances."""
        idle = [one for one in self.state.idle(preset.plan) if one.key not in self.going]
        ends = {one.key: self._idle_end(one, preset, since) for one in idle}
        over = [one for one in idle if ends[one.key] <= self.now]
        found = self._cheapest(options, over)
        if found is not None and self._suffices(*found):
            if not self._awaits_cheaper(preset, since, options, found[1]):
                self._evict(found[1], preset, found[0])
            return True
        found = found or self._cheapest(options, idle)
        if found is None:
            return False
        option, victims = found
        aged = self.now >= since + self.state.policy.max_wait
        for one in victims:
            if ends[one.key] > self.now:
                self.plan.wake_at(ends[one.key])
            drained = one.gate_for == preset.plan.preset
            if drained or (aged and self.now >= self._stays_until(one, preset, since)):
                self._close(one, preset.plan.preset, option)  # it takes no more requests
            self._count_as_coming(one)
        self._hold(option.charge)
        return True

    def _awaits_cheaper(
        self, preset: Preset, since: float, options: list[LoadOption], victims: list[Instance]
    ) -> bool:
        """Wait for busy instances, if that costs less than to load the idle victims again.

        It waits for at most the seconds of loading that this saves, and at most `max_wait` after
        the waiter came. Without this, more memory could make waits longer: it holds idle models
        that load slowly, and these would go first.
        """
        state, now = self.state, self.now
        loss = math.fsum(state.reload_loss(one, now) for one in victims)
        if now >= since + min(loss, state.policy.max_wait):
            return False
        parents = {key for waiter in preset.queue for key in state.ancestors(waiter)}
        order = [
            one
            for one in state.instances.values()
            if one.state is State.READY
            and one.key not in self.going
            and one.key not in parents
            and one.gate_for is None
            and not state.presets[one.key.preset].queue.size
            and not state.is_kept(one, preset.plan)
        ]
        losses = {one.key: state.reload_loss(one, now) for one in order}
        order.sort(key=lambda one: (losses[one.key], one.key))
        found: list[tuple[float, float, list[Instance], LoadOption]] = []
        for option in options:
            taken = enough(option.need, self.coming, order)
            if not taken or not any(one.leases for one in taken):
                continue
            lost = math.fsum(losses[one.key] for one in taken)
            wait = max(state.free_in(one, now) for one in taken) * max(preset.queue.size, 1)
            until = since + min(loss - lost, state.policy.max_wait)
            if lost + wait < loss and now < until:
                found.append((lost + wait, until, taken, option))
        if not found:
            return False
        _, until, taken, option = min(found, key=lambda one: one[0])
        for one in taken:
            self._count_as_coming(one)
            add(self.unsure, one.charge, 1)
        self._hold(option.charge)
        self.plan.wake_at(until)
        return True

    def _idle_end(self, one: Instance, preset: Preset, since: float) -> float:
        """Return until when an idle instance stays, against a waiter that came at `since`."""
        end = self._stays_until(one, preset, since)
        return min(self.state.linger_end(one, self.now), end)

    def _stays_until(self, one: Instance, preset: Preset, since: float) -> float:
        """Return until when an instance keeps its gate open: until now, if it is outranked."""
        if self.state.outranks(preset, one, self.now):
            return self.now
        return self.state.residency_end(one, since)

    def _suffices(self, option: LoadOption, victims: list[Instance]) -> bool:
        """Return whether evicting `victims` makes room now, not counting memory only claimed."""
        room = dict(self.coming)
        add(room, self.unsure, -1)
        for one in victims:
            add(room, one.charge, 1)
        return fits(option.need, room)

    def _cheapest(
        self, options: list[LoadOption], idle: list[Instance]
    ) -> tuple[LoadOption, list[Instance]] | None:
        """Return the placement of the best variant that costs the least reloading of victims."""
        found = [
            (option, victims)
            for option in options
            if (victims := choose_idle(option.need, self.coming, idle, self._reload_cost))
        ]

        def rank(pair: tuple[LoadOption, list[Instance]]) -> tuple[int, float, int]:
            return pair[0].variant, sum(map(self._reload_cost, pair[1])), len(pair[1])

        return min(found, key=rank, default=None)

    def _reload_cost(self, one: Instance) -> float:
        return self.state.reload_cost(one, self.now)

    def _evict(self, victims: list[Instance], preset: Preset, option: LoadOption) -> None:
        why = self.state.ledger.lacks(option.charge, self.free, option.choice.lowered)
        for one in victims:
            self.plan.evictions.append((one, preset.plan.preset, why))
            self._count_as_coming(one)
        self._hold(option.charge)

    def _count_as_coming(self, one: Instance) -> None:
        self.going.add(one.key)
        add(self.coming, one.charge, 1)

    def _claim(
        self, preset: Preset, since: float, options: list[LoadOption], spared: set[InstanceKey]
    ) -> None:
        """Claim busy instances once the waiter's patience is over.

        docs/design/scheduler.md, "Claim and gate", has the rule.
        """
        name = preset.plan.preset
        order = [one for one in self._claimable(preset, since) if one.key not in spared]
        patient_until = since + self.state.patience(preset)
        if self.now < patient_until:
            self.plan.wake_at(patient_until)
            order = [one for one in order if self.state.outranks(preset, one, self.now)]
        found = self._least_disturbing(preset, since, options, order)
        if found is None and self.now >= patient_until:
            # It keeps the memory of loading instances from other waiters.
            order += self._loading(preset)
            found = self._least_disturbing(preset, since, options, order)
        if found is None:
            return
        option, victims, ends = found
        closed = [one for one in victims if self.now >= ends[one.key]]
        if len(closed) == len(victims) and not any(one.leases for one in victims):
            self._evict(victims, preset, option)
            return
        for one in victims:
            self.plan.claims[one.key] = Claim(name, self._why(option))
            self._count_as_coming(one)
            add(self.unsure, one.charge, 1)
            if one in closed:
                self._close(one, name, option)
            elif ends[one.key] < math.inf:
                self.plan.wake_at(ends[one.key])
        self._hold(option.charge)

    def _close(self, one: Instance, name: PresetId, option: LoadOption) -> None:
        self.plan.claims[one.key] = Claim(name, self._why(option))
        self.plan.closed[one.key] = name

    def _loading(self, preset: Preset) -> list[Instance]:
        """Return instances that are not ready yet, except those kept from `preset`."""
        return [
            one
            for one in self.state.instances.values()
            if one.state is State.LOADING
            and one.key not in self.going
            and not self.state.is_kept(one, preset.plan)
        ]

    def _least_disturbing(
        self, preset: Preset, since: float, options: list[LoadOption], order: list[Instance]
    ) -> tuple[LoadOption, list[Instance], dict[InstanceKey, float]] | None:
        """Return the option to claim for, its victims and when their gates close.

        An earlier claim stays; else it takes the best variant, then the earliest gates.
        """
        name = preset.plan.preset
        found = [
            (option, victims, self._gate_ends(preset, victims, since))
            for option in options
            if (victims := enough(option.need, self.coming, order)) is not None
        ]

        def rank(
            one: tuple[LoadOption, list[Instance], dict[InstanceKey, float]],
        ) -> tuple[bool, int, float, int]:
            option, victims, ends = one
            moved = any(victim.claimed_by != name for victim in victims)
            return moved, option.variant, max(ends.values(), default=0.0), len(victims)

        return min(found, key=rank, default=None)

    def _claimable(self, preset: Preset, since: float) -> list[Instance]:
        """Return ready instances that are not kept from `preset`.

        First those that were claimed before, then the idle ones, then the longest-running.
        """
        name = preset.plan.preset
        ready = [
            one
            for one in self.state.instances.values()
            if one.state is State.READY
            and one.key not in self.going
            and not self.state.is_kept(one, preset.plan)
        ]
        return sorted(
            ready,
            key=lambda one: (
                one.claimed_by != name,
                self.state.has_demand(one),
                self._stays_until(one, preset, since),
                one.key,
            ),
        )

    def _gate_ends(
        self, preset: Preset, victims: list[Instance], since: float
    ) -> dict[InstanceKey, float]:
        """Return when each gate closes for the waiter. A gate that has closed for it stays closed.

        An idle instance's gate stays open while a busy one's does, but at most as long as if it
        were busy itself.
        """
        ends = {
            one.key: self.now
            if one.gate_for == preset.plan.preset
            else self._stays_until(one, preset, since)
            for one in victims
        }
        busy = [ends[one.key] for one in victims if self.state.has_demand(one)]
        last = max(busy, default=self.now)
        return {
            one.key: min(last, ends[one.key]) if self._is_idle(one) else ends[one.key]
            for one in victims
        }

    def _is_idle(self, one: Instance) -> bool:
        return one.state is State.READY and not self.state.has_demand(one)


def _turn(
    want: tuple[int, float, float, Preset],
) -> tuple[bool, int, float, PresetId]:
    """Order wants: first those that memory is being freed for, then by priority, then by place.

    Without the first rule, older waiters for an evicted preset would take its memory back.
    """
    urgency, place, _, preset = want
    name, started = preset.plan.preset, preset.evicted_at
    if started is not None:
        return False, 0, started, name
    return True, -urgency, place, name
