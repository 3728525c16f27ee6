"""Resumable streams: answers that outlive their clients, which llama-server keeps for a reader.

A request that streams and carries `X-Conversation-Id` makes llama-server buffer its answer (up to
4 MiB, server-stream.cpp) and go on when the client leaves. Its lease is then kept here, `detached`,
until the generation ends, a client stops it, or the scheduler takes it back. An answer that has
ended without a reader is fetched from the child, so that the model can be unloaded without losing
it.

A client chooses the id by which it reads an answer again, or stops it. So an answer belongs to the
client that began it: two clients that choose one id have two streams, in the child too.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import msgspec

from llamaswap_py.children.ask import ask
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import ApiError
from llamaswap_py.llamacpp.server_routes import stream_target
from llamaswap_py.proxy.dial import is_refusal
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import StopReason
from llamaswap_py.supervisor.leases import Lease, Ticket
from llamaswap_py.tasks import guard
from llamaswap_py.units import MIB

ASKING: Final = 2.0
"""Seconds for one question to a child, which answers in microseconds."""
EVERYBODY: Final = ""
"""The owner of all conversations if lswap has no keys."""
_MARK: Final = 16


def id_in_child(owner: str, name: str) -> str:
    """Return a conversation's id in the child: the client's name for it, with a mark of its owner.

    Marks have one length, so that no name of one owner is the id of another's.
    """
    if owner == EVERYBODY:
        return name
    return f"{hashlib.sha256(owner.encode()).hexdigest()[:_MARK]}.{name}"


@dataclass(slots=True, eq=False)
class ResumableStream:
    """The newest answer of one conversation, and the child that has it."""

    owner: str
    """The principal that began it (proxy/principals.py); EVERYBODY if lswap has no keys."""
    name: str
    """What its clients call it."""
    preset: str
    cancel: Callable[[], None]
    """Ends its request while it waits."""
    request_id: str = ""
    lease: Lease | None = None
    ticket: Ticket | None = None
    """While its lease is kept for it."""
    waiting: Ticket | None = None
    """While its request waits for a lease, and its client has left."""
    begun: bool = True
    """Whether its child has begun to answer, as far as anybody knows."""
    began: float = field(default_factory=time.monotonic)
    readers: dict[str, Callable[[str], None]] = field(default_factory=dict)
    """Who reads it instead of its client, each with what ends that, given a reason."""
    whole: bytes = b""
    """The answer, once it has ended without a reader."""
    whole_at: float = -math.inf
    """When that was, in monotonic seconds as `began`: a clock that is set must lose no answer."""
    unread: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while there are none."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it was stopped."""

    def __post_init__(self) -> None:
        self.unread.set()

    def store(self, whole: bytes) -> None:
        """Keep an answer, or the error in its place, for a client that comes back."""
        self.whole, self.whole_at = whole, time.monotonic()

    @property
    def id(self) -> str:
        """What children call it."""
        return id_in_child(self.owner, self.name)

    @property
    def goes_on(self) -> bool:
        """Whether its request has no client any more, and has not ended."""
        return self.ticket is not None or self.waiting is not None

    @property
    def is_readable(self) -> bool:
        """Whether a child has something of it, or it was kept."""
        return bool(self.whole) or (self.lease is not None and self.begun)

    def target(self, start: object = None) -> str:
        """Return the child's target for it, from a byte on."""
        in_path = self.lease is not None and self.lease.stream_in_path
        return stream_target(self.id, start, in_path=in_path)


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask a child in the place of a client that has left.

    `failed` and `refused` render lswap's error, and a child's, as the event of a stream.
    """

    target: str
    body: bytes
    headers: str
    failed: Callable[[ApiError], bytes]
    refused: Callable[[bytes], bytes]


def entry_of(stream: ResumableStream) -> dict[str, Any]:
    """Return what llama-server's lookup says of an ended answer (server-stream.cpp)."""
    unix = time.time() - time.monotonic()
    return {
        "conversation_id": stream.name,
        "is_done": True,
        "total_bytes": len(stream.whole),
        "started_at": int(stream.began + unix),
        "completed_at": int(stream.whole_at + unix),
    }


async def look_up(endpoint: Endpoint, ids: list[str]) -> list[dict[str, Any]]:
    """Return what a child says of these conversations, by its ids; nothing where it fails."""
    body = msgspec.json.encode({"conversation_ids": ids})
    try:
        answer = await ask(endpoint, "POST", "/v1/streams/lookup", timeout=ASKING, body=body)
        found = msgspec.json.decode(answer.body)
    except (OSError, msgspec.DecodeError):
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


