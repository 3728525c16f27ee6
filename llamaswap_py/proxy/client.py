"""One client connection: bytes in, requests out, answered strictly one after another."""

from __future__ import annotations

import asyncio
import logging
from asyncio.tasks import _enter_task, _leave_task
from typing import TYPE_CHECKING, Final, Protocol, cast

from llamaswap_py.errors import without_frames
from llamaswap_py.proxy.deadline import Wait
from llamaswap_py.proxy.eager import rest
from llamaswap_py.proxy.exchange import NO_HEAD, Exchange, refuse
from llamaswap_py.proxy.incoming import Incoming, Rules
from llamaswap_py.proxy.messages import WireError
from llamaswap_py.proxy.sockets import LARGE, end_output, reset_on_close
from llamaswap_py.tasks.guard import report

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from llamaswap_py.proxy.backpressure import Outbox
    from llamaswap_py.proxy.bodies import Bodies
    from llamaswap_py.proxy.messages import RequestHead, WireErrorRenderer
    from llamaswap_py.proxy.places import Places
    from llamaswap_py.proxy.relay import Relay

logger = logging.getLogger(__name__)

_FULL: Final = (
    "too many connections: this one was closed because lswap had waited longest for its client "
    "- send requests at once and whole, or raise the limit (limits.connections, ulimit -n)"
)
#: After an early refusal: how long a client that goes on sending is heard out, so that it reads
#: the answer and not a reset (RFC 9112 section 9.6).
_LINGER: Final = 2.0


class ListeningServer(Rules, Protocol):
    """The server that a connection belongs to."""

    handler: Callable[[Exchange], Awaitable[None]]
    on_wire_error: WireErrorRenderer
    places: Places
    bodies: Bodies
    outbox: Outbox

    def adopt(
        self, connection: ClientConnection, life: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None] | None:
        """Own a client's task until it ends; None for a client that comes too late."""


