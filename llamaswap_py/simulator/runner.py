"""Runs a case under virtual time: children load, serve and end as the case says.

A heap holds what will happen next. The policy gets each thing as an event, and its actions put new
things on the heap. Only what the case describes takes time, so a run is a pure function of (case,
policy).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Protocol

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Action, Grant, Kill, Reject, Revoke, Spawn, Stop
from llamaswap_py.scheduler.types import Choice, Failure, InstanceKey, RequestId
from llamaswap_py.simulator.measure import Meter
from llamaswap_py.simulator.run_records import Case, Model, Result, TraceRequest

_CUT: Final = 0.01
"""Seconds that a revoked lease takes to end."""
_RESTLESS: Final = 1000
"""A policy that asks for this many wake-ups at one moment is taken to ask for ever."""


class Subject(Protocol):
    """A policy to simulate: the scheduler, or a peer's."""

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        """Apply one event and return what to do."""

    def deadline(self) -> float | None:
        """Return when to send `TimePassed`, or None."""


Watch = Callable[[ev.Event, float, list[Action]], None]
"""Sees every event with its actions before they are carried out."""


@dataclass(slots=True, eq=False)
class _Child:
    model: Model
    ready: bool = False
    stopping: bool = False
    working: int = 0
    holders: dict[int, None] = field(default_factory=dict)
    backlog: deque[int] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class _Request:
    """`child` holds its lease; `due` is set if only nested requests keep it open."""

    ask: TraceRequest
    asked: float | None = None
    child: InstanceKey | None = None
    started: float | None = None
    due: bool = False
    asked_again: int = 0
    ended: bool = False
    followers: list[int] = field(default_factory=list)
    nested: list[int] = field(default_factory=list)
    parent: int | None = None


class StuckError(AssertionError):
    """Raised if a policy asks to be woken for ever, or if requests never end."""


def simulate(case: Case, subject: Subject, name: str, watch: Watch | None = None) -> Result:
    """Return the result of `case` under `subject`; raises StuckError."""
    return _Run(case, subject, watch).run().result(case, name)


