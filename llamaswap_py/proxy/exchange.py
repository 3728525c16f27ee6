"""One request and its answer, as a handler sees them: one linear coroutine."""

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
    from collections.abc import AsyncIterator, Callable, Sequence

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
    """The client's connection, as the exchanges on it need it."""

    closed: bool
    peer: str

    @property
    def answers_last(self) -> bool:
        """Whether no request is served after the current one."""

    @property
    def at_once(self) -> bool:
        """Whether its handler still runs in the call that brought its request."""

    def claim(self, owner: str) -> bool:
        """Count the connection as the owner's; False where that one has too many."""

    def abandon(self) -> None:
        """End the connection and whatever goes on for it."""


class Exchange:
    """One request, and the one answer to it.

    Its handler is cancelled when the client goes away; writing to that does nothing then.
    """

    #: header lines, each with its line end, sent with whatever answer follows
    response_lines = b""
    response_started: bool = False
    finished: bool = False
    # The answer, as the relay needs it
    running: Relay | None = None
    cut_event: bytes | None = None
    cut_reason = ""
    #: what a WebSocket is then closed with
    cut_close = 1001
    chunked = False
    event_stream = False
    #: gets a copy of every byte of the answer
    tap: Callable[[bytes], None] | None = None
    #: its answer goes on for as long as the client likes, and nobody's work is lost with it
    stays = False
    #: only blanks were sent so far: any JSON may follow
    padded = False
    ends_by_closing = False
    _bodiless = False
    _sent = 0

    def __init__(self, connection: Client, head: RequestHead, whole: bytes | None = None) -> None:
        """Begin an exchange, with its `whole` body where that is here already."""
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
        """Bytes of the answer handed to the client's connection so far, heads included."""
        return self._sent + (self.running.passed if self.running is not None else 0)

    @property
    def awaited(self) -> asyncio.Future[None] | None:
        """What its handler waits for, where its connection or its relay tells: a body, an end."""
        return self.intake.waiter if self.running is None else self.running.done

    @property
    def events_relayed(self) -> int:
        """Events of the running stream that came from the child; 0 where nothing streams."""
        return self.running.events if self.running is not None else 0

    @property
    def held_up(self) -> bool:
        """Whether the client has so much to read that the child must wait."""
        return not self.connection.outflow.writable

    # --- reading the request ------------------------------------------------------------------

    async def read_body(self, limit: int, scan: Callable[[bytes], int] | None = None) -> Body:
        """Return the whole body once it is here; `scan` sees a large one piece by piece before.

        Raises BodyTooLarge as soon as it is known to be larger than `limit` bytes, and WireError
        (let it pass) when the client sends something that is not a body, or stops sending.
        """
        return await self.intake.read(limit, scan)

    def small_body(self, limit: int) -> Body | None:
        """Return the whole body if it is here, and no larger than `limit`; else None."""
        return self.intake.small(limit)

    def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives; a slow taker makes the client wait. Raises WireError."""
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
        """Start a streamed answer: chunked for HTTP/1.1, ended by closing for HTTP/1.0."""
        lines = [(b"content-type", content_type.encode()), (b"x-accel-buffering", b"no"), *headers]
        self.event_stream = content_type.startswith("text/event-stream")
        self.begin_stream(status, lines)
        await self.connection.outflow.drained()

    async def pad(self) -> None:
        """Send a blank before a JSON answer, of which status 200 is promised with the first."""
        if not self.response_started:
            await self.start(200, "application/json")
            self.padded = True
        await self.write(b" ")

    async def write(self, data: bytes) -> None:
        """Send a part of a streamed answer, once the client has taken most of what came before."""
        if data:
            self._write(self.encode(data))
        await self.connection.outflow.drained()

    async def finish(self) -> None:
        """End a streamed answer."""
        self.end_stream()
        await self.connection.outflow.drained()

    def begin_stream(self, status: int, lines: Headers, *, reason: bytes = b"") -> None:
        """Send the head of an answer whose length nobody knows."""
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
        """Send the head of a child's answer that was seen before, and `rest` in the same write.

        `whole`: nothing follows.
        """
        self._write(known.render(length, self._own_lines(), rest), whole=whole)

    def _own_lines(self) -> bytes:
        """Begin the answer; return the header lines that are not the child's."""
        if self.response_started:
            raise RuntimeError(f"{self!r} has been answered already")
        self.response_started = True
        if self.connection.answers_last or not self.intake.ends_soon:
            self.keep_alive = False
        lines = self.response_lines + date_line()
        if not self.keep_alive:
            return lines + b"connection: close\r\n"
        if self.head.version == "1.0":
            return lines + b"connection: keep-alive\r\n"
        return lines

    def encode(self, data: bytes) -> bytes:
        """Return `data` as the running stream wants it."""
        if self._bodiless:
            return b""
        return chunk(data) if self.chunked else data

    def end_stream(self, event: bytes = b"") -> None:
        """End a running stream, with a last event."""
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
        """Write what a relay passes on, and its copy."""
        assert self.tap is not None
        self.tap(bytes(data))
        self.connection.transport.write(data)

    def _write(self, data: bytes, *, whole: bool = False) -> None:
        if self.tap is not None:
            self.tap(data)
        self._sent += len(data)
        if whole:
            self.connection.outbox.put(self.connection.write, data)
        else:
            self.connection.write(data)

    # --- relaying -----------------------------------------------------------------------------

    async def relay(
        self,
        endpoint: Endpoint,
        request: UpstreamRequest,
        *,
        pool: UpstreamPool,
        error_event: Callable[[str], bytes] | None = None,
        translate: Callable[[], Translator] | None = None,
        collect: bool = False,
    ) -> RelayResult:
        """Send `request` to a child and pass its answer through, untouched but for the framing.

        With `translate` a stream of the child becomes another one; any other answer then (and,
        with `collect`, every answer) is only collected, as `RelayResult.refusal`.

        Where the result says that nothing started, the client waits for another answer.
        `error_event` renders a complete SSE event for a child that dies in the middle of a stream.
        After `start()` the child's event stream continues what was started.
        """
        if self.cut_event is not None or self.connection.closed:
            return self._was_cut()
        wire = render_request(request)
        upstream = pool.take(endpoint)
        if upstream is not None:
            relay = Relay(upstream, self, error_event, translate, collect)
            result = await relay.run(wire, request.body)
            if result.outcome is not RelayOutcome.DIED_BEFORE_HEAD or relay.heard:
                return result
        return await self._relay_fresh(
            endpoint, wire, request.body, pool, error_event, translate, collect
        )

    def release(self) -> None:
        """Let go of the request's body and of its handler: it has ended."""
        self.intake.release()
        self.tap = None

    async def tunnel(
        self, endpoint: Endpoint, request: UpstreamRequest, *, pool: UpstreamPool
    ) -> RelayResult:
        """Ask a child to switch protocols, and pass bytes both ways until either side closes.

        When the child refuses, its answer is relayed as any other.
        """
        if self._unwanted():
            return self._was_cut()
        self.keep_alive = False
        self.stays = True
        wire = render_request(request, upgrade=self.head.get(b"upgrade") or b"websocket")
        return await self._relay_fresh(endpoint, wire, request.body, pool, None)

    async def _relay_fresh(
        self,
        endpoint: Endpoint,
        wire: bytes,
        body: Body,
        pool: UpstreamPool,
        error_event: Callable[[str], bytes] | None,
        translate: Callable[[], Translator] | None = None,
        collect: bool = False,
    ) -> RelayResult:
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
        """End a relay from outside, as when its lease is revoked.

        Before the first byte for the client the relay returns `Outcome.CUT` and the handler may
        answer otherwise. An event stream ends with `event`, a whole `data: …` event, a WebSocket
        with the code `close`. Anything else is aborted, for half a document must not look whole.
        """
        if self.finished or self.cut_event is not None:
            return
        self.cut_event = event
        self.cut_reason, self.cut_close = reason, close
        if self.running is not None:
            self.running.cut()

    def relay_ended(self, passed: int) -> None:
        """The upstream has let go, after it passed that many bytes."""
        self._sent += passed
        self.running = None

    def _unwanted(self) -> bool:
        return self.cut_event is not None or self.connection.closed

    def _was_cut(self) -> RelayResult:
        return RelayResult(RelayOutcome.CUT, started=self.response_started, error=self.cut_reason)


#: of a request whose head made no sense
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
