"""A request's way to a ready instance: a ticket that waits, and the lease it becomes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Final, Protocol

from msgspec import structs

from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import ApiError
from llamaswap_py.held import Answering, Held
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.records import InstanceKey, RequestId

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
class Wishes:
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


NO_WISHES: Final = Wishes()


@dataclass(frozen=True, slots=True)
class Notice:
    """Call `send` while a request waits: after `first` seconds, then every `every` seconds."""

    first: float
    every: float
    send: Callable[[], Awaitable[None]]


class _Desk(Protocol):
    """What a ticket needs of the supervisor."""

    def arrive(self, ticket: Ticket) -> None: ...
    def leave(self, ticket: Ticket) -> None: ...
    def finish(self, ticket: Ticket, outcome: ev.Outcome) -> None: ...


class Lease:
    """The right to use one instance until the ticket's context ends.

    `preset` is whose instance it is: another than was asked for, where one substitutes. `queue_ms`
    and `load_ms` divide the time it waited. A lease that does not `watch` an answer may be silent
    for ever (a WebSocket). Set `outcome` to `upstream_error` when the child failed, or `cut` when
    the lease was revoked, before the context ends.
    """

    answer: Answering | None = None
    began_at_byte = 0
    outcome = "ok"
    revoked: str | None = None
    arrived = queue_ms = load_ms = 0.0
    _callbacks: tuple[Callable[[str], None], ...] = ()

    def __init__(
        self,
        endpoint: Endpoint,
        key: InstanceKey,
        spawned_at: float,
        ready_at: float,
        held: Held,
    ) -> None:
        self.endpoint = endpoint
        self.key = key
        self.preset = str(key.preset)
        self.epoch = key.epoch
        self.held = held
        self.ready_at = ready_at
        self._spawned_at = spawned_at

    def on_revoke(self, callback: Callable[[str], None]) -> None:
        """Call `callback(reason)` when the scheduler takes the lease back, at once if it has."""
        if self.revoked is not None:
            callback(self.revoked)
        else:
            self._callbacks = (*self._callbacks, callback)

    def watch(self, answer: Answering) -> None:
        """Take an answer that begins for this lease's sign of life."""
        self.answer, self.began_at_byte = answer, answer.bytes_sent

    def began(self, arrived: float) -> None:
        """Divide the wait of a request that arrived at `arrived` (monotonic seconds)."""
        self.arrived = arrived
        waited = time.monotonic() - arrived
        load = max(self.ready_at - max(self._spawned_at, arrived), 0.0)
        self.load_ms = min(load, waited) * 1000
        self.queue_ms = waited * 1000 - self.load_ms

    def revoke(self, reason: str) -> None:
        """Tell whoever uses it that it is over."""
        self.revoked = reason
        callbacks, self._callbacks = self._callbacks, ()
        for callback in callbacks:
            callback(reason)


