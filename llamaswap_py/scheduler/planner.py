"""One pass over everyone who waits: who loads now, who gives way, whose gate closes.

A pure function of the world: it returns a plan and changes nothing. The oldest waiter is looked at
first; what it will get is taken out of what younger ones see, so nobody takes memory that was
freed for somebody else, and a claim moves or lapses simply because the next pass finds better.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llamaswap_py.scheduler.ledger import Amounts, add, fits
from llamaswap_py.scheduler.records import Footprint, InstanceKey, PresetId
from llamaswap_py.scheduler.states import State
from llamaswap_py.scheduler.victims import choose_idle, enough
from llamaswap_py.scheduler.world import Instance, Preset, World


@dataclass(slots=True)
class Claim:
    """A waiter's hold on instances that will make room for it."""

    preset: PresetId
    victims: list[Instance]
    why: str


@dataclass(slots=True)
class Plan:
    """What a pass decided. `wake` is when a gate would close or a claim become possible."""

    spawns: list[tuple[Preset, str]] = field(default_factory=list)
    evictions: list[tuple[Instance, PresetId, str]] = field(default_factory=list)
    claims: dict[InstanceKey, Claim] = field(default_factory=dict)
    closed: dict[InstanceKey, PresetId] = field(default_factory=dict)
    impossible: list[tuple[Preset, str]] = field(default_factory=list)
    given_up: list[tuple[Preset, str]] = field(default_factory=list)
    awaited: bool = False
    """Somebody waits for memory that is being drained or freed."""
    wake: float | None = None

    def wake_at(self, when: float) -> None:
        self.wake = when if self.wake is None else min(self.wake, when)


def make_plan(world: World, now: float) -> Plan:
    """Decide for every preset that is wanted and has no serving instance."""
    return _Pass(world, now).run()


class _Pass:
    """The working state of one pass: `free` now, and `coming` once all stops are done."""

    def __init__(self, world: World, now: float) -> None:
        self.world = world
        self.now = now
        self.plan = Plan()
        self.free: Amounts = world.ledger.free()
        self.coming: Amounts = dict(self.free)
        for instance in world.instances.values():
            if instance.state in (State.DRAINING, State.STOPPING):
                add(self.coming, instance.charge, 1)
        self.going: set[InstanceKey] = set()

    def run(self) -> Plan:
        wants = [
            (since, preset.plan.preset, preset)
            for preset in (self.world.presets[one] for one in self.world.demand)
            if preset.serving is None and (since := preset.since) is not None
        ]
        for since, _, preset in sorted(wants, key=_turn):
            self._place(preset, since)
        return self.plan

    def _place(self, preset: Preset, since: float) -> None:
        ledger = self.world.ledger
        charge = ledger.charge_of(preset.plan)
        if shortfall := ledger.shortfall(charge, self._pinned(preset)):
            self.plan.impossible.append((preset, shortfall))
            return
        why = ledger.explain(charge, self.free)
        if fits(charge, self.free) and fits(charge, self.coming):
            self.plan.spawns.append((preset, why))
            add(self.free, charge, -1)
            add(self.coming, charge, -1)
        elif fits(charge, self.coming):
            self._hold(charge)
        elif not preset.wanted_by_eviction and not preset.queue:
            self.plan.given_up.append((preset, why))
        elif not self._evict_idle(preset, charge, why):
            self._claim(preset, since, charge, why)

    def _pinned(self, newcomer: Preset) -> list[InstanceKey]:
        """Return instances that no eviction would ever free."""
        return [
            one.key
            for one in self.world.instances.values()
            if self.world.is_pinned(one) and one.key.preset != newcomer.plan.preset
        ]

    def _hold(self, charge: Footprint) -> None:
        """Keep memory that is on its way for this waiter: younger ones do not see it."""
        add(self.coming, charge, -1)
        self.plan.awaited = True

    def _evict_idle(self, preset: Preset, charge: Footprint, why: str) -> bool:
        """Evict the cheapest idle set; wait a moment if only lingering ones would make it up."""
        idle = [one for one in self.world.idle() if one.key not in self.going]
        ends = {one.key: self.world.linger_end(one, self.now) for one in idle}
        over = [one for one in idle if ends[one.key] <= self.now]
        victims = choose_idle(charge, self.coming, over, self._reload_cost)
        if victims is not None:
            self._evict(victims, preset, charge, why)
            return True
        victims = choose_idle(charge, self.coming, idle, self._reload_cost)
        if victims is None:
            return False
        self.plan.wake_at(min(ends[one.key] for one in victims if ends[one.key] > self.now))
        for one in victims:
            self._count_as_coming(one)
        self._hold(charge)
        return True

    def _reload_cost(self, one: Instance) -> float:
        return self.world.reload_cost(one, self.now)

    def _evict(self, victims: list[Instance], preset: Preset, charge: Footprint, why: str) -> None:
        for one in victims:
            self.plan.evictions.append((one, preset.plan.preset, why))
            self._count_as_coming(one)
        self._hold(charge)

    def _count_as_coming(self, one: Instance) -> None:
        self.going.add(one.key)
        add(self.coming, one.charge, 1)

    def _claim(self, preset: Preset, since: float, charge: Footprint, why: str) -> None:
        """Claim busy instances once the waiter's patience is over (contract: "Claim and gate")."""
        patient_until = since + self.world.patience(preset)
        if self.now < patient_until:
            self.plan.wake_at(patient_until)
            return
        name = preset.plan.preset
        victims = enough(charge, self.coming, self._claimable(name, since))
        if victims is None:
            return  # somebody is still loading; its readiness is the next event
        ends = self._gate_ends(victims, since)
        closed = [one for one in victims if self.now >= ends[one.key]]
        if len(closed) == len(victims) and not any(one.leases for one in victims):
            self._evict(victims, preset, charge, why)
            return
        for one in victims:
            self.plan.claims[one.key] = Claim(name, victims, why)
            self._count_as_coming(one)
            if one in closed:
                self.plan.closed[one.key] = name
            else:
                self.plan.wake_at(ends[one.key])
        self._hold(charge)

    def _claimable(self, name: PresetId, since: float) -> list[Instance]:
        """Return ready, unpinned instances: claimed before, then idle, then longest-running."""
        ready = [
            one
            for one in self.world.instances.values()
            if one.state is State.READY
            and one.key not in self.going
            and not self.world.is_pinned(one)
        ]
        return sorted(
            ready,
            key=lambda one: (
                one.claimed_by != name,
                self.world.has_demand(one),
                self.world.residency_end(one, since),
                one.key,
            ),
        )

    def _gate_ends(self, victims: list[Instance], since: float) -> dict[InstanceKey, float]:
        """Return when each gate closes; an idle one stays open until the busy ones have closed."""
        busy = {
            one.key: self.world.residency_end(one, since)
            for one in victims
            if self.world.has_demand(one)
        }
        last = max(busy.values(), default=self.now)
        return {one.key: busy.get(one.key, last) for one in victims}


def _turn(want: tuple[float, PresetId, Preset]) -> tuple[bool, float, PresetId]:
    """Order wants: whose memory is being freed, then the oldest.

    Without the first, waiters of an evicted preset, who are older, would take their memory back.
    """
    since, name, preset = want
    started = preset.evicted_at
    return started is None, since if started is None else started, name