_log: Final = logging.getLogger("lswap")
_KEPT: Final = 10_000
"""Conversations that are remembered; of the owner that has most the oldest is forgotten first."""
# A request that was just written may reach the child a moment after its client has left.
_KEPT_SECONDS: Final = 300.0
_KEPT_BYTES: Final = 64 * MIB
"""What is kept of ended answers: as long as llama-server would, and so much in all."""
_APPEARS: Final = 10
_APPEARS_STEP: Final = 0.05


class ResumableStreams:
    """Knows which child has which conversation, and keeps the leases of those without a client.

    The tasks that do so belong to the supervisor's group.
    """

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        dispatch: Callable[[ev.Event], None],
        alive: Callable[..., bool],
    ) -> None:
        self._tasks = tasks
        self._dispatch = dispatch
        self._alive = alive
        self._known: OrderedDict[str, ResumableStream] = OrderedDict()
        self._holding: set[asyncio.Task[None]] = set()

    async def begin(
        self, owner: str, name: str, preset: str, request_id: str, cancel: Callable[[], None]
    ) -> ResumableStream:
        """Note that a request of this conversation arrived; it is the one that counts now.

        An answer that goes on without its client is stopped: llama-server has one for each.
        """
        stream = ResumableStream(owner, name, preset, cancel, request_id)
        older = self._known.get(stream.id)
        if older is not None and older.goes_on:
            await self.stop(older)
        self._known.pop(stream.id, None)
        self._known[stream.id] = stream
        while len(self._known) > _KEPT:
            most = Counter(one.owner for one in self._known.values()).most_common(1)[0][0]
            self.remove(next(one for one in self._known.values() if one.owner == most))
        return stream

    def remove(self, stream: ResumableStream) -> None:
        """Nothing is left to read of it."""
        if self._known.get(stream.id) is stream:
            del self._known[stream.id]

    def disown(self, owner: str, may_use: Callable[[str], bool]) -> None:
        """Forget what an owner has of presets that it may not use, and end what goes on of that."""
        for one in [one for one in self._known.values() if one.owner == owner]:
            if may_use(one.preset):
                continue
            self.remove(one)
            if one.goes_on:
                work = guard.contained("conversation", self.stop(one))
                self._tasks.create_task(work, name=f"disown {one.request_id}")

    def find(self, owner: str, name: str, *, of_all: bool = False) -> ResumableStream | None:
        """Return the conversation, unless the child that had it is gone, and nothing was kept.

        `of_all`: that of another owner will do where the owner has none of this name.
        """
        found = self._known.get(id_in_child(owner, name))
        if found is None and of_all:
            others = (one for one in reversed(self._known.values()) if one.name == name)
            found = next(others, None)
        return None if found is None else self._if_there(found)

    def _if_there(self, found: ResumableStream) -> ResumableStream | None:
        if time.monotonic() - found.whole_at < _KEPT_SECONDS:
            return found
        if not found.whole if found.lease is None else self._alive(found.lease):
            return found
        self.remove(found)
        return None

    def matching(self, names: Iterable[str], owner: str | None) -> list[ResumableStream]:
        """Return those of an owner (None: of all) that have a child.

        They are named as by `find`, or as `NAME::MODEL` (server-stream.cpp).
        """
        wanted = set(names)
        named = [
            one
            for one in self._known.values()
            if owner in (None, one.owner)
            and (one.name in wanted or one.name.partition("::")[0] in wanted)
        ]
        found = [one for one in map(self._if_there, named) if one is not None]
        return [one for one in found if one.is_readable]

    @property
    def detached(self) -> list[ResumableStream]:
        """Those that go on without a client."""
        return [one for one in self._known.values() if one.goes_on]

    def hold(
        self, stream: ResumableStream, ticket: Ticket, lease: Lease, over: Callable[[], None]
    ) -> None:
        """Keep the lease of a client that has left until its answer has ended; then call `over`."""
        newest = self._known.get(stream.id, stream)
        if newest is not stream:
            self._keep(ticket, self._stop_and_free(stream, ticket, lease), over)
            return
        stream.ticket = ticket
        self._keep(ticket, self._hold(stream, ticket, lease), over)

    def outlast(
        self,
        stream: ResumableStream,
        ticket: Ticket,
        over: Callable[[], None],
        **asked: Any,
    ) -> None:
        """Go on with a request (`Question`) whose client has left; then call `over`."""
        _wait_under(stream, ticket)
        if self._known.get(stream.id) is not stream:
            stream.cancel()
        self._keep(ticket, self._outlast(stream, ticket, Question(**asked)), over)

    def hold_until_stopped(self, stream: ResumableStream, ticket: Ticket, lease: Lease) -> None:
        """Keep the lease of an answer that was cut until its child has stopped generating."""
        self._keep(ticket, self._stop_and_free(stream, ticket, lease))

    def _keep(
        self,
        ticket: Ticket,
        life: Coroutine[Any, Any, None],
        over: Callable[[], None] | None = None,
    ) -> None:
        ticket.detach()
        work = guard.contained("conversation", life)
        task = self._tasks.create_task(work, name=f"detached {ticket.event.request}")
        self._holding.add(task)
        task.add_done_callback(self._holding.discard)
        if over is not None:
            task.add_done_callback(lambda _: over())

    def cancel(self) -> None:
        """End all of that."""
        for task in self._holding:
            task.cancel()

    async def stop(self, stream: ResumableStream) -> None:
        """End the generation, as a stop button does."""
        if stream.lease is None:
            stream.cancel()
            self.remove(stream)
            return
        await self._stop_in(stream.lease, stream)
        self.remove(stream)
        stream.over.set()

    async def _stop_in(self, lease: Lease, stream: ResumableStream) -> None:
        """Have a child stop it, unless a newer answer of that id has taken its place there."""
        newest = self._known.get(stream.id, stream)
        there = None if newest.lease is None else newest.lease.endpoint
        if newest is not stream and there == lease.endpoint:
            return
        try:
            await ask(lease.endpoint, "DELETE", stream.target(), timeout=ASKING)
        except OSError as error:
            _log.debug("%s: its child could not be asked to stop: %s", stream.id, error)

    async def look_up(
        self, names: Iterable[str], owner: str | None, may_use: Callable[[str], bool]
    ) -> list[Any]:
        """Return what the children say of those conversations (`POST /v1/streams/lookup`)."""
        children: dict[Endpoint, dict[str, str]] = {}
        ours = []
        for one in self.matching(names, owner):
            if not may_use(one.preset):
                continue
            if one.whole:
                ours.append(entry_of(one))
            elif one.lease is not None:
                children.setdefault(one.lease.endpoint, {})[one.id] = one.name
        answers = await asyncio.gather(*(_named(*child) for child in children.items()))
        return [*ours, *(entry for entries in answers for entry in entries)]

    def attach(self, stream: ResumableStream, reader: str, cut: Callable[[str], None]) -> bool:
        """Read under the lease that is kept; False if none is. `detach` ends it."""
        if stream.ticket is None:
            return False
        stream.readers[reader] = cut
        stream.unread.clear()
        self._dispatch(ev.LeaseAttached(stream.ticket.event.request))
        return True

    def detach(self, stream: ResumableStream, reader: str, *, whole: bool) -> None:
        """A reader has left, or has read the `whole` of it."""
        stream.readers.pop(reader, None)
        if not stream.readers:
            stream.unread.set()
            if stream.ticket is not None and not whole:
                self._dispatch(ev.LeaseDetached(stream.ticket.event.request))

    async def _outlast(self, stream: ResumableStream, ticket: Ticket, question: Question) -> None:
        while True:
            try:
                lease = await ticket.outlast()
            except ApiError as error:
                stream.waiting = None
                stream.store(question.failed(error))
                return
            stream.lease, stream.preset = lease, lease.preset
            stream.ticket, stream.waiting = ticket, None
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(self._ask(stream, lease, question))
                await self._hold(stream, ticket, lease)
                asking.cancel()
            if not _took_nothing(stream, lease):
                return
            ticket = ticket.again()
            _wait_under(stream, ticket)

    async def _ask(self, stream: ResumableStream, lease: Lease, question: Question) -> None:
        """Have a child begin an answer that it keeps for a reader; what it refuses is kept here."""

        def record_status(status: int) -> None:
            stream.begun = status == HTTPStatus.OK

        try:
            answer = await ask(
                *(lease.endpoint, "POST", question.target),
                timeout=None,
                on_status=record_status,
                body=question.body,
                headers=question.headers,
                keep=False,
            )
        except (OSError, ValueError) as error:
            # A reader finds the part that the child had of it, or nothing.
            _log.debug("%s: its child did not answer: %s", stream.id, error)
            if isinstance(error, OSError) and is_refusal(error.errno):
                lease.revoke(StopReason.REFUSED.value)  # also where its other answers may go on
            return
        if answer.status != HTTPStatus.OK:
            stream.store(question.refused(answer.body))

    async def _hold(self, stream: ResumableStream, ticket: Ticket, lease: Lease) -> None:
        revoked = asyncio.Event()
        outcome = ev.Outcome.CANCELLED
        try:
            self._dispatch(ev.LeaseDetached(ticket.event.request))
            lease.on_revoke(lambda _: revoked.set())
            async with asyncio.TaskGroup() as group:
                ended = group.create_task(self._ended(stream, lease))
                taken = group.create_task(revoked.wait())
                over = group.create_task(stream.over.wait())
                await asyncio.wait({ended, taken, over}, return_when=asyncio.FIRST_COMPLETED)
                for task in (ended, taken, over):
                    task.cancel()
            if _took_nothing(stream, lease):
                pass  # the next instance is asked
            elif revoked.is_set():
                for cut in list(stream.readers.values()):
                    cut(lease.revoked or "")
                await self.stop(stream)
            else:
                outcome = ev.Outcome.OK
        finally:
            stream.ticket = None
            ticket.release(outcome)

    async def _keep_whole(self, stream: ResumableStream, lease: Lease) -> None:
        """Fetch an answer that has ended; one larger than the child's buffer is left to it."""
        if stream.readers:
            return
        try:
            answer = await ask(lease.endpoint, "GET", stream.target(), timeout=ASKING)
        except OSError:
            return
        if answer.status == HTTPStatus.OK:
            stream.store(answer.body)
        kept = [one for one in self._known.values() if one.whole]
        kept.sort(key=lambda one: one.whole_at)
        sizes = Counter[str]()
        for one in kept:
            sizes[one.owner] += len(one.whole)
        while kept:
            most = sizes.most_common(1)[0][0]
            one = kept[0]
            if time.monotonic() - one.whole_at < _KEPT_SECONDS:
                if sizes.total() <= _KEPT_BYTES:
                    break
                one = next(one for one in kept if one.owner == most)
            kept.remove(one)
            sizes[one.owner] -= len(one.whole)
            one.whole, one.whole_at = b"", -math.inf

    async def _stop_and_free(self, stream: ResumableStream, ticket: Ticket, lease: Lease) -> None:
        try:
            await self._stop_in(lease, stream)
        finally:
            ticket.release(ev.Outcome.CANCELLED)

    async def _ended(self, stream: ResumableStream, lease: Lease) -> None:
        """Wait until the child has generated the answer, and no client reads it any more."""
        missing = 0
        while missing < _APPEARS and self._alive(lease):
            entries = await look_up(lease.endpoint, [stream.id])
            mine = [one for one in entries if one.get("conversation_id") == stream.id]
            if not mine:
                missing += 1
                await asyncio.sleep(_APPEARS_STEP)
                continue
            if mine[0].get("is_done"):
                await self._keep_whole(stream, lease)
                break
            path = stream.target(mine[0].get("total_bytes", 0))
            try:  # silent until more comes; the answer to it ends with the generation
                answer = await ask(lease.endpoint, "GET", path, timeout=None, keep=False)
            except OSError:
                break
            if answer.status != HTTPStatus.OK:
                missing += 1
                await asyncio.sleep(_APPEARS_STEP)
        await stream.unread.wait()


def _wait_under(stream: ResumableStream, ticket: Ticket) -> None:
    """Note that its request waits without a client, and how that is ended."""
    stream.waiting, stream.begun, stream.lease = ticket, False, None
    stream.cancel = partial(ticket.give_up, ApiError("stopped", "it was stopped"))


def _took_nothing(stream: ResumableStream, lease: Lease) -> bool:
    """Return whether a child that serves no more has begun nothing of an answer still wanted."""
    refused = lease.revoked == StopReason.REFUSED.value
    done = stream.begun or bool(stream.whole) or stream.over.is_set()
    return refused and not done


async def _named(endpoint: Endpoint, names: dict[str, str]) -> list[dict[str, Any]]:
    """Return what a child says of these conversations, by the names that clients have for them."""
    found = await look_up(endpoint, list(names))
    return [
        {**one, "conversation_id": names[id]}
        for one in found
        if (id := one.get("conversation_id")) in names
    ]
