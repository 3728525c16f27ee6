"""One answer on its way from a child to a client: how it begins, passes, and ends."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

import httptools

from llamaswap_py.proxy.messages import (
    COMPLETE,
    RelayOutcome,
    RelayResult,
    is_bodiless,
    render_response,
)
from llamaswap_py.proxy.parsers import BadResponse, DecodingWatch, Framing
from llamaswap_py.proxy.upstream import ONE_WRITE
from llamaswap_py.proxy.websocket import close_frame, ends_a_frame
from llamaswap_py.units import KIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.endpoint import Endpoint
    from llamaswap_py.proxy.backpressure import Outbox, Outflow
    from llamaswap_py.proxy.head_cache import KnownAnswer
    from llamaswap_py.proxy.messages import Body, Headers, RequestHead, Translator
    from llamaswap_py.proxy.upstream import UpstreamConnection, UpstreamPool

_REFUSAL_LIMIT: Final = 64 * KIB
_COLLECTED_LIMIT: Final = 256 * KIB * KIB
#: How long a cut waits for the end of a chunk before the client is aborted instead.
_CUT_PATIENCE: Final = 2.0
TAIL: Final = 2 * KIB


class AnswerReader(Protocol):
    """The client's connection, as the answer that goes over it needs it."""

    transport: asyncio.Transport
    outflow: Outflow
    outbox: Outbox

    def write(self, data: bytes) -> None:
        """Write unless the client is gone."""

    def abort(self) -> None:
        """Close the connection at once; what was not sent yet is lost."""

    def woken(self, *, at_once: bool = False) -> None:
        """Go on with the handler of the request."""

    def pause_input(self) -> None:
        """Read no more from the client for now."""

    def resume_input(self) -> None:
        """Read again."""

    def finish_writing(self) -> bool:
        """The tunnel's other side has ended; False when this side had ended before."""

    def start_tunnel(self, relay: Relay) -> None:
        """Hand what the client sends to `relay` from now on."""


class RelayedAnswer(Protocol):
    """The answer to one request, as a relay begins, passes and ends it."""

    head: RequestHead
    response_lines: bytes
    response_started: bool
    finished: bool
    sent: int
    running: Relay | None
    cut_event: bytes | None
    cut_reason: str
    cut_close: int
    chunked: bool
    event_stream: bool
    padded: bool
    tap: Callable[[bytes], None] | None

    @property
    def connection(self) -> AnswerReader:
        """The client's connection."""

    def begin_stream(self, status: int, lines: Headers, *, reason: bytes = b"") -> None:
        """Send the head of an answer whose length is not known."""

    def send_head(
        self, status: int, lines: Headers, *, reason: bytes = b"", rest: bytes = b""
    ) -> None:
        """Send the head of the answer, and `rest` in the same write."""

    def send_known(self, known: KnownAnswer, length: int, rest: bytes, *, whole: bool) -> None:
        """Send a head that was sent before, and the beginning of its body."""

    def encode(self, data: bytes) -> bytes:
        """Return `data` in the framing of the answer."""

    def end_stream(self, event: bytes = b"") -> None:
        """End a stream, with a last event."""

    def write_tapped(self, data: bytes | bytearray | memoryview) -> None:
        """Write, and give the tap a copy."""

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


