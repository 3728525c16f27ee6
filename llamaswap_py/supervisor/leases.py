"""Leases: a request waits with a ticket for a ready instance, and holds a lease of it.

The open leases of each instance are counted: its liveness is judged by the requests it has open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import structs

from llamaswap_py.children.liveness import ChildRequests
from llamaswap_py.config.forms import SUBSTITUTE
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import ApiError
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Reject
from llamaswap_py.scheduler.types import ClientId, InstanceKey, PresetId, RequestId
from llamaswap_py.tasks import guard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamaswap_py.scheduler import Scheduler
    from llamaswap_py.scheduler.state import Instance
    from llamaswap_py.supervisor.recorder import Decider


class Answering(Protocol):
    """An answer on its way: `held_up` means that its client has to read first."""

    @property
    def bytes_sent(self) -> int: ...
    @property
    def held_up(self) -> bool: ...


class OpenLeases:
    """The open leases of one instance; they are added up only when a caller asks."""

    __slots__ = ("_changes", "_open", "_received", "on_first_answer", "readers")

    def __init__(self) -> None:
        self.on_first_answer: Callable[[], None] | None = None
        """Called once, after the first generation that ended well."""
        self.readers: set[Lease] = set()
        """Leases of requests that only read; the scheduler does not know them."""
        self._open: dict[Lease, bool] = {}
        self._changes = 0
        self._received = 0

    @property
    def idle_since(self) -> int | None:
        """A number that stays while the instance has nothing to do; None while it has."""
        return None if self._open else self._changes

    def revoke_readers(self, reason: str) -> None:
        """Revoke the leases of requests that only read: the instance is being unloaded."""
        for lease in list(self.readers):
            lease.revoke(reason)

    def add(self, lease: Lease, *, owing: bool) -> None:
        """A lease begins, or becomes another one; `owing`: it generates for a client."""
        self._open[lease] = owing
        self._changes += 1

    def remove(self, lease: Lease, *, well: bool) -> None:
        """A lease ends."""
        owing = self._open.pop(lease)
        self._changes += 1
        self._received += well
        if lease.answer is not None:
            self._received += lease.answer.bytes_sent - lease.began_at_byte
        if self.on_first_answer is not None and owing and well:
            call, self.on_first_answer = self.on_first_answer, None
            call()

    def requests(self) -> ChildRequests:
        """Return what the instance has to do now."""
        owing = others = 0
        received = self._received
        for lease, generates in self._open.items():
            answer = lease.answer
            if answer is None:
                continue
            received += answer.bytes_sent - lease.began_at_byte
            if generates and not answer.held_up:
                owing += 1
            else:
                others += 1
        return ChildRequests(owing, others, received, self._changes)


_numbers: Final = count(1)


def new_request_id(request_id: str) -> RequestId:
    """Return an id of our own: clients may send any, twice even."""
    return RequestId(f"{request_id}/{next(_numbers)}")


def open_under(leases: Iterable[RequestId], request_id: str | None) -> RequestId | None:
    """Return the open request that a client knows by `request_id`."""
    if request_id is None:
        return None
    return next((one for one in leases if one.rpartition("/")[0] == request_id), None)


@dataclass(frozen=True, slots=True)
class SchedulingOptions:
    """What a request asks of the scheduler besides its model; as in `events.RequestArrived`.

    `parent` is the id of the request under which this one was made; `allowed` are the presets that
    may answer it, None: any.
    """

    priority: int = 0
    when_full: str = ""
    patience: float | None = None
    substitutable: bool = True
    parent: str | None = None
    allowed: frozenset[str] | None = None
    weight: int = 1


DEFAULT_SCHEDULING: Final = SchedulingOptions()


@dataclass(frozen=True, slots=True)
class Notice:
    """Call `send` while a request waits: after `first` seconds, then every `every` seconds."""

    first: float
    every: float
    send: Callable[[], Awaitable[None]]


class _Owner(Protocol):
    """What a ticket needs of the supervisor."""

    def take(self, ticket: Ticket) -> Lease | None: ...
    def arrive(self, ticket: Ticket) -> None: ...
    def leave(self, ticket: Ticket) -> None: ...
    def finish(self, ticket: Ticket, outcome: ev.Outcome) -> None: ...


class Lease:
    """The right to use one instance until the ticket's context ends.

    `preset` is the preset of the instance; it differs from the requested one if it is a substitute.
    `queue_ms` and `load_ms` divide the time it waited. A lease that does not `watch` an answer may
    be silent for ever (a WebSocket). Set `outcome` to `upstream_error` when the child failed, or
    `cut` when the lease was revoked, before the context ends.
    """

    answer: Answering | None = None
    began_at_byte = 0
    outcome = "ok"
    revoked: str | None = None
    stream_in_path = False
    """As `EngineFeatures.stream_in_path` of its child."""
    arrived = queue_ms = load_ms = 0.0
    _callbacks: tuple[Callable[[str], None], ...] = ()

    def __init__(
        self,
        endpoint: Endpoint,
        key: InstanceKey,
        spawned_at: float,
        ready_at: float,
        open_leases: OpenLeases,
    ) -> None:
        self.endpoint = endpoint
        self.key = key
        self.preset = str(key.preset)
        self.epoch = key.epoch
        self.open_leases = open_leases
        self.ready_at = ready_at
        self._spawned_at = spawned_at

    def on_revoke(self, callback: Callable[[str], None]) -> None:
        """Call `callback(reason)` when the scheduler takes the lease back, at once if it has."""
        if self.revoked is not None:
            callback(self.revoked)
        else:
            self._callbacks = (*self._callbacks, callback)

    def watch(self, answer: Answering) -> None:
        """Count the bytes of an answer that begins as signs of life of this lease."""
        self.answer, self.began_at_byte = answer, answer.bytes_sent

    def began(self, arrived: float) -> None:
        """Divide the wait of a request that arrived at `arrived` (monotonic seconds)."""
        self.arrived = arrived
        waited = time.monotonic() - arrived
        load = max(self.ready_at - max(self._spawned_at, arrived), 0.0)
        self.load_ms = min(load, waited) * 1000
        self.queue_ms = waited * 1000 - self.load_ms

    def revoke(self, reason: str) -> None:
        """Tell the user of the lease that it has ended."""
        self.revoked = reason
        callbacks, self._callbacks = self._callbacks, ()
        for callback in callbacks:
            callback(reason)


class Ticket:
    """`async with supervisor.lease(…) as lease`: waits, then holds, then gives back.

    Most requests need not wait. For these there is the same without coroutines:
    `lease = ticket.take() or await ticket.granted()`, then `with ticket`, which gives it back.
    """

    __slots__ = ("_kept", "_lease", "_owner", "_waiting", "event", "stays")

    def __init__(self, owner: _Owner, event: ev.RequestArrived) -> None:
        self._owner = owner
        self._kept = False
        self._lease: Lease | ApiError | None = None
        self._waiting: asyncio.Future[None] | None = None
        self.event = event
        self.stays = False
        """Whether it keeps its place when its client leaves while it waits; then see `outlast`."""

    def take(self) -> Lease | None:
        """Return its lease if it need not wait for one; None: await `granted`."""
        self._lease = lease = self._owner.take(self)
        return lease

    async def granted(self, notice: Callable[[], Notice | None] | None = None) -> Lease:
        """Wait for its lease, and return it. Raises ApiError if the scheduler refuses it.

        `notice` is called if it has to wait, and says what is sent meanwhile.
        """
        since = self.event.since
        arrived = time.monotonic() if since is None else since
        self._owner.arrive(self)
        if self._lease is None:
            await self._wait(notice)
        lease = self._lease
        if isinstance(lease, ApiError):
            raise lease
        assert lease is not None
        if self._waiting is None:
            lease.arrived = arrived
        else:
            lease.began(arrived)
        lease.open_leases.add(lease, owing=self.event.slot)
        return lease

    async def _wait(self, notice: Callable[[], Notice | None] | None = None) -> None:
        self._waiting = waiting = asyncio.get_running_loop().create_future()
        try:
            if notice is not None and (wanted := notice()) is not None:
                await self._notify(wanted, waiting)
            await waiting
        except BaseException as error:
            if not (self.stays and isinstance(error, asyncio.CancelledError)):
                self._owner.leave(self)  # also gives back a lease that was granted meanwhile
            raise

    @property
    def waits(self) -> bool:
        """Whether its client has left, and it keeps its place."""
        return self.stays and self._waiting is not None and not isinstance(self._lease, ApiError)

    async def outlast(self) -> Lease:
        """Wait on after a client has left that `stays`; the caller releases the lease it gets."""
        self._kept = True
        arrived = time.monotonic()
        if self._lease is None:
            self.stays = False
            await self._wait()
        if isinstance(self._lease, ApiError):
            raise self._lease
        assert self._lease is not None
        self._lease.began(arrived)
        self._lease.open_leases.add(self._lease, owing=False)
        return self._lease

    def again(self) -> Ticket:
        """Return a ticket of the same request, at its old place: its instance took nothing of it.

        This one is released before; `outlast` of the new one waits for the next instance.
        """
        assert isinstance(self._lease, Lease)
        id = new_request_id(self.event.request.rpartition("/")[0])
        event = structs.replace(self.event, request=id, since=self._lease.arrived)
        ticket = Ticket(self._owner, event)
        ticket._kept = True
        self._owner.arrive(ticket)
        return ticket

    async def _notify(self, notice: Notice, waiting: asyncio.Future[None]) -> None:
        pause = notice.first
        while not (await asyncio.wait([waiting], timeout=pause))[0]:
            await notice.send()
            pause = notice.every

    async def __aenter__(self) -> Lease:
        return self.take() or await self.granted()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)

    def __enter__(self) -> None:
        """Hold the lease that was taken or granted before."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._kept:
            return
        assert isinstance(self._lease, Lease)
        outcome = self._lease.outcome
        if error is None and outcome == "ok":
            self.release(ev.OK)
        elif error is not None or outcome == "cut":
            self.release(ev.Outcome.CANCELLED)
        else:
            self.release(ev.Outcome.UPSTREAM_ERROR)

    def detach(self) -> None:
        """Let the lease outlive its context; its keeper has to call `release`."""
        self._kept = True
        if isinstance(self._lease, Lease):  # its answer may be complete, and only wait for a reader
            self._lease.open_leases.add(self._lease, owing=False)

    def release(self, outcome: ev.Outcome) -> None:
        """Give back the lease."""
        lease = self._lease
        if isinstance(lease, Lease):
            lease.open_leases.remove(lease, well=outcome is ev.OK)
            lease._callbacks = ()
        self._owner.finish(self, outcome)

    def grant(self, lease: Lease) -> None:
        """The scheduler granted it."""
        self._lease = lease
        if self._waiting is not None:
            self._settle(lease)

    def refuse(self, error: ApiError) -> None:
        """The scheduler refused it."""
        self._settle(error)

    def give_up(self, error: ApiError) -> None:
        """End the waiting with an error from outside; a lease that is held is left alone."""
        if self._lease is None:
            self._owner.leave(self)
            self._settle(error)

    def revoke(self, reason: str) -> None:
        """The scheduler takes the lease back."""
        if isinstance(self._lease, Lease):
            self._lease.revoke(reason)

    def _settle(self, result: Lease | ApiError) -> None:
        self._lease = result
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class Serving(Protocol):
    """A child as its leases see it: its endpoint, once it serves, and its open leases."""

    @property
    def endpoint(self) -> Endpoint | None: ...
    @property
    def open_leases(self) -> OpenLeases: ...
    @property
    def stream_in_path(self) -> bool: ...


