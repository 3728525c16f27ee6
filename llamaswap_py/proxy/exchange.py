"""`Exchange`: one request and its answer, as a handler sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from llamaswap_py.proxy.dating import date_line
from llamaswap_py.proxy.intake import Intake, Sender
from llamaswap_py.proxy.messages import (
    LAST_CHUNK,
    RelayOutcome,
    RelayResult,
    RequestHead,
    chunk,
    is_bodiless,
    render_request,
    render_response,
)
from llamaswap_py.proxy.relay import AnswerReader, Relay

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from llamaswap_py.endpoint import Endpoint
    from llamaswap_py.proxy.head_cache import KnownAnswer
    from llamaswap_py.proxy.messages import (
        Body,
        Headers,
        Translator,
        UpstreamRequest,
        WireError,
        WireErrorRenderer,
    )
    from llamaswap_py.proxy.upstream import UpstreamPool


class Client(Sender, AnswerReader, Protocol):
    """The client's connection, as far as an exchange needs it."""

    closed: bool
    peer: str
    #: the task of all its handlers
    task: asyncio.Task[None] | None

    @property
    def answers_last(self) -> bool:
        """Whether the connection closes after the current answer."""

    @property
    def at_once(self) -> bool:
        """Whether the handler still runs in the call that delivered the request."""

    def claim(self, owner: str) -> bool:
        """Count the connection for an owner; return False if the owner has too many."""

    def abandon(self) -> None:
        """End the connection with its handler and its relay."""


