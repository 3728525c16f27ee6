"""A scheduler under virtual time: children load, serve and end as a script says."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

from llamaswap_py.scheduler import Policy, Pool, PresetPlan, Scheduler
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import (
    MAY_INTERRUPT,
    Action,
    Grant,
    Kill,
    Reject,
    Revoke,
    Spawn,
    Stop,
    TryServer,
    Wake,
)
from llamaswap_py.scheduler.invariants import check, check_spawn, unfair_refusal
from llamaswap_py.scheduler.queues import Waiter
from llamaswap_py.scheduler.types import (
    RPC_LOST,
    Choice,
    ClientId,
    Failure,
    InstanceKey,
    PoolId,
    PresetId,
    RequestId,
)

A, B, C = PresetId("a"), PresetId("b"), PresetId("c")
HOST = PoolId("host")
T = TypeVar("T", bound=Action)


def plan(name: str, size: int | None = None, **knobs: object) -> PresetPlan:
    """A preset that needs `size` bytes of host memory (None: unknown)."""
    choice = Choice(None if size is None else {HOST: size})
    return PresetPlan(preset=PresetId(name), choices=(choice,), **knobs)  # type: ignore[arg-type]


@dataclass
class Audit:
    """Checks invariants 1, 3, 6 and 10 from outside: it sees only events and actions."""

    ageing: float = 60.0
    loading: set[InstanceKey] = field(default_factory=set)
    holders: dict[RequestId, InstanceKey] = field(default_factory=dict)
    waiting: dict[RequestId, ev.RequestArrived] = field(default_factory=dict)
    asked: dict[RequestId, ev.RequestArrived] = field(default_factory=dict)
    since: dict[RequestId, float] = field(default_factory=dict)
    ended: set[RequestId] = field(default_factory=set)
    refusing: set[InstanceKey] = field(default_factory=set)
    """Instances that were ready and take no more requests."""

    def saw(self, event: ev.Event, now: float, actions: list[Action]) -> None:
        match event:
            case ev.InstanceRefused(instance=key) if key not in self.loading:
                self.refusing.add(key)
            case ev.RequestArrived(request=request):
                self.waiting[request] = self.asked[request] = event
                self.since[request] = now if event.since is None else event.since
            case ev.RequestLeft(request=request):
                self.waiting.pop(request, None)
                self.holders.pop(request, None)
                self.ended.add(request)
            case ev.RequestFinished(request=request):
                self.holders.pop(request, None)
                self.ended.add(request)
            case ev.InstanceReady(instance=key) | ev.InstanceExited(instance=key):
                self.loading.discard(key)
        for action in actions:
            self._acted(action)
            if isinstance(action, Reject) and action.code == "queue_full":
                self._shared(action.request, event, now)

    def _acted(self, action: Action) -> None:
        match action:
            case Spawn(instance=key):
                self.loading.add(key)
            case Stop(instance=key, reason=reason) | Kill(instance=key, reason=reason):
                busy = key in self.loading or key in self.holders.values()
                assert not busy or reason in MAY_INTERRUPT, f"1: {key} was interrupted for {reason}"
                self.loading.discard(key)
            case Grant(request=request, instance=key):
                assert key not in self.loading, f"{request} granted on a loading {key}"
                assert key not in self.refusing, f"{request} granted on {key}, which refuses"
                self._in_order(self._end_waiting(request))
                self.holders[request] = key
            case Reject(request=request, code=code, message=message):
                assert code, f"3: rejected without a code: {message}"
                assert message, "3: rejected without a reason"
                self._end_waiting(request)
                self.ended.add(request)
            case Revoke(reason=reason):
                assert reason in MAY_INTERRUPT, f"1: revoked for {reason}"

    def _shared(self, refused: RequestId, newcomer: ev.Event, now: float) -> None:
        asked = self.asked[refused]
        about = [asked, *self.waiting.values()]
        if any(one.when_full.startswith("substitute") for one in about):
            return  # some wait for another model than they asked for
        assert isinstance(newcomer, ev.RequestArrived), "10: nobody came, and one has to go"
        left = [self._waiter(one) for one in self.waiting.values() if one.preset == asked.preset]
        came = self._waiter(newcomer)
        lost = came if refused == newcomer.request else self._waiter(asked)
        wrong = unfair_refusal(lost, came, left, now, self.ageing)
        assert wrong is None, f"10: {wrong}"
        assert self.since[refused] == now or asked.since is None, f"10: {refused} had come back"

    def _waiter(self, one: ev.RequestArrived) -> Waiter:
        return Waiter(
            *(one.request, one.client, one.slot, self.since[one.request], one.priority),
            weight=one.weight,
            came_back=one.since is not None,
        )

    def _end_waiting(self, request: RequestId) -> ev.RequestArrived:
        assert request in self.waiting, f"3: {request} was answered twice or never asked"
        return self.waiting.pop(request)

    def _in_order(self, granted: ev.RequestArrived) -> None:
        if not granted.slot or granted.parent is not None:
            return  # what the request above it holds, the others wait for
        for rival in self.waiting.values():
            same = (rival.client, rival.preset) == (granted.client, granted.preset)
            older = self.since[rival.request] < self.since[granted.request]
            assert not (same and older and rival.slot), (
                f"6: {granted.request} overtook {rival.request} of the same client"
            )


class Play:
    """Feeds events, carries out actions: loads take `load_seconds`, stops `stop_seconds`."""

    def __init__(
        self,
        *plans: PresetPlan,
        host: int = 100,
        margin: int = 0,
        load_seconds: float = 2.0,
        stop_seconds: float = 0.1,
        **policy: float,
    ) -> None:
        self.scheduler = Scheduler(
            plans,
            {HOST: Pool(host, margin)},
            Policy(**policy),  # type: ignore[arg-type]
        )
        self.margin = margin
        self.load_seconds = load_seconds
        self.stop_seconds = stop_seconds
        self.slots = 1
        self.wakes = False
        """Whether sleeping children wake by themselves when told to, in half a load."""
        self.at_once = False
        """Whether requests that need not wait are granted, and end, outside of `handle`."""
        self.gone: set[str] = set()
        """RPC servers that do not answer; a try takes 0.05 s."""
        self.now = 0.0
        self.log: list[tuple[float, Action]] = []
        self.history: list[tuple[ev.Event, float, list[Action]]] = []
        self.audit = Audit(ageing=self.scheduler.policy.max_wait)
        self.asked: dict[RequestId, ev.RequestArrived] = {}
        self._service: dict[str, float] = {}
        """Clients that always ask again, and how long they are served."""
        self._ids = count(1)
        self._due: list[tuple[float, int, ev.Event]] = []

    # Doing

    def feed(self, event: ev.Event) -> list[Action]:
        actions = self._take_at_once(event) if self.at_once else None
        if actions is None:
            actions = self.scheduler.handle(event, self.now)
        self.history.append((event, self.now, list(actions)))
        check(self.scheduler)
        for action in actions:
            if isinstance(action, Spawn):
                check_spawn(self.scheduler, action.instance)
        self.audit.saw(event, self.now, actions)
        for action in list(actions):
            self.log.append((self.now, action))
            self._carry_out(action)
        if isinstance(event, ev.RequestFinished):
            asked = self.asked.get(event.request)
            if asked is not None and asked.client in self._service:
                self.ask(asked.preset, asked.client)
        return actions

    def _take_at_once(self, event: ev.Event) -> list[Action] | None:
        if isinstance(event, ev.RequestFinished):
            return self._finish_at_once(event)
        if not isinstance(event, ev.RequestArrived) or event.since is not None:
            return None
        instance = self.scheduler.grant_at_once(event, self.now)
        return None if instance is None else [Grant(event.request, instance.key)]

    def _finish_at_once(self, event: ev.RequestFinished) -> list[Action] | None:
        deadline = self.scheduler.deadline()
        if not self.scheduler.finish_at_once(event, self.now):
            return None
        assert self.scheduler.deadline() == deadline, "nobody would wake it in time"
        return []

    def ask(self, preset: PresetId, client: str = "one", **knobs: object) -> RequestId:
        request = RequestId(f"request-{next(self._ids)}")
        self.asked[request] = ev.RequestArrived(
            request=request,
            preset=preset,
            client=ClientId(client),
            **knobs,  # type: ignore[arg-type]
        )
        self.feed(self.asked[request])
        return request

    def keep_busy(self, preset: PresetId, *, service: float, client: str = "hot") -> None:
        """Add a client that asks again the moment it is answered."""
        self._service[ClientId(client)] = service
        self.ask(preset, client)

    def finish(self, request: RequestId, outcome: ev.Outcome = ev.Outcome.OK) -> None:
        self.feed(ev.RequestFinished(request, outcome))

    def stop_asking(self) -> None:
        """Let the clients that always ask again ask no more."""
        self._service.clear()

    def later(self, seconds: float, event: ev.Event) -> None:
        heapq.heappush(self._due, (self.now + seconds, next(self._ids), event))

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with everything that is due in it."""
        end = self.now + seconds
        for _ in range(100_000):
            deadline = self.scheduler.deadline()
            due = self._due[0][0] if self._due else None
            times = [time for time in (deadline, due) if time is not None and time <= end]
            if not times:
                self.now = end
                return
            self.now = max(self.now, min(times))
            if due is not None and due <= self.now:
                self.feed(heapq.heappop(self._due)[2])
            else:
                self.feed(ev.TimePassed())
        raise AssertionError("the scheduler asks to be woken without end")

    def _carry_out(self, action: Action) -> None:
        match action:
            case Spawn(instance=key):
                self.later(self.load_seconds, ev.InstanceReady(key, self.slots))
            case Stop(instance=key) | Kill(instance=key):
                self.later(self.stop_seconds, ev.InstanceExited(key, None))
            case TryServer(endpoint=endpoint):
                gone = Failure(RPC_LOST, f"the RPC server {endpoint} does not answer")
                failure = gone if endpoint in self.gone else None
                self.later(0.05, ev.ServerTried(endpoint, failure))
            case Wake(instance=key) if self.wakes:
                self.later(self.load_seconds / 2, ev.InstanceWoke(key))
            case Grant(request=request) if self.asked[request].client in self._service:
                service = self._service[self.asked[request].client]
                self.later(service, ev.RequestFinished(request))
            case Revoke(request=request):
                self.later(0.01, ev.RequestFinished(request, ev.Outcome.CANCELLED))

    # Asking

    def actions(self, kind: type[T]) -> list[T]:
        return [action for _, action in self.log if isinstance(action, kind)]

    def granted(self, request: RequestId) -> InstanceKey | None:
        found = [grant.instance for grant in self.actions(Grant) if grant.request == request]
        return found[-1] if found else None

    def rejected(self, request: RequestId) -> Reject | None:
        return next((one for one in self.actions(Reject) if one.request == request), None)

    def loads(self) -> list[str]:
        return [spawn.instance.preset for spawn in self.actions(Spawn)]