class Leases:
    """Makes tickets and settles them as the scheduler says.

    `running` are the children that are not reaped. `hurry` is called with each requested preset,
    because its memory may not be estimated yet. `resolve_substitute` reads `when_full`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        decider: Decider,
        running: Mapping[InstanceKey, Serving],
        dispatch: Callable[[ev.Event], None],
        finish: Callable[[ev.RequestFinished], None],
        hurry: Callable[[str], None],
        resolve_substitute: Callable[[str], str],
    ) -> None:
        self._scheduler = scheduler
        self._decider = decider
        self._running = running
        self._dispatch = dispatch
        self._finish = finish
        self._hurry = hurry
        self._resolve_substitute = resolve_substitute
        self.tickets: dict[RequestId, Ticket] = {}
        """Of every request that waits or holds a lease."""
        self.granted = 0
        """How many leases there ever were."""

    def lease(
        self,
        preset: str,
        *,
        client: str,
        request_id: str,
        slot: bool = True,
        autoload: bool = True,
        since: float | None = None,
        scheduling: SchedulingOptions = DEFAULT_SCHEDULING,
    ) -> Ticket:
        """Return a context manager that waits for a lease and gives it back at its end.

        Entering raises ApiError when the scheduler refuses. `since` (monotonic seconds) keeps the
        place of a request that comes back; `slot` False is for what generates nothing.
        """
        event = ev.RequestArrived(
            request=RequestId(f"{request_id}/{next(_numbers)}"),
            preset=PresetId(preset),
            client=ClientId(client),
            slot=slot,
            autoload=autoload,
            since=since,
            priority=scheduling.priority,
            patience=scheduling.patience,
            when_full=scheduling.when_full and self._resolve_substitute(scheduling.when_full),
            substitutable=scheduling.substitutable,
            parent=None
            if scheduling.parent is None
            else open_under(self._scheduler.state.leases, scheduling.parent),
            allowed=scheduling.allowed,
            weight=scheduling.weight,
        )
        return Ticket(self, event)

    @contextmanager
    def reading(self, preset: str, *, wakes: bool) -> Iterator[Lease]:
        """Return a lease of a running instance, for a request that only reads.

        The scheduler does not know it: the instance still counts as idle, and the read is cut off
        when it is unloaded. `wakes`: a sleeping child would wake to answer. Raises ApiError if no
        instance answers.
        """
        now = time.monotonic()
        found = self._scheduler.look(PresetId(preset), now, wakes=wakes)
        if isinstance(found, Reject):
            raise as_error(found)
        lease = self._lease_of(found)
        if lease is None:
            raise ApiError("upstream_failed", f"{found} ended before it could answer")
        lease.began(now)
        lease.open_leases.readers.add(lease)
        try:
            yield lease
        finally:
            lease.open_leases.readers.discard(lease)

    def turn_away(self, client: str, may_use: Callable[[str], bool], error: ApiError) -> None:
        """Let a client's requests not wait any more for presets that it may not use."""
        for ticket in list(self.tickets.values()):
            if ticket.event.client == client and not may_use(ticket.event.preset):
                ticket.give_up(error)

    # For tickets

    def take(self, ticket: Ticket) -> Lease | None:
        """Grant a request that need not wait; None: it has to wait."""
        event, now = ticket.event, time.monotonic()
        if event.since is not None:
            return None
        try:
            instance = self._decider.grant_at_once(event, now)
        except Exception as error:
            guard.report("scheduler", error)
            self._dispatch(ev.RequestFinished(event.request, ev.Outcome.CANCELLED))
            return None
        if instance is None:
            return None
        lease = self._lease(instance)
        if lease is None:  # it died in this very moment
            self._dispatch(ev.RequestFinished(event.request, ev.Outcome.UPSTREAM_ERROR))
            raise _ended(instance.key)
        self.tickets[event.request] = ticket
        self.granted += 1
        lease.arrived = now
        lease.open_leases.add(lease, owing=event.slot)
        return lease

    def arrive(self, ticket: Ticket) -> None:
        """Hand a request to the scheduler; the ticket is settled when it decides."""
        self.tickets[ticket.event.request] = ticket
        self._hurry(ticket.event.preset)
        if ticket.event.when_full.startswith(SUBSTITUTE):
            self._hurry(ticket.event.when_full.removeprefix(SUBSTITUTE))
        self._dispatch(ticket.event)

    def leave(self, ticket: Ticket) -> None:
        """The client of a waiting request is gone."""
        self.tickets.pop(ticket.event.request, None)
        self._dispatch(ev.RequestLeft(ticket.event.request))

    def finish(self, ticket: Ticket, outcome: ev.Outcome) -> None:
        """A lease ended."""
        request = ticket.event.request
        self.tickets.pop(request, None)
        self._finish(ev.RequestFinished(request, outcome))

    # What the scheduler decided

    def grant(self, request: RequestId, key: InstanceKey) -> None:
        """A request has its instance."""
        ticket, lease = self.tickets.get(request), self._lease_of(key)
        if ticket is None:
            return
        if lease is None:
            self.tickets.pop(request)
            ticket.refuse(_ended(key))
            self._dispatch(ev.RequestFinished(request, ev.Outcome.UPSTREAM_ERROR))
            return
        self.granted += 1
        ticket.grant(lease)

    def refuse(self, action: Reject) -> None:
        """A request is not served."""
        if ticket := self.tickets.pop(action.request, None):
            ticket.refuse(as_error(action))

    def fail(self, request: RequestId) -> None:
        """What was decided for a request could not be done."""
        if ticket := self.tickets.pop(request, None):
            ticket.refuse(
                ApiError("internal", "lswap failed to carry out what it decided for this request")
            )
        self._dispatch(ev.RequestFinished(request, ev.Outcome.UPSTREAM_ERROR))

    def revoke(self, request: RequestId, reason: str) -> None:
        """A lease is taken back."""
        if ticket := self.tickets.get(request):
            ticket.revoke(reason)

    def _lease_of(self, key: InstanceKey) -> Lease | None:
        instance = self._scheduler.state.instances.get(key)
        return None if instance is None else self._lease(instance)

    def _lease(self, instance: Instance) -> Lease | None:
        """Return a lease of an instance, None if it died in this very moment."""
        running = self._running.get(instance.key)
        if running is None or running.endpoint is None:
            return None
        spawned_at, ready_at = instance.spawned_at, instance.ready_at or instance.spawned_at
        lease = Lease(running.endpoint, instance.key, spawned_at, ready_at, running.open_leases)
        lease.stream_in_path = running.stream_in_path
        return lease


def _ended(key: InstanceKey) -> ApiError:
    return ApiError("model_failed", f"{key} ended before it could answer")


def as_error(reject: Reject) -> ApiError:
    """Return a refusal as the error a client sees."""
    return ApiError(
        reject.code,
        reject.message,
        remedy=reject.remedy,
        retry_after=reject.retry_after,
        details=dict(reject.details),
    )
