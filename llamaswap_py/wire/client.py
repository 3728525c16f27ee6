"""One client connection: bytes in, requests out, answered strictly one after another."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from ..errors import without_frames
from ..units import KIB
from .client_side import ClientSide
from .deadline import Wait
from .exchange import NO_HEAD, Exchange, refuse
from .messages import WireError
from .repeated import RepeatedRequest
from .requests import RequestParser
from .sockets import LARGE, end_output, reset_on_close

if TYPE_CHECKING:
    from .messages import RequestHead
    from .relay import Relay
    from .server import Server

logger = logging.getLogger(__name__)

#: Requests are parsed in steps of this size, so that few of them wait at a time.
_STEP: Final = 4 * KIB
#: Bytes of pipelined requests that may wait unparsed before the client must.
_HELD_LIMIT: Final = 64 * KIB
#: After an early refusal: how long a client that goes on sending is heard out, so that it reads
#: the answer and not a reset (RFC 9112 section 9.6).
_LINGER: Final = 2.0


class ClientConnection(ClientSide):
    """Parses requests, runs the server's handler on one at a time, and watches for the client."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.limits)
        self._server = server
        self.outbox = server.outbox
        self._lost = self._loop.create_future()
        self._task: asyncio.Task[None] | None = None
        # Requests
        self._parser = RequestParser(self, server.limits)
        self._receiving: Exchange | None = None
        self._current: Exchange | None = None
        self._queue: deque[Exchange | WireError] = deque()
        self._arrival: asyncio.Future[None] | None = None
        #: for the first byte of a request
        self._waits = False
        self._held = b""
        self._repeated = RepeatedRequest()
        self._broken = self._upgrading = False
        #: no request after the one that was received last
        self.last = False
        self._tunnel: Relay | None = None

    # --- protocol interface -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._open(cast("asyncio.Transport", transport))
        self._deadline.set(Wait.IDLE, self._limits.idle)
        self._task = self._server.adopt(self, self._run())
        if self._task is None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if len(data) >= LARGE:
            self._input.took_much()
        if self._tunnel is not None:
            self._tunnel.upstream.send(data)
        elif (
            self._waits
            and (known := self._repeated.known) is not None
            and (request := known.read(data)) is not None
        ):
            self._take_whole(*request)
        elif self._may_parse():
            self._parse(data)
        elif self._upgrading or not self.last:
            self._hold(data)

    def eof_received(self) -> bool:
        if self._tunnel is not None:
            return self._tunnel_eof(self._tunnel)
        if self._current is None and not self._queue:
            return False
        if self._is_gone():
            self.abandon()
            return False
        self._half_closed = True
        if self._receiving is not None:
            self._break_off(WireError(400, "the request body ended early"))
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        # Synchronously: a cancelled task runs one tick later, and the child's bytes may come first.
        self.closed = True
        self._detach()
        self._deadline.close()
        self.outflow.close()
        if not self._lost.done():
            self._lost.set_result(None)
        if self._task is not None and not self._closing:
            self._task.cancel()

    def pause_writing(self) -> None:
        self.outflow.pause(self.transport)
        if self._current is not None and self._current.running is not None:
            self._current.running.upstream.pause()

    def resume_writing(self) -> None:
        self.outflow.resume()
        if self._current is not None and self._current.running is not None:
            self._current.running.upstream.resume()

    # --- for exchanges and the upstream -------------------------------------------------------

    @property
    def answers_last(self) -> bool:
        """The answer to the current request is the last one here."""
        return self.last and not self._queue

    def await_body(self, waiting: bool) -> None:
        """A reader waits for the body, or has what it wanted."""
        if waiting:
            self._deadline.set(Wait.BODY, self._limits.body_idle)
        else:
            self._deadline.clear()

    def abort(self) -> None:
        """End the connection so that the client can tell an answer is not whole."""
        if self.closed:
            return
        self.closed = self._closing = True
        self._detach()
        if self._current is not None and self._current.ends_by_closing:
            reset_on_close(self.transport)
        self.transport.abort()
        if self._receiving is not None:
            self._receiving.intake.fail(WireError(400, "the connection was aborted"))
        self.outflow.close()

    def abandon(self) -> None:
        """End the connection and whatever its handler is doing."""
        if not self.closed:
            self.closed = True
            self.outflow.close()
            self._detach()
            self.transport.abort()
        if self._task is not None:
            self._task.cancel()

    def retire(self) -> None:
        """Accept no further request: close at once when idle, else after the running answer."""
        self.last = True
        if self._current is None and not self._queue and self._receiving is None:
            self._wake()

    def hand_over(self, exchange: Exchange) -> None:
        """Let the handler have an exchange."""
        self._queue.append(exchange)
        self._wake()

    def answered(self, exchange: Exchange) -> None:
        """An exchange that was begun at once is over."""
        self._current = None
        exchange.release()
        self.last = self.last or not exchange.keep_alive
        if self.last or self._held or self._half_closed:
            self._wake()
        elif not self.closed:
            self._waits = True
            self._deadline.set(Wait.IDLE, self._limits.idle)

    def start_tunnel(self, relay: Relay) -> None:
        """From here on every byte goes to the relay's upstream."""
        self._tunnel = relay
        held, self._held = self._held, b""
        if held:
            relay.upstream.send(held)
        self.resume_input()

    def _detach(self) -> None:
        if self._current is not None and self._current.running is not None:
            self._current.running.client_lost()

    # --- from bytes to requests ---------------------------------------------------------------

    def _may_parse(self) -> bool:
        if self._receiving is not None:
            return True
        return not self.last and self._current is None and not self._queue

    def _parse(self, data: bytes) -> None:
        self._last_input = self._loop.time()
        self._waits = False
        if self._receiving is None and not self._parser.in_head:
            known = self._repeated.known
            if known is not None and (request := known.read(data)) is not None:
                self._take_whole(*request)
                return
            self._repeated.expect(data)
        while data:
            if not self._may_parse():
                self._hold(data)
                return
            if self._receiving is not None or len(data) <= _STEP:
                step, data = data, b""
            else:
                step, data = data[:_STEP], data[_STEP:]
            try:
                rest = self._parser.feed(step)
            except WireError as error:
                self._break_off(error)
                return
            if rest is not None:
                self.last = self._upgrading = True
                self._hold(rest + data)
                return
        if self._current is None and not self._queue:
            self._await_head()

    def _await_head(self) -> None:
        """Let the time of a head that has begun run from its first byte."""
        if self._parser.in_head and not self._deadline.awaits(Wait.HEAD):
            self._deadline.set(Wait.HEAD, self._limits.head_read)

    def _hold(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > _HELD_LIMIT:
            self.pause_input()

    def _break_off(self, error: WireError) -> None:
        """The client's bytes make no sense from here on: answer what came before, then this."""
        if self.last and self._receiving is None:
            return
        self.last = self._broken = True
        if self._receiving is not None:
            receiving, self._receiving = self._receiving, None
            receiving.intake.fail(error)
        else:
            self._queue.append(error)
        self._wake()

    def _take(self, head: RequestHead) -> Exchange:
        self._deadline.clear()
        exchange = Exchange(self, head)
        self.hand_over(exchange)
        return exchange

    def _take_whole(self, head: RequestHead, body: bytes) -> None:
        """Take a request that is here in full; begin its answer where nothing has to be awaited."""
        self._last_input = self._loop.time()
        self._deadline.clear()
        exchange = Exchange(self, head, body)
        self.last = self.last or not head.keep_alive
        if self._waits:
            self._waits = False
            self._current = exchange
            if self._server.begin(exchange, body):
                return
            self._current = None
        self.hand_over(exchange)

    def on_request(self, head: RequestHead) -> None:
        self._repeated.note(head)
        self._receiving = self._take(head)

    def on_piece(self, piece: bytes) -> None:
        if self._receiving is not None:
            self._receiving.intake.add(piece)
            if self._deadline.awaits(Wait.BODY):
                self._deadline.set(Wait.BODY, self._limits.body_idle)

    def on_request_complete(self) -> None:
        if self._receiving is not None:
            receiving, self._receiving = self._receiving, None
            self.last = self.last or not receiving.head.keep_alive
            receiving.intake.finish()

    # --- one request after another ------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while (item := await self._next()) is not None:
                if isinstance(item, WireError):
                    self._refuse(item, None)
                    break
                if not await self._serve(item):
                    break
                await self._share()
            await self._leave()
        finally:
            self.closed = True
            self._detach()
            for item in self._queue:
                if isinstance(item, Exchange):
                    item.forsake()
            self._deadline.close()
            self.transport.abort()
            self._release()

    def _release(self) -> None:
        """Let go of every request, so that none is left to the collector: it comes by seldom."""
        for item in (self._current, self._receiving, *self._queue):
            if isinstance(item, Exchange):
                item.release()
        self._current = self._receiving = None
        self._queue.clear()
        self._held = b""
        # A cancelled task keeps the frames that it was cancelled in, with all that they hold.
        self._task = self._arrival = None
        self._parser.close()

    async def _next(self) -> Exchange | WireError | None:
        while not self._queue:
            if self.closed or (self.last and self._receiving is None):
                return None
            held, self._held = self._held, b""
            self.resume_input()
            if held:
                self._parse(held)
                continue
            if self._half_closed:
                return None
            if self._receiving is not None:
                self._deadline.set(Wait.BODY, self._limits.body_idle)
            elif self._parser.in_head:
                self._await_head()
            else:
                self._deadline.set(Wait.IDLE, self._limits.idle)
            self._arrival = self._loop.create_future()
            self._waits = not self._parser.in_head and self._receiving is None
            await self._arrival
            self._served = 0
        return self._queue.popleft()

    def _wake(self) -> None:
        self._waits = False
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def _serve(self, exchange: Exchange) -> bool:
        """Run the handler; tell whether the connection can take another request."""
        self._current = exchange
        try:
            await self._server.handler(exchange)
        except WireError as error:
            self._refuse(error, exchange)
            without_frames(error)
        except Exception as error:
            logger.exception("a handler failed on %r", exchange)
            without_frames(error)
            self._refuse(WireError(500, "internal error"), exchange)
        else:
            if not exchange.response_started:
                self._refuse(WireError(500, "the request was left without an answer"), exchange)
        self._deadline.clear()
        if not exchange.finished:
            self.abort()
        self._current = None
        goes_on = not self.closed and exchange.keep_alive and exchange.intake.discard()
        exchange.release()
        return goes_on

    def _refuse(self, error: WireError, exchange: Exchange | None) -> None:
        """Answer with an error that the handler did not, or could not, answer."""
        refuse(exchange or Exchange(self, NO_HEAD), error, self._server.on_wire_error)

    async def _leave(self) -> None:
        """Close so that the client gets all of the last answer."""
        if self.closed:
            return
        lingers = self._receiving is not None or self._broken
        self._closing = self.last = True
        self._receiving = None
        self.resume_input()
        self._deadline.set(Wait.CLOSING, _LINGER if lingers else self._limits.idle)
        if lingers and not self._half_closed:
            end_output(self.transport)
        else:
            self.transport.close()
        await self._lost

    # --- timeouts -----------------------------------------------------------------------------

    def _on_deadline(self, wait: Wait) -> None:
        match wait:
            case Wait.IDLE:
                self.retire()
            case Wait.HEAD:
                self._break_off(WireError(408, "the request head took too long to arrive"))
            case Wait.BODY:
                self._break_off(WireError(408, "the request body stopped arriving"))
            case Wait.CLOSING:
                self._detach()
                self.transport.abort()
