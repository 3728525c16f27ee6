"""Checks the scheduler's invariants from outside, by its events and actions alone.

`Audit.saw` is a `Watch` of the runner. `breaches` has what it found, each with the number of the
broken invariant (docs/design/scheduler.md, "Invariants").
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import (
    MAY_INTERRUPT,
    Action,
    Grant,
    Kill,
    Note,
    Reject,
    Revoke,
    Spawn,
    Stop,
    StopReason,
)
from llamaswap_py.scheduler.invariants import unfair_refusal
from llamaswap_py.scheduler.ledger import add
from llamaswap_py.scheduler.queues import Waiter
from llamaswap_py.scheduler.types import (
    ClientId,
    Footprint,
    InstanceKey,
    PoolId,
    PresetId,
    RequestId,
)
from llamaswap_py.simulator.bound import Bound, Incumbent, WaitingRequest
from llamaswap_py.simulator.run_records import Case

_EPSILON: Final = 1e-6
_CLOSED: Final = "no new requests until "
"""How the reason of a decision begins that closes a gate."""
_KEPT: Final = 20


@dataclass(slots=True, eq=False)
class _Seen:
    """The history of an instance. `gate` is when its gate closed, and whether it was in demand."""

    key: InstanceKey
    spawned: float
    charge: Footprint
    ready: float | None = None
    stopping: bool = False
    holders: set[RequestId] = field(default_factory=set)
    grants: int = 0
    priority: int = 0
    gate: tuple[float, bool] | None = None


class Audit:
    """Watches one run. `eta_used` is the largest share of its bound that a wait took."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.policy = case.policy
        self.models = {one.name: one for one in case.models}
        self.bound = Bound(case)
        self.breaches: list[str] = []
        self.eta_used = 0.0
        self._instances: dict[InstanceKey, _Seen] = {}
        self._waiting: dict[RequestId, WaitingRequest] = {}
        self._by_preset: dict[PresetId, dict[RequestId, WaitingRequest]] = {}
        self._held: dict[RequestId, InstanceKey] = {}
        self._priority_of: dict[RequestId, int] = {}
        self._priorities = {one.name: one.plan().priority for one in case.models}
        self._ended: set[RequestId] = set()
        self._turns: dict[tuple[PresetId, ClientId, int], int] = {}
        """The order of the last turn of each client, at each priority."""
        self._order = 0
        self._failures: dict[PresetId, tuple[int, float]] = {}
        self._now = 0.0

    def saw(self, event: ev.Event, now: float, actions: list[Action]) -> None:
        """Check one event and the actions that followed."""
        self._now = now
        self._happened(event)
        for action in actions:
            self._decided(action, event)
        if isinstance(event, ev.RequestLeft):
            self._check_abandoned(event.request, actions)

    def finish(self) -> None:
        """Check what must be true at the end of a run."""
        for request in self._waiting:
            self._breach(3, f"request {request} never ended")

    # Events

    def _happened(self, event: ev.Event) -> None:
        match event:
            case ev.RequestArrived():
                self._arrived(event)
            case ev.RequestLeft(request=request):
                self._unqueue(request)
                self._ended.add(request)
            case ev.RequestFinished(request=request):
                key = self._held.pop(request, None)
                if key in self._instances:
                    self._instances[key].holders.discard(request)
            case ev.InstanceReady(instance=key):
                self._instances[key].ready = self._now
                self._failures.pop(key.preset, None)
            case ev.InstanceExited(instance=key, failure=failure):
                seen = self._instances.pop(key)
                if failure is not None and seen.ready is None:
                    times = self._failures.get(key.preset, (0, 0.0))[0] + 1
                    self._failures[key.preset] = times, self._now

    def _arrived(self, event: ev.RequestArrived) -> None:
        since = self._now if event.since is None else event.since
        self._order += 1
        about = (event.request, event.preset, event.client, event.slot, since, self._order)
        waiting = WaitingRequest(*about, event.since is not None, event.priority)
        waiting.bound = self.bound.of(waiting, self._by_preset, self._incumbents())
        self._waiting[event.request] = waiting
        self._by_preset.setdefault(event.preset, {})[event.request] = waiting

    def _incumbents(self) -> list[Incumbent]:
        return [
            Incumbent(one.key.preset, one.ready is not None, one.stopping)
            for one in self._instances.values()
        ]

    def _unqueue(self, request: RequestId) -> WaitingRequest | None:
        waiting = self._waiting.pop(request, None)
        if waiting is not None:
            row = self._by_preset[waiting.preset]
            del row[request]
            if not row:
                del self._by_preset[waiting.preset]
        return waiting

    # Actions

    def _decided(self, action: Action, event: ev.Event) -> None:
        match action:
            case Spawn(instance=key, choice=choice):
                model = self.models[key.preset]
                self._spawned(key, (choice if model.given else model).footprint or {})
            case Stop(instance=key, reason=reason) | Kill(instance=key, reason=reason):
                self._stopped(key, reason)
            case Grant(request=request, instance=key):
                self._granted(request, key)
            case Reject(request=request, code=code, message=message):
                if not code or not message:
                    self._breach(3, f"request {request} was refused without a reason")
                newcomer = event.request if isinstance(event, ev.RequestArrived) else None
                place = self._waiting.get(newcomer) if newcomer is not None else None
                refused = self._unqueue(request)
                if refused is None:
                    self._breach(3, f"request {request} was refused, but was not waiting")
                elif code == "queue_full":
                    self._check_share(refused, place)
                self._ended.add(request)
            case Revoke(reason=reason) if reason not in MAY_INTERRUPT:
                self._breach(1, f"a lease was revoked for {reason.value}")
            case Note(decision=decision) if decision.epoch is not None:
                key = InstanceKey(decision.preset, decision.epoch)
                if decision.kind == "reopened" and key in self._instances:
                    self._instances[key].gate = None
                elif decision.kind == "drain" and key in self._instances:
                    self._gated(self._instances[key], decision.reason)

    def _gated(self, seen: _Seen, reason: str) -> None:
        """Check that a gate in demand closed only after its residency (invariant 5)."""
        demand = bool(seen.holders) or seen.key.preset in self._by_preset
        seen.gate = self._now, demand
        if not demand or seen.ready is None or not reason.startswith(_CLOSED):
            return
        winner = PresetId(reason.removeprefix(_CLOSED).split(" has had its turn")[0])
        row = self._by_preset.get(winner, {})
        oldest = min((one.since for one in row.values()), default=self._now)
        load = self.models[seen.key.preset].load
        aged = self._now - oldest >= self.policy.max_wait - _EPSILON
        least = (self.policy.residency_cut if aged else self.policy.residency) * load
        if self._now - seen.ready < least - _EPSILON and not self._outranked(seen, winner):
            self._breach(5, f"{seen.key} had {self._now - seen.ready:.2f} s of {least:.2f} s")

    def _outranked(self, seen: _Seen, winner: PresetId) -> bool:
        """Return whether a waiter has a higher priority than all that use or wait for an instance.

        Waiting raises the priority of those that wait for the instance. It has to have served.
        """
        row = self._by_preset.get(winner, {}).values()
        rank = self._priorities[winner] + max((one.priority for one in row), default=0)
        below = self._priorities[seen.key.preset]
        using = [below + seen.priority, *(below + self._priority_of[one] for one in seen.holders)]
        using += [self._urgency(seen.key.preset)] if seen.key.preset in self._by_preset else []
        return seen.grants > 0 and rank > max(using)

    def _urgency(self, preset: PresetId) -> int:
        """Return the highest priority that waits for a preset, which rises with the time waited."""
        waiting = (
            one.priority + int((self._now - one.since) // self.policy.max_wait)
            for one in self._by_preset.get(preset, {}).values()
        )
        return self._priorities[preset] + max(waiting, default=0)

    def _spawned(self, key: InstanceKey, charge: Footprint) -> None:
        self._instances[key] = _Seen(key, self._now, charge)
        used: dict[PoolId, int] = {}
        for one in self._instances.values():
            add(used, one.charge, 1)
        for pool, size in used.items():
            if size > self.case.pools[pool].total - self.case.pools[pool].margin:
                self._breach(2, f"{key} overfills {pool}: {size}")
        times, failed = self._failures.get(key.preset, (0, 0.0))
        pause = self.policy.backoff_first * 2 ** (times - 1) if times else 0.0
        if times and self._now < failed + min(pause, self.policy.backoff_last) - _EPSILON:
            self._breach(8, f"{key} was started during its back-off")

    def _stopped(self, key: InstanceKey, reason: StopReason) -> None:
        seen = self._instances[key]
        if seen.stopping:
            return
        busy = seen.ready is None or bool(seen.holders)
        if busy and reason not in MAY_INTERRUPT:
            self._breach(1, f"{key} was stopped for {reason.value} while loading or in use")
        # A request that came after the gate of an idle instance had closed was too late to keep it.
        wanted = key.preset in self._by_preset and (seen.gate is None or seen.gate[1])
        if wanted and reason is StopReason.EVICTED and not seen.grants:
            self._breach(5, f"{key} was evicted before it served, and a request waits for it")
        seen.stopping = True

    def _granted(self, request: RequestId, key: InstanceKey) -> None:
        seen, waiting = self._instances[key], self._unqueue(request)
        if waiting is None:
            self._breach(3, f"request {request} was granted, but was not waiting")
            return
        if seen.ready is None or seen.stopping:
            self._breach(1, f"request {request} was granted on {key}, which is not ready")
        self._held[request] = key
        self._priority_of[request] = waiting.priority
        seen.holders.add(request)
        seen.grants += 1
        seen.priority = waiting.priority
        wait = self._now - waiting.since
        if waiting.bound > 0:
            self.eta_used = max(self.eta_used, wait / waiting.bound)
        if wait > waiting.bound + _EPSILON:
            self._breach(
                4, f"request {request} ({key}) waited {wait:.1f} s, more than {waiting.bound:.1f} s"
            )
        self._check_order(waiting)
        self._check_gate(seen)

    # Checks

    def _check_order(self, granted: WaitingRequest) -> None:
        """Check invariant 6: a client's requests keep their order, and clients take turns."""
        if not granted.slot:
            return
        mine = self._turns.get((granted.preset, granted.client, granted.priority), 0)
        for rival in self._by_preset.get(granted.preset, {}).values():
            if not rival.slot or rival.priority != granted.priority:
                continue
            if rival.client == granted.client:
                if rival.since < granted.since - _EPSILON:
                    self._breach(6, f"request {granted.request} overtook {rival.request}")
                continue
            last = self._turns.get((rival.preset, rival.client, rival.priority), 0)
            if max(rival.order, last) < mine:
                # It has waited since before this client's last turn, and got no turn since.
                self._breach(6, f"{granted.client} had two turns while {rival.client} waited")
        self._order += 1
        self._turns[granted.preset, granted.client, granted.priority] = self._order

    def _check_share(self, refused: WaitingRequest, newcomer: WaitingRequest | None) -> None:
        """Check invariant 10: a full queue is shared."""
        if newcomer is None or newcomer.preset != refused.preset:
            self._breach(10, f"request {refused.request} lost its place, but no request took it")
            return
        left = [_waiter(one) for one in self._by_preset.get(refused.preset, {}).values()]
        lost, came = _waiter(refused), _waiter(newcomer)
        if refused is newcomer:
            lost = came
        wrong = unfair_refusal(lost, came, left, self._now, self.policy.max_wait)
        if wrong is not None:
            self._breach(10, wrong)

    def _check_gate(self, seen: _Seen) -> None:
        """Check invariant 4: no gate stays open longer than that against the same waiter.

        It is checked only where it is certain which instance is in the waiter's way: the two can
        never be loaded together, nothing is loading or stopping, and no older waiter, or one of a
        higher priority, needs a load.
        """
        serving = {one.key.preset for one in self._instances.values() if not one.stopping}
        if any(one.ready is None or one.stopping for one in self._instances.values()):
            return
        absent = [
            (-self._urgency(name), min(one.since for one in row.values()), name)
            for name, row in self._by_preset.items()
            if name not in serving
        ]
        if not absent or seen.ready is None:
            return
        _, since, name = min(absent)
        if self.bound.together(name, seen.key.preset):
            return
        load = self.models[seen.key.preset].load
        limit = max(since + self.policy.max_wait, seen.ready + self.policy.residency_cut * load)
        # Presets with more waiters go first, if these came at most one of its own loads later.
        limit += min(self.models[name].load, self.policy.max_wait)
        if self._now > limit + _EPSILON:
            late = self._now - limit
            self._breach(4, f"{seen.key} kept its gate open against {name} {late:.1f} s too long")

    def _check_abandoned(self, request: RequestId, actions: list[Action]) -> None:
        """Check invariant 7: a load that no request waits for goes on only if it is half done."""
        stopped = {one.instance for one in actions if isinstance(one, Stop)}
        for seen in self._instances.values():
            if seen.ready is not None or seen.stopping or seen.key in stopped:
                continue
            done = (self._now - seen.spawned) / self.models[seen.key.preset].load
            learned = done >= self.policy.keep_load_from - _EPSILON
            if seen.key.preset not in self._by_preset and not learned:
                self._breach(
                    7, f"{seen.key} still loads, but no request waits for it (after {request})"
                )

    def _breach(self, invariant: int, what: str) -> None:
        if len(self.breaches) < _KEPT:
            self.breaches.append(f"{invariant}: at {self._now:.2f} s {what}")


def _waiter(one: WaitingRequest) -> Waiter:
    return Waiter(one.request, one.client, one.slot, one.since, came_back=one.came_back)