class Exchange:
    """One request and its answer.

    If the client disconnects, the handler is cancelled. To write to that client then does nothing.
    """

    #: header lines, each with its line end, that are added to the answer
    response_lines = b""
    response_started: bool = False
    finished: bool = False
    # The state of the answer, for the relay
    running: Relay | None = None
    cut_event: bytes | None = None
    cut_reason = ""
    #: the code with which a WebSocket is closed
    cut_close = 1001
    chunked = False
    event_stream = False
    #: called with a copy of every byte of the answer
    tap: Callable[[bytes], None] | None = None
    #: whether the answer has no end of its own (followed logs), so that cutting it loses no work
    stays = False
    #: whether only blanks were sent so far, after which any JSON may follow
    padded = False
    ends_by_closing = False
    _bodiless = False
    #: bytes of the answer written so far, without those that a running relay has passed
    sent = 0

    def __init__(self, connection: Client, head: RequestHead, whole: bytes | None = None) -> None:
        """Begin an exchange; `whole` is its body if that has already arrived."""
        self.head = head
        self.connection: Client = connection
        #: the client's address, or "unix"
        self.peer = connection.peer
        self.keep_alive = head.keep_alive
        self.intake = Intake(connection, head, whole)

    def __repr__(self) -> str:
        state = "finished" if self.finished else "answering" if self.response_started else "open"
        return f"<Exchange {self.head.method} {self.head.path} {state}>"

    @property
    def bytes_sent(self) -> int:
        """The bytes of the answer written so far, with its head."""
        return self.sent + (self.running.passed if self.running is not None else 0)

    @property
    def awaited(self) -> asyncio.Future[None] | None:
        """The future for which the handler waits: the body, or the end of a relay; else None."""
        return self.intake.waiter if self.running is None else self.running.done

    @property
    def events_relayed(self) -> int:
        """The number of events of the running stream from the child; 0 without a stream."""
        return self.running.events if self.running is not None else 0

    @property
    def held_up(self) -> bool:
        """Whether the client has so much unread output that the child must wait."""
        return not self.connection.outflow.writable

    # --- reading the request ------------------------------------------------------------------

    def read_body(self, limit: int, scan: Callable[[bytes], int] | None = None) -> Awaitable[Body]:
        """Return the whole body when it has arrived; `scan` gets the pieces of a large one before.

        Raises BodyTooLarge as soon as the body is known to be larger than `limit` bytes. Raises
        WireError, which a handler must not catch, if the client sends an invalid body, or stops.
        """
        return self.intake.read(limit, scan)

    def small_body(self, limit: int) -> Body | None:
        """Return the whole body if it has arrived and is not larger than `limit`; else None."""
        return self.intake.small(limit) if self.intake.complete else None

    def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives; a slow reader makes the client wait. Raises WireError."""
        return self.intake.pieces()

    # --- answering ----------------------------------------------------------------------------

    def respond(
        self,
        status: int,
        body: bytes = b"",
        content_type: str = "application/json",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Send a complete answer."""
        bodiless = is_bodiless("GET", status)
        lines = [(b"content-length", b"%d" % len(body))] if not bodiless else []
        if body and not bodiless:
            lines.append((b"content-type", content_type.encode()))
        self.send_head(status, [*lines, *headers], rest=b"" if self._is_head(bodiless) else body)
        self.finished = True

    async def start(
        self, status: int, content_type: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Start a streamed answer: chunked in HTTP/1.1, ended by closing in HTTP/1.0."""
        lines = [(b"content-type", content_type.encode()), (b"x-accel-buffering", b"no"), *headers]
        self.event_stream = content_type.startswith("text/event-stream")
        self.begin_stream(status, lines)
        await self.connection.outflow.drained()

    async def pad(self) -> None:
        """Send a blank before a JSON answer; the first one also sends the status 200."""
        if not self.response_started:
            await self.start(200, "application/json")
            self.padded = True
        await self.write(b" ")

    async def write(self, data: bytes) -> None:
        """Send a part of a streamed answer when the client has read most of the earlier parts."""
        if data:
            self._write(self.encode(data))
        await self.connection.outflow.drained()

    async def finish(self) -> None:
        """End a streamed answer."""
        self.end_stream()
        await self.connection.outflow.drained()

    def begin_stream(self, status: int, lines: Headers, *, reason: bytes = b"") -> None:
        """Send the head of an answer of unknown length."""
        self._bodiless = is_bodiless(self.head.method, status)
        if not is_bodiless("GET", status):
            self.chunked = self.head.version == "1.1"
            if self.chunked:
                lines.append((b"transfer-encoding", b"chunked"))
            elif not self._bodiless:
                self.keep_alive = False
                self.ends_by_closing = True
        self.send_head(status, lines, reason=reason)

    def send_head(
        self, status: int, lines: Headers, *, reason: bytes = b"", rest: bytes = b""
    ) -> None:
        """Send the head of the answer, and `rest` in the same write."""
        self._write(render_response(status, lines, reason, self._own_lines()) + rest)

    def send_known(self, known: KnownAnswer, length: int, rest: bytes, *, whole: bool) -> None:
        """Send the cached head of a child's answer, and `rest` in the same write.

        `whole`: `rest` is the whole body.
        """
        data = known.render(length, self._own_lines(), rest)
        if not whole:
            self._write(data)
            return
        if self.tap is not None:
            self.tap(data)
        self.sent += len(data)
        self.connection.outbox.put(self.connection.write, data)

    def _own_lines(self) -> bytes:
        """Mark the answer as begun; return the header lines that lswap adds."""
        if self.response_started:
            raise RuntimeError(f"{self!r} has been answered already")
        self.response_started = True
        intake = self.intake
        if self.connection.answers_last or not (intake.complete or intake.ends_soon):
            self.keep_alive = False
        lines = self.response_lines + date_line()
        if not self.keep_alive:
            return lines + b"connection: close\r\n"
        if self.head.version == "1.0":
            return lines + b"connection: keep-alive\r\n"
        return lines

    def encode(self, data: bytes) -> bytes:
        """Return `data` in the framing of the running stream."""
        if self._bodiless:
            return b""
        return chunk(data) if self.chunked else data

    def end_stream(self, event: bytes = b"") -> None:
        """End a running stream, after `event`."""
        if self.finished:
            return
        self.finished = True
        tail = self.encode(event) if event else b""
        if self.chunked and not self._bodiless:
            tail += LAST_CHUNK
        if tail:
            self._write(tail)

    def _is_head(self, bodiless: bool) -> bool:
        return bodiless or self.head.method == "HEAD"

    def write_tapped(self, data: bytes | bytearray | memoryview) -> None:
        """Write the bytes of a relay to the client and to `tap`."""
        assert self.tap is not None
        self.tap(bytes(data))
        self.connection.transport.write(data)

    def _write(self, data: bytes) -> None:
        if self.tap is not None:
            self.tap(data)
        self.sent += len(data)
        self.connection.write(data)

    # --- relaying -----------------------------------------------------------------------------

    def relay(
        self,
        endpoint: Endpoint,
        request: UpstreamRequest,
        *,
        pool: UpstreamPool,
        error_event: Callable[[str], bytes] | None = None,
        translate: Callable[[], Translator] | None = None,
        collect: bool = False,
    ) -> Awaitable[RelayResult]:
        """Send `request` to a child and pass on its answer; only the framing is changed.

        With `translate` a stream of the child is translated. Any other answer is then collected in
        `RelayResult.refusal`; with `collect` every answer is.

        If the result says that nothing was started, the client still needs an answer. `error_event`
        renders a complete SSE event for a child that dies in the middle of a stream. After
        `start()` the child's event stream continues the stream that was started.
        """
        wire, body = render_request(request), request.body
        unwanted = self.cut_event is not None or self.connection.closed
        upstream = None if unwanted else pool.take(endpoint)
        if upstream is None:
            return self.relay_fresh(endpoint, wire, body, pool, error_event, translate, collect)
        return Relay(upstream, self, error_event, translate, collect).run(wire, body, again=True)

    def release(self) -> None:
        """Drop the references to the body and the handler after the request has ended."""
        self.intake.release()
        if self.tap is not None:
            self.tap = None

    async def tunnel(
        self, endpoint: Endpoint, request: UpstreamRequest, *, pool: UpstreamPool
    ) -> RelayResult:
        """Ask a child to switch protocols, and pass on bytes both ways until either side closes.

        If the child refuses, its answer is relayed like any other.
        """
        if self._unwanted():
            return self._was_cut()
        self.keep_alive = False
        self.stays = True
        wire = render_request(request, upgrade=self.head.get(b"upgrade") or b"websocket")
        return await self.relay_fresh(endpoint, wire, request.body, pool, None)

    async def relay_fresh(
        self,
        endpoint: Endpoint,
        wire: bytes,
        body: Body,
        pool: UpstreamPool,
        error_event: Callable[[str], bytes] | None,
        translate: Callable[[], Translator] | None = None,
        collect: bool = False,
    ) -> RelayResult:
        """Relay on a new connection to the child."""
        if self._unwanted():
            return self._was_cut()
        try:
            upstream = await pool.connect(endpoint, wanted=lambda: not self._unwanted())
        except OSError as error:
            if self._unwanted():
                return self._was_cut()
            reason = f"cannot connect to {endpoint}: {error}"
            started, number = self.response_started, error.errno or 0
            return RelayResult(RelayOutcome.UNREACHABLE, started, error=reason, errno=number)
        if self._unwanted():
            upstream.abort()
            return self._was_cut()
        if upstream.closed:
            reason = "the child closed the connection at once"
            return RelayResult(RelayOutcome.DIED_BEFORE_HEAD, self.response_started, error=reason)
        return await Relay(upstream, self, error_event, translate, collect).run(wire, body)

    def cut(self, event: bytes, reason: str, *, close: int = 1001) -> None:
        """End a relay from another task, for example because its lease was revoked.

        Before the first byte for the client the relay returns `RelayOutcome.CUT`, and the handler
        may send another answer. An event stream ends with `event`, a complete `data: …` event. A
        WebSocket is closed with the code `close`. Any other answer is aborted, because half a
        document must not look complete.
        """
        if self.finished or self.cut_event is not None:
            return
        self.cut_event = event
        self.cut_reason, self.cut_close = reason, close
        if self.running is not None:
            self.running.cut()

    def _unwanted(self) -> bool:
        return self.cut_event is not None or self.connection.closed

    def _was_cut(self) -> RelayResult:
        return RelayResult(RelayOutcome.CUT, started=self.response_started, error=self.cut_reason)


#: stands for the head of a request that could not be parsed
NO_HEAD: Final = RequestHead("GET", "/", "/", "", "1.1", [], keep_alive=False)


def refuse(exchange: Exchange, error: WireError, render: WireErrorRenderer) -> None:
    """Answer with an error that the handler did not, or could not, answer."""
    if exchange.response_started:
        return
    head = None if exchange.head is NO_HEAD else exchange.head
    headers, body = render(error.status, error.message, head)
    exchange.keep_alive = exchange.keep_alive and error.status == 500
    kind = next((v for n, v in headers if n.lower() == b"content-type"), b"application/json")
    others = [pair for pair in headers if pair[0].lower() != b"content-type"]
    exchange.respond(error.status, body, kind.decode(), others)