class _Run:
    def __init__(self, case: Case, subject: Subject, watch: Watch | None) -> None:
        self.case = case
        self.subject = subject
        self.watch = watch
        self.meter = Meter(len(case.asks))
        self.now = 0.0
        self.models = {one.name: one for one in case.models}
        self.requests = [_Request(ask) for ask in case.asks]
        self.children: dict[InstanceKey, _Child] = {}
        self.loads = dict.fromkeys(self.models, 0)
        self.open = len(self.requests)
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._link()

    def run(self) -> Meter:
        """Run until every request has ended."""
        wakes = 0
        while self.open:
            deadline = self.subject.deadline()
            due = self._heap[0][0] if self._heap else None
            if due is not None and (deadline is None or due <= deadline):
                when, _, act, arguments = heapq.heappop(self._heap)
                self.now = max(self.now, when)
                act(*arguments)
                wakes = 0
            elif deadline is not None:
                wakes = wakes + 1 if deadline <= self.now else 0
                self.now = max(self.now, deadline)
                self.feed(ev.TimePassed())
            else:
                raise StuckError(f"{self.open} requests never end in {self.case.name}")
            if wakes > _RESTLESS:
                raise StuckError(f"asks to be woken without end in {self.case.name}")
        return self.meter

    def feed(self, event: ev.Event) -> None:
        """Give the policy an event, then carry out its actions."""
        actions = self.subject.handle(event, self.now)
        self.meter.events += 1
        if self.watch is not None:
            self.watch(event, self.now, actions)
        for action in actions:
            match action:
                case Spawn(instance=key, choice=choice):
                    self._spawn(key, choice)
                case Stop(instance=key) | Kill(instance=key):
                    self._stop(key)
                case Grant(request=request, instance=key):
                    self._grant(int(request), key)
                case Reject(request=request):
                    self.meter.refused += 1
                    self._end(int(request))
                case Revoke(request=request, instance=key):
                    self._later(_CUT, self._cut, int(request), key)

    # Requests

    def _link(self) -> None:
        """Find which answer or time each request waits for before it is sent."""
        last: dict[str, int] = {}
        named: dict[str, int] = {}
        for index, request in enumerate(self.requests):
            ask = request.ask
            if ask.parent is not None:
                request.parent = named[ask.parent]
                self.requests[request.parent].nested.append(index)
            elif ask.at is not None:
                self._at(ask.at, self._ask, index)
            elif ask.client in last:
                self.requests[last[ask.client]].followers.append(index)
            else:
                self._at(ask.think or 0.0, self._ask, index)
            if ask.parent is None:
                last[ask.client] = index
            named[ask.name] = index

    def _ask(self, index: int) -> None:
        request = self.requests[index]
        request.asked = self.now
        self.meter.asked(self.now)
        self._try(index)

    def _try(self, index: int) -> None:
        if (patience := self.requests[index].ask.gives_up_after) is not None:
            self._later(patience, self._give_up, index)
        self._arrive(index, since=None)

    def _arrive(self, index: int, since: float | None) -> None:
        request = self.requests[index]
        ask, parent = request.ask, None
        if request.parent is not None and ask.names_parent:
            parent = RequestId(str(request.parent))
        self.feed(
            ev.RequestArrived(
                request=RequestId(str(index)),
                preset=ask.model,
                client=ask.client,
                slot=ask.slot,
                since=since,
                parent=parent,
                priority=ask.priority,
            )
        )

    def _give_up(self, index: int) -> None:
        request = self.requests[index]
        if request.ended or request.child is not None:
            return
        self.feed(ev.RequestLeft(RequestId(str(index))))
        if request.asked_again < request.ask.retries:
            request.asked_again += 1
            self._try(index)
            return
        self.meter.left += 1
        self._end(index)

    def _grant(self, index: int, key: InstanceKey) -> None:
        child, request = self.children[key], self.requests[index]
        assert request.child is None, f"{index} was granted twice"
        assert not request.ended, f"{index} was granted, but has ended"
        assert child.ready, f"{index} was granted on {key}, which is loading"
        assert not child.stopping, f"{index} was granted on {key}, which is stopping"
        request.child = key
        child.holders[index] = None
        if not request.ask.slot or child.working < child.model.slots:
            self._serve(index, child)
        else:
            child.backlog.append(index)

    def _serve(self, index: int, child: _Child) -> None:
        request = self.requests[index]
        request.started = self.now
        child.working += request.ask.slot
        for nested in request.nested:
            self._later(self.requests[nested].ask.think or 0.0, self._ask_nested, nested)
        self._later(request.ask.service, self._served, index, request.child)

    def _ask_nested(self, index: int) -> None:
        parent = self.requests[index].parent
        assert parent is not None
        if self.requests[parent].ended:
            self.meter.left += 1  # the client that would have sent it has left
            self._end(index)
        else:
            self._ask(index)

    def _served(self, index: int, key: InstanceKey) -> None:
        request = self.requests[index]
        if request.child != key or request.ended:
            return
        if all(self.requests[one].ended for one in request.nested):
            assert request.asked is not None
            assert request.started is not None
            self.meter.answered(request.ask, request.started - request.asked)
            self._release(index, ev.Outcome.OK)
        else:
            request.due = True

    def _cut(self, index: int, key: InstanceKey) -> None:
        """End a revoked lease: unused, it waits again; used, its client sees an error."""
        request = self.requests[index]
        if request.child != key or request.ended:
            return
        if request.started is None:
            self._give_back(index, ev.Outcome.CANCELLED)
            self._arrive(index, since=request.asked)
        else:
            self.meter.cut += 1
            self._release(index, ev.Outcome.CANCELLED)

    def _release(self, index: int, outcome: ev.Outcome) -> None:
        self._give_back(index, outcome)
        self._end(index)

    def _give_back(self, index: int, outcome: ev.Outcome) -> None:
        request = self.requests[index]
        assert request.child is not None
        child = self.children.get(request.child)
        request.child = None
        if child is not None:
            del child.holders[index]
            if request.started is None:
                child.backlog.remove(index)
            else:
                child.working -= request.ask.slot
            while child.backlog and child.working < child.model.slots:
                self._serve(child.backlog.popleft(), child)
        self.feed(ev.RequestFinished(RequestId(str(index)), outcome))

    def _end(self, index: int) -> None:
        request = self.requests[index]
        request.ended = True
        self.open -= 1
        self.meter.ended(self.now)
        for follower in request.followers:
            self._later(self.requests[follower].ask.think or 0.0, self._ask, follower)
        if request.started is None:
            for nested in request.nested:
                self.meter.left += 1
                self._end(nested)
        if request.parent is not None and self.requests[request.parent].due:
            parent = self.requests[request.parent]
            if not parent.ended and parent.child is not None:
                self._served(request.parent, parent.child)

    # Children

    def _spawn(self, key: InstanceKey, choice: Choice) -> None:
        model = self.models[key.preset]
        self.children[key] = _Child(model)
        self.loads[key.preset] += 1
        self.meter.spawned(self.now)
        load = model.variant_loads.get(choice.variant, model.load)
        self._later(load, self._ready, key)
        for fault in model.faults:
            if fault.load == self.loads[key.preset]:
                self._later(fault.after, self._die, key)

    def _ready(self, key: InstanceKey) -> None:
        child = self.children.get(key)
        if child is None or child.stopping:
            return
        child.ready = True
        self.meter.settled(self.now)
        self.feed(ev.InstanceReady(key, child.model.slots))

    def _stop(self, key: InstanceKey) -> None:
        child = self.children[key]
        if not child.stopping:
            child.stopping = True
            self.meter.stopped(self.now, loading=not child.ready)
            self._later(self.case.stop, self._gone, key, None)

    def _die(self, key: InstanceKey) -> None:
        child = self.children.get(key)
        if child is not None and not child.stopping:
            child.stopping = True
            self.meter.stopped(self.now, loading=not child.ready)
            self._gone(key, Failure("crashed", "it died as the trace says", 1))

    def _gone(self, key: InstanceKey, failure: Failure | None) -> None:
        child = self.children.pop(key)
        self.meter.settled(self.now)
        self.feed(ev.InstanceExited(key, failure))
        for index in list(child.holders):
            if self.requests[index].child == key:
                self.meter.cut += 1
                self._release(index, ev.Outcome.UPSTREAM_ERROR)

    def _later(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        self._at(self.now + seconds, act, *arguments)

    def _at(self, when: float, act: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._heap, (when, next(self._order), act, arguments))