class ClientConnection(Incoming):
    """Parses requests, runs the server's handler on one at a time, and watches for the client."""

    _server: ListeningServer

    def __init__(self, server: ListeningServer) -> None:
        super().__init__(server)
        self.outbox = server.outbox
        self.bodies = server.bodies
        self._lost = self._loop.create_future()
        self._task: asyncio.Task[None] | None = None
        self._tunnel: Relay | None = None
        #: the handler of the current request, where it has begun without the task
        self._begun: Coroutine[Any, Any, bool] | None = None
        #: what it waits for; None while it runs, or where the task goes on with it
        self._awaited: asyncio.Future[Any] | None = None
        #: the same, where the task is to go on with it
        self._handed: tuple[asyncio.Future[Any] | None] | None = None
        #: no request is served after the current one
        self._over = False

    # --- protocol interface -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._open(cast("asyncio.Transport", transport))
        self._deadline.set(Wait.IDLE, self._limits.idle)
        if not self._server.places.enter(self):
            self.give_way()
            return
        self._task = self._server.adopt(self, self._run())
        if self._task is None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if len(data) >= LARGE:
            self._input.took_much()
        if self._tunnel is not None:
            self._tunnel.upstream.send(data)
        elif self._waits and (exchange := self._take_known(data)) is not None:
            self._start(exchange)
        elif self._left and not self._held.size:
            self._take_rest(data)
            self._parse_held()  # what follows the body came along with its end
            self._begin()
        elif self._may_parse():
            self._parse(data)
            self._begin()
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
        self._server.places.leave(self)
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

    @property
    def at_once(self) -> bool:
        """The handler has not waited for anything that its task has to wait for."""
        return self._begun is not None and self._handed is None

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
            self.woken()
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

    def claim(self, owner: str) -> bool:
        """A request has shown whose this connection is; False: that one has too many."""
        return self.owner == owner or self._server.places.claim(self, owner)

    def give_way(self) -> None:
        """Close for others: with an answer where one is awaited and none has begun."""
        waiting = self._receiving or self._current
        if self._lost.done() or self.transport.is_closing():
            return
        if waiting is not None and (waiting.response_started or not self.outflow.writable):
            self.abandon()
            return
        if waiting is not None or self._parser.in_head or self._task is None:
            self._refuse(WireError(503, _FULL), waiting)
        self.closed = True
        self.outflow.close()
        self._detach()
        self.last = True
        self.transport.close()
        if self._task is not None:
            self._task.cancel()
        else:
            self._release()

    def retire(self) -> None:
        """Accept no further request: close at once when idle, else after the running answer."""
        self.last = True
        if self._current is None and not self._queue and self._receiving is None:
            self._wake()

    def woken(self, *, at_once: bool = False) -> None:
        """What the handler waits for is here; `at_once`: it goes on in this very call."""
        if self._awaited is None:
            return  # it runs, or its task does
        if at_once and not self.closed:
            self._step()
        else:
            self._hand_over()

    def start_tunnel(self, relay: Relay) -> None:
        """From here on every byte goes to the relay's upstream."""
        self._tunnel = relay
        if self._held.size:
            relay.upstream.send(self._held.take_all())
        self.resume_input()

    def _detach(self) -> None:
        if self._current is not None and self._current.running is not None:
            self._current.running.client_lost()

    # --- requests that have come ---------------------------------------------------------------

    def _take(self, head: RequestHead, whole: bytes | None = None) -> Exchange:
        self._deadline.clear()
        return Exchange(self, head, whole)

    # --- a handler that begins, and may end, without the task ----------------------------------
    #
    # What has not to wait wakes no task, and makes no turn of the event loop. Until its first wait
    # the handler runs as a part of the task, which waits meanwhile: what asks for the current task
    # (a timeout, a task group) finds the one that will go on.

    def _begin(self) -> None:
        """Go on with what has come: in this call where the task waits for it, else in the task."""
        if self._awaited is not None:
            if self._awaited.done():
                self.woken(at_once=True)
            return
        if not self._queue:
            return
        first, arrival = self._queue[0], self._arrival
        if (
            len(self._queue) > 1
            or self._current is not None
            or arrival is None
            or arrival.done()
            or isinstance(first, WireError)
        ):
            self._wake()
            return
        self._queue.clear()
        self._start(first)

    def _start(self, exchange: Exchange) -> None:
        self._waits = False
        self._begun = self._serve(exchange)
        self._step()

    def _step(self) -> None:
        """Run the handler until it waits; for what this connection does not tell, the task does."""
        assert self._begun is not None
        task = self._task
        assert task is not None
        try:
            _enter_task(self._loop, task)
        except RuntimeError:  # it is a task that told this connection
            self._hand_over()
            return
        self._awaited = None
        try:
            awaited = self._begun.send(None)
        except StopIteration as end:
            goes_on = end.value
        except BaseException:
            self._begun = None
            self.abandon()
            raise
        else:
            self._awaited = awaited
            if awaited is None or self._current is None or awaited is not self._current.awaited:
                self._hand_over()
            return
        finally:
            _leave_task(self._loop, task)
        self._begun = None
        self._over = not goes_on
        if (
            self._over
            or self.last
            or self._held.size
            or self._half_closed
            or self._receiving is not None
            or self._parser.in_head
            or not self.outflow.writable
        ):
            self._wake()
        elif not self.closed:
            self._waits = True
            self._deadline.set(Wait.IDLE, self._limits.idle)

    def _hand_over(self) -> None:
        """Let the task go on with the handler."""
        self._handed, self._awaited = (self._awaited,), None
        self._wake()

    # --- one request after another ------------------------------------------------------------

    async def _run(self) -> None:
        """Live with a client; what fails here ends its connection, and no other."""
        try:
            try:
                while (item := await self._next()) is not None:
                    if isinstance(item, WireError):
                        self._refuse(item, None)
                        break
                    if not await item:
                        break
                    await self._share()
                await self._leave()
            finally:
                self._end()
        except Exception as error:
            report("connection", error)
            self.transport.abort()

    def _end(self) -> None:
        self.closed = True
        self._detach()
        if self._begun is not None:
            self._begun.close()
            self._begun = None
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
        self._held.clear()
        # A cancelled task keeps the frames that it was cancelled in, with all that they hold.
        self._task = self._arrival = None
        self._parser.close()

    async def _next(self) -> Awaitable[bool] | WireError | None:
        """Wait for a request to serve, or to go on with; None: there is none after it."""
        while True:
            if self._begun is not None:
                if self._handed is not None:
                    return self._rest(self._handed[0])
            elif self._queue:
                item = self._queue.popleft()
                return item if isinstance(item, WireError) else self._serve(item)
            elif self.closed or self._over or (self.last and self._receiving is None):
                return None
            elif self._held.size:
                self._parse_held()
                self.resume_input()
                continue
            elif not self._await_client():
                return None
            self._arrival = self._loop.create_future()
            try:
                await self._arrival
            except asyncio.CancelledError:
                if self._begun is None:
                    raise
                return self._rest(None, cancel=True)
            self._served = 0

    def _await_client(self) -> bool:
        """Let the client send more, in its time; False: it sends nothing more."""
        self.resume_input()
        if self._half_closed:
            return False
        if self._receiving is not None:
            self._deadline.set(Wait.BODY, self._limits.body_idle)
        elif self._parser.in_head:
            self._await_head()
        else:
            self._deadline.set(Wait.IDLE, self._limits.idle)
        self._waits = not self._parser.in_head and self._receiving is None
        return True

    def _rest(
        self, awaited: asyncio.Future[Any] | None, *, cancel: bool = False
    ) -> Awaitable[bool]:
        """Go on with the handler that has begun, which waits; or cancel it there."""
        begun = self._begun
        assert begun is not None
        self._begun = self._awaited = self._handed = None
        return rest(begun, awaited, cancel=cancel)

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
        intake = exchange.intake
        goes_on = exchange.keep_alive and not self.closed and (intake.complete or intake.discard())
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