class Relay:
    """Takes a child's bytes; the method that gets them is the state.

    `_on_head`, then one of `_on_stream` and `_on_counted` (the body passes untouched, only its
    framing is watched), `_on_recoded` (for HTTP/1.0 clients, bodies that end by closing, and
    streams that were begun before), `_on_refusal`, `_on_tunnel`.
    """

    #: bytes of the answer passed to the client
    passed = 0
    tunnelling = _is_websocket = False
    #: it has let go of both sides
    ended = False
    _verbatim = _translated = False
    _last = _before = b""
    #: what `run` waits for
    done: asyncio.Future[None] | None = None
    _cut_timer: asyncio.TimerHandle | None = None
    #: any byte came from the child
    heard = False
    _translate: Callable[[], Translator] | None = None
    _translator: Translator | None = None
    _collect = False
    #: the pieces of an answer that is collected
    _refusal: list[bytes]
    _remaining = 0
    _collected = 0

    def __init__(
        self,
        upstream: UpstreamConnection,
        exchange: RelayedAnswer,
        error_event: Callable[[str], bytes] | None,
        translate: Callable[[], Translator] | None = None,
        collect: bool = False,
    ) -> None:
        recoded = exchange.response_started or exchange.head.version == "1.0"
        if collect or translate is not None:
            recoded = self._collect = True
            self._translate = translate
        self._recoded = recoded
        upstream.begin(self, decoding=recoded)
        self.upstream = upstream
        self.exchange = exchange
        self.client = exchange.connection
        self.result = RelayResult(COMPLETE)
        self._error_event = error_event
        self._watch = upstream.watch
        self._write = self.client.transport.write
        if exchange.tap is not None:
            self._write = exchange.write_tapped

    async def run(self, head: bytes, body: Body, *, again: bool = False) -> RelayResult:
        """Send a request and pass its answer on; cancelled, it closes the upstream at once.

        `again`: send it on a new connection if the child closed this one, that was used before,
        and sent nothing: it has not read the request.
        """
        upstream, client = self.upstream, self.client
        self.done = done = upstream.loop.create_future()
        upstream.on_bytes = self._on_head
        self.exchange.running = self
        if not client.outflow.writable:
            upstream.pause()
        outbox = client.outbox
        outbox.open += 1
        try:
            if body.size > ONE_WRITE:
                await upstream.upload(head, body)
            else:
                outbox.put(upstream.send, head + body.join())
            if not self.ended:
                await done
        finally:
            if not self.ended:
                self._end(RelayOutcome.CUT, "cancelled")
            outbox.open -= 1
        if again and not self.heard and self.result.outcome is RelayOutcome.DIED_BEFORE_HEAD:
            return await self.exchange.relay_fresh(
                *(upstream.endpoint, head, body, upstream.pool),
                *(self._error_event, self._translate, self._collect),
            )
        return self.result

    @property
    def events(self) -> int:
        """How many events of a stream have come from the child."""
        return self._watch.chunks if self._watch.event_stream else 0

    # --- states: what to do with bytes --------------------------------------------------------

    def _on_head(self, data: bytes) -> None:
        watch = self._watch
        if not self.heard and not self._recoded and self.exchange.head.method != "HEAD":
            known = self.upstream.answers.find(data)
            if known is not None:
                self._answer_known(*known)
                return
        self.heard = True
        try:
            rest = watch.feed_head(data)
        except BadResponse as error:
            self._end(RelayOutcome.BAD_UPSTREAM, f"the answer is not valid HTTP: {error}")
            return
        if rest is None:
            return
        if watch.status == 101:
            self._switch_protocols(rest)
        elif watch.status < 200:
            watch.begin()
            if rest:
                self._on_head(rest)
        else:
            self._answer(rest)

    def _on_stream(self, data: bytes) -> None:
        """Pass a piece of a chunked body: one callback, one parser call, one write."""
        watch = self._watch
        try:
            watch.feed(data)
        except httptools.HttpParserError as error:
            self._fail(f"bad framing from the child: {error}")
            return
        if watch.surplus:
            self._fail("the child sent more than its answer")
            return
        self.passed += len(data)
        self._before, self._last = self._last, data
        self._write(data)
        if watch.complete:
            self._complete()

    def _on_counted(self, data: bytes) -> None:
        """Pass a piece of a body with a Content-Length, and nothing beyond it."""
        data = self._clip(data)
        self.passed += len(data)
        self._before, self._last = self._last, data
        self._write(data)
        self._end_if_counted()

    def _on_recoded(self, data: bytes) -> None:
        watch = self._watch
        if isinstance(watch, DecodingWatch):
            try:
                watch.feed(data)
            except httptools.HttpParserError as error:
                self._fail(f"bad framing from the child: {error}")
                return
            data = b"".join(watch.take())
        if data:
            self._before, self._last = self._last, data
            if self._translator is not None:
                try:
                    data = self._translator.feed(data)
                except ValueError as error:
                    self._fail(str(error))
                    return
        if data:
            self._pass(self.exchange.encode(data))
        if watch.complete:
            self._complete()

    def _begin_refusal(self) -> None:
        self._refusal = []
        self.upstream.on_bytes = self._on_refusal

    def _on_refusal(self, data: bytes) -> None:
        """Collect an answer that can't become part of the stream that was begun."""
        watch = self._watch
        assert isinstance(watch, DecodingWatch)
        try:
            watch.feed(data)
        except httptools.HttpParserError as error:
            self._fail(f"bad framing from the child: {error}")
            return
        piece = b"".join(watch.take())
        self._refusal.append(piece)
        self._collected += len(piece)
        limit = _COLLECTED_LIMIT if self._collect else _REFUSAL_LIMIT
        if watch.complete:
            self._complete()
        elif self._collected > limit:
            self._complete() if not self._collect else self._fail("the answer is too large")

    def _on_cutting(self, data: bytes) -> None:
        self._on_stream(data)
        if not self.ended and self._at_boundary():
            self._stop(RelayOutcome.CUT, self.exchange.cut_reason, self.exchange.cut_event)

    def _on_tunnel(self, data: bytes) -> None:
        self._last = data
        self._pass(data)

    def _pass(self, data: bytes) -> None:
        if not self.ended:
            self.passed += len(data)
            if self.exchange.tap is not None:
                self.exchange.tap(data)
            self.client.write(data)

    def _clip(self, data: bytes) -> bytes:
        if len(data) > self._remaining:
            self._watch.surplus = True
            data = data[: self._remaining]
        self._remaining -= len(data)
        return data

    # --- from head to body --------------------------------------------------------------------

    def _answer(self, rest: bytes) -> None:
        """The head is complete: choose how the body travels, and send the client's head."""
        exchange, watch = self.exchange, self._watch
        self.result.status = watch.status
        self.result.first_byte_at = time.monotonic()
        if self._collect:
            self._answer_translated(rest)
            return
        if exchange.response_started:
            joins = watch.event_stream and watch.status == 200
            if joins:
                self.upstream.on_bytes = self._on_recoded
            else:
                self._begin_refusal()
            self.upstream.on_bytes(rest)
            return
        headers = watch.end_to_end_headers()
        headers.append((b"x-accel-buffering", b"no"))
        exchange.event_stream = watch.event_stream
        if is_bodiless(exchange.head.method, watch.status):
            if watch.framing is Framing.CHUNKED and watch.status != HTTPStatus.NO_CONTENT:
                headers.append((b"transfer-encoding", b"chunked"))
            watch.surplus = watch.surplus or bool(rest) or not watch.complete
            exchange.send_head(watch.status, headers, reason=watch.reason)
            self._complete()
        elif watch.framing is Framing.LENGTH:
            if watch.is_plain:
                self.upstream.answers.note(watch.raw_head, watch.status, watch.reason, headers)
            rest = self._count(rest)
            exchange.send_head(watch.status, headers, reason=watch.reason, rest=rest)
            self._end_if_counted()
        elif watch.framing is Framing.CHUNKED and exchange.head.version == "1.1":
            headers.append((b"transfer-encoding", b"chunked"))
            exchange.chunked = self._verbatim = True
            self._begin_chunked(headers, rest)
        else:
            exchange.begin_stream(watch.status, headers, reason=watch.reason)
            self.upstream.on_bytes = self._on_recoded
            if rest:
                self._on_recoded(rest)

    def _answer_known(self, known: KnownAnswer, length: int, rest: bytes) -> None:
        """The head is one that was seen before."""
        self.heard = True
        self.result.status = known.status
        self.result.first_byte_at = time.monotonic()
        if len(rest) == length:
            self._last = rest
            self.exchange.send_known(known, length, rest, whole=True)
            self.exchange.finished = True
            self._end(COMPLETE, over=True)
        else:
            self._watch.recall(known, length)
            self.exchange.send_known(known, length, self._count(rest), whole=False)
            self._end_if_counted()

    def _count(self, rest: bytes) -> bytes:
        """Begin a body that has a length; return what of `rest` belongs to it."""
        self._remaining = self._watch.content_length or 0
        self.upstream.on_bytes = self._on_counted
        self._last = rest = self._clip(rest)
        return rest

    def _end_if_counted(self) -> None:
        if not self._remaining:
            self._watch.count_out()
            self._complete()

    def _answer_translated(self, rest: bytes) -> None:
        """Begin the client's own stream where the child streams; else collect what it says."""
        exchange, watch = self.exchange, self._watch
        self._begin_refusal()
        if self._translate is not None and watch.event_stream and watch.status == 200:
            self._translator = self._translate()
            self._translated = True
            exchange.event_stream = True
            lines = [
                (b"content-type", self._translator.content_type),
                (b"x-accel-buffering", b"no"),
            ]
            exchange.begin_stream(200, lines)
            self.upstream.on_bytes = self._on_recoded
        if rest:
            self.upstream.on_bytes(rest)
        elif watch.complete:
            self._complete()

    def _begin_chunked(self, headers: Headers, rest: bytes) -> None:
        """Send the head together with the first bytes of a body that passes untouched."""
        exchange, watch = self.exchange, self._watch
        try:
            if rest:
                watch.feed(rest)
        except httptools.HttpParserError as error:
            exchange.chunked = exchange.event_stream = False
            self._fail(f"the answer is not valid HTTP: {error}")
            return
        self.upstream.on_bytes = self._on_stream
        self._last = rest
        exchange.send_head(watch.status, headers, reason=watch.reason, rest=rest)
        if watch.complete:
            self._complete()

    def _switch_protocols(self, rest: bytes) -> None:
        exchange, watch = self.exchange, self._watch
        if not exchange.head.upgrade or exchange.response_started:
            self._end(RelayOutcome.BAD_UPSTREAM, "the child switched protocols unasked")
            return
        self.result.status = 101
        self.result.first_byte_at = time.monotonic()
        lines = watch.end_to_end_headers()
        wanted = next((v for n, v in watch.headers if n.lower() == b"upgrade"), b"websocket")
        lines += [(b"upgrade", wanted), (b"connection", b"upgrade")]
        exchange.response_started = True
        self.tunnelling = True
        self._is_websocket = wanted.lower() == b"websocket"
        self.upstream.on_bytes = self._on_tunnel
        self._last = rest
        self._pass(render_response(101, lines, watch.reason, exchange.response_lines) + rest)
        self.client.start_tunnel(self)

    def _complete(self) -> None:
        if (state := self.upstream.on_bytes) == self._on_refusal:
            body = b"".join(self._refusal)
            self._last = body[-TAIL:]
            self.result.refusal = body if self._collect else body[:_REFUSAL_LIMIT]
        elif state == self._on_recoded:
            self.exchange.end_stream(self._translator.end() if self._translator else b"")
        else:
            self.exchange.finished = True
        self._end(COMPLETE)

    # --- the end ------------------------------------------------------------------------------

    def cut(self) -> None:
        """End now, or at the next boundary where the client's framing allows."""
        exchange = self.exchange
        if self.tunnelling and self._is_websocket and ends_a_frame(self._last):
            self.client.write(close_frame(exchange.cut_close))
            exchange.finished = True  # the connection is closed once that is written
            self._end(RelayOutcome.CUT, exchange.cut_reason)
        elif not exchange.response_started or exchange.padded:
            self._end(RelayOutcome.CUT, exchange.cut_reason)
        elif self._at_boundary() or not (self._verbatim and exchange.event_stream):
            self._stop(RelayOutcome.CUT, exchange.cut_reason, exchange.cut_event)
        else:
            self.upstream.on_bytes = self._on_cutting
            self._cut_timer = asyncio.get_running_loop().call_later(
                _CUT_PATIENCE, self._stop, RelayOutcome.CUT, exchange.cut_reason, None
            )

    def client_lost(self) -> None:
        """The client is gone: forget it in this very call, and stop the child."""
        if self.tunnelling:
            self._complete()
        self._end(RelayOutcome.CUT, "the client went away")

    def upstream_finished(self) -> bool:
        """The child has sent its last byte; tell whether its connection stays open for ours."""
        return self.tunnelling and self.client.finish_writing()

    def upstream_lost(self, error: Exception | None) -> None:
        """The child's connection is gone."""
        watch = self._watch
        if self.tunnelling:
            self._complete()
        elif not watch.head_complete:
            reason = "the child closed the connection before it answered"
            self._end(RelayOutcome.DIED_BEFORE_HEAD, reason + (f": {error}" if error else ""))
        elif watch.framing is Framing.CLOSE and error is None:
            self._complete()
        else:
            self._fail("the child closed the connection in the middle of its answer")

    def _at_boundary(self) -> bool:
        """Tell whether an event can be put into the client's stream here."""
        if not self.exchange.event_stream or self._watch.framing is Framing.LENGTH:
            return False
        if not self._verbatim:
            return True
        # Between two chunks; the newline tells a begun size line from the end of a chunk.
        return not self._watch.in_chunk and (not self._last or self._last.endswith(b"\n"))

    def _fail(self, reason: str) -> None:
        exchange = self.exchange
        if exchange.cut_event is not None:  # it was about to end: its child has only been quicker
            self._stop(RelayOutcome.CUT, exchange.cut_reason, exchange.cut_event)
            return
        if not exchange.response_started or exchange.padded:  # the client can have another answer
            self.result.status = 0
            self._end(RelayOutcome.BAD_UPSTREAM, reason)
            return
        event = self._error_event(reason) if self._error_event is not None else None
        self._stop(RelayOutcome.DIED_MIDSTREAM, reason, event)

    def _stop(self, outcome: RelayOutcome, reason: str, event: bytes | None) -> None:
        """End the client's answer before its time: with an event, or abruptly."""
        if event and self._at_boundary():
            event_end = b"\n\n\r\n" if self._verbatim else b"\n\n"
            whole = self._translated or not self._last or self._last.endswith(event_end)
            self.exchange.end_stream(event if whole else b"\n\n" + event)
            self._end(outcome, reason)
        else:
            self._end(outcome, reason)
            self.client.abort()

    def _end(self, outcome: RelayOutcome, error: str = "", *, over: bool = False) -> None:
        """Let go of both sides, once; `over`: the parser need not be asked for the answer's end."""
        if self.ended:
            return
        self.ended = True
        if self._cut_timer is not None:
            self._cut_timer.cancel()
        exchange, result = self.exchange, self.result
        exchange.sent += self.passed
        exchange.running = None
        result.outcome, result.error = outcome, error
        result.started = exchange.response_started
        if outcome is COMPLETE and not self.tunnelling:
            last = self._last
            if len(last) < TAIL and self._before:
                last = self._before + last
            result.tail = last[-TAIL:]
            over = over or self._watch.is_over
        self.upstream.end(over=over)
        done, self.done = self.done, None
        if done is not None and not done.done():
            done.set_result(None)
            # After any other end something else may be done to the client in this very call.
            self.client.woken(at_once=outcome is COMPLETE)