class Ticket:
    """`async with supervisor.lease(…) as lease`: waits, then holds, then gives back."""

    __slots__ = ("_desk", "_kept", "_lease", "_notice", "_taken", "_waiting", "event", "stays")

    def __init__(self, desk: _Desk, event: ev.RequestArrived, notice: Notice | None) -> None:
        self._desk = desk
        self._notice = notice
        self._kept = self._taken = False
        self._lease: Lease | ApiError | None = None
        self._waiting: asyncio.Future[None] | None = None
        self.event = event
        self.stays = False
        """Whether it keeps its place when its client leaves while it waits; then see `outlast`."""

    def hold(self, lease: Lease) -> None:
        """Take a lease that was granted at once; it may then be entered, or else is released."""
        self._lease = lease
        self._taken = True
        lease.held.begin(lease, owing=self.event.slot)

    async def __aenter__(self) -> Lease:
        if self._taken and isinstance(self._lease, Lease):
            return self._lease
        since = self.event.since
        arrived = time.monotonic() if since is None else since
        self._desk.arrive(self)
        if self._lease is None:
            await self._wait()
        if isinstance(self._lease, ApiError):
            raise self._lease
        assert self._lease is not None
        self._lease.began(arrived)
        self._lease.held.begin(self._lease, owing=self.event.slot)
        return self._lease

    async def _wait(self) -> None:
        self._waiting = waiting = asyncio.get_running_loop().create_future()
        await self._wait_for(waiting)

    async def _wait_for(self, waiting: asyncio.Future[None]) -> None:
        try:
            if self._notice is not None:
                await self._notify(self._notice, waiting)
            await waiting
        except BaseException as error:
            if not (self.stays and isinstance(error, asyncio.CancelledError)):
                self._desk.leave(self)  # also gives back a lease that was granted meanwhile
            raise

    @property
    def waits(self) -> bool:
        """Whether its client has left, and it keeps its place."""
        return self.stays and self._waiting is not None and not isinstance(self._lease, ApiError)

    async def outlast(self) -> Lease:
        """Wait on where a client has left that `stays`; who gets the lease calls `release`."""
        self._kept = True
        arrived, self._notice = time.monotonic(), None
        if self._lease is None:
            self._waiting = asyncio.get_running_loop().create_future()
            self.stays = False
            await self._wait_for(self._waiting)
        if isinstance(self._lease, ApiError):
            raise self._lease
        assert self._lease is not None
        self._lease.began(arrived)
        self._lease.held.begin(self._lease, owing=False)
        return self._lease

    def again(self) -> Ticket:
        """Return a ticket of the same request, at its old place: its instance took nothing of it.

        This one is released before; `outlast` of the new one waits for the next instance.
        """
        assert isinstance(self._lease, Lease)
        id = new_request_id(self.event.request.rpartition("/")[0])
        event = structs.replace(self.event, request=id, since=self._lease.arrived)
        ticket = Ticket(self._desk, event, None)
        ticket._kept = True
        self._desk.arrive(ticket)
        return ticket

    async def _notify(self, notice: Notice, waiting: asyncio.Future[None]) -> None:
        pause = notice.first
        while not (await asyncio.wait([waiting], timeout=pause))[0]:
            await notice.send()
            pause = notice.every

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert isinstance(self._lease, Lease)
        if self._kept:
            return
        if error is not None:
            outcome = ev.Outcome.CANCELLED
        elif self._lease.outcome == "ok":
            outcome = ev.Outcome.OK
        elif self._lease.outcome == "cut":
            outcome = ev.Outcome.CANCELLED
        else:
            outcome = ev.Outcome.UPSTREAM_ERROR
        self.release(outcome)

    def keep(self) -> None:
        """Let the lease outlive its context; whoever keeps it calls `release`."""
        self._kept = True
        if isinstance(self._lease, Lease):  # its answer may be complete, and only wait for a reader
            self._lease.held.begin(self._lease, owing=False)

    def release(self, outcome: ev.Outcome) -> None:
        """Give back the lease."""
        lease = self._lease
        if isinstance(lease, Lease):
            lease.held.end(lease, well=outcome is ev.Outcome.OK)
            lease._callbacks = ()
        self._desk.finish(self, outcome)

    def end(self, *, well: bool) -> None:
        """Give back a lease that nobody entered; `well`: after a whole answer."""
        self.release(ev.Outcome.OK if well else ev.Outcome.CANCELLED)

    def grant(self, lease: Lease) -> None:
        """The scheduler granted it."""
        self._settle(lease)

    def refuse(self, error: ApiError) -> None:
        """The scheduler refused it."""
        self._settle(error)

    def give_up(self, error: ApiError) -> None:
        """End the waiting with an error from outside; a lease that is held is left alone."""
        if self._lease is None:
            self._desk.leave(self)
            self._settle(error)

    def revoke(self, reason: str) -> None:
        """The scheduler takes the lease back."""
        if isinstance(self._lease, Lease):
            self._lease.revoke(reason)

    def _settle(self, result: Lease | ApiError) -> None:
        self._lease = result
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
