"""The life of a client connection: its requests are answered strictly one after another."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, Protocol, cast

from llamaswap_py.errors import without_frames
from llamaswap_py.proxy.backpressure import Outflow
from llamaswap_py.proxy.deadline import BODY, IDLE, Deadline, Wait
from llamaswap_py.proxy.eager import Eager
from llamaswap_py.proxy.exchange import NO_HEAD, Exchange, refuse
from llamaswap_py.proxy.incoming import Incoming
from llamaswap_py.proxy.messages import WireError
from llamaswap_py.proxy.principals import UNIX, of_address
from llamaswap_py.proxy.sockets import (
    LARGE,
    Input,
    client_is_gone,
    end_output,
    has_input,
    reset_on_close,
)
from llamaswap_py.tasks.guard import report
from llamaswap_py.units import KIB

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from llamaswap_py.proxy.backpressure import Outbox
    from llamaswap_py.proxy.bodies import Bodies
    from llamaswap_py.proxy.head_cache import KnownRequests
    from llamaswap_py.proxy.messages import WireErrorRenderer, WireLimits
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


#: Bytes of a body in a second that count as if no second had passed.
_PACE: Final = 64 * KIB
#: Seconds by which those that stay for whatever happens go after those that owe something.
_STAYS: Final = 1e9
#: A client that half-closes does so along with its request; one that leaves does it later.
_HALF_CLOSE_WINDOW: Final = 0.05
#: Requests of one connection that are answered in one turn of the loop, and seconds of it.
_IN_ONE_TURN: Final = 16
_ONE_TURN: Final = 0.002


class ListeningServer(Protocol):
    """The server that a connection belongs to."""

    limits: WireLimits
    heads: KnownRequests
    handler: Callable[[Exchange], Awaitable[None]]
    on_wire_error: WireErrorRenderer
    places: Places
    bodies: Bodies
    outbox: Outbox

    def adopt(
        self, connection: ClientConnection, life: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None] | None:
        """Own a client's task until it ends; None for a client that comes too late."""


class ClientConnection(asyncio.Protocol):
    """Runs the server's handler on one request at a time, and watches for the client.

    Incoming makes requests of the client's bytes, and tells this connection what has come.
    """

    def __init__(self, server: ListeningServer) -> None:
        """Abandon a client that takes nothing of what it is sent for `limits.stall` seconds."""
        self._loop = loop = asyncio.get_running_loop()
        self._server = server
        self._limits = limits = server.limits
        self.outbox = server.outbox
        self.bodies = server.bodies
        self.transport = cast("asyncio.Transport", None)
        #: the client's address, or "unix"
        self.peer = UNIX
        #: whose connection it is: a key, else the address (proxy/principals.py)
        self.owner = UNIX
        self.closed = False
        self.outflow = Outflow(loop, limits.stall, self._give_up)
        self._input = Input(loop)
        self._deadline = Deadline(loop, self._on_deadline)
        self._incoming = Incoming(self, limits, server.heads)
        self._lost = loop.create_future()
        #: runs the handlers of all its requests
        self.task: asyncio.Task[None] | None = None
        #: what the task waits for
        self._arrival: asyncio.Future[None] | None = None
        self._tunnel: Relay | None = None
        #: the handler of the current request, where it has begun without the task
        self._eager: Eager[bool] = Eager(loop)
        #: between two requests, with nothing held: for the first byte of the next one
        self._waits = False
        #: no request is served after the current one
        self._over = False
        self._closing = False
        #: requests since this connection gave way to others
        self._served = 0
        self._turn_ends = 0.0

    # --- protocol interface -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = self._input.transport = cast("asyncio.Transport", transport)
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):
            self.peer = str(name[0])
            self.owner = of_address(self.peer)
        self._deadline.set(IDLE, self._limits.idle)
        if not self._server.places.enter(self):
            self.give_way()
            return
        self.task = self._server.adopt(self, self._run())
        if self.task is None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if len(data) >= LARGE:
            self._input.took_much()
        waits = self._waits
        if waits and (exchange := self._incoming.take_known(data)) is not None:
            self._go_on(exchange)
        elif self._tunnel is not None:
            self._tunnel.upstream.send(data)
        else:
            self._waits = False
            self._incoming.take(data, known=not waits)  # else it was looked for already
            if self._incoming.current is None:
                self._await_head()
            self._begin()

    def eof_received(self) -> bool:
        if self._tunnel is not None:
            return self._tunnel_eof(self._tunnel)
        if self._incoming.idle:
            return False
        if self._is_gone():
            self.abandon()
            return False
        self._incoming.end()
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
        if self.task is not None and not self._closing:
            self.task.cancel()

    def pause_writing(self) -> None:
        self.outflow.pause(self.transport)
        current = self._incoming.current
        if current is not None and current.running is not None:
            current.running.upstream.pause()

    def resume_writing(self) -> None:
        self.outflow.resume()
        current = self._incoming.current
        if current is not None and current.running is not None:
            current.running.upstream.resume()

    # --- what has come ------------------------------------------------------------------------

    def request_begins(self) -> None:
        """A head is complete."""
        self._deadline.wait = None

    def body_came(self) -> None:
        """A piece of a body has come: the next one has its own time."""
        if self._deadline.wait is BODY:
            self._deadline.set(BODY, self._limits.body_idle)

    def body_ended(self) -> None:
        """The body is complete: the client owes no more of it."""
        if self._incoming.idle:
            # It was answered before its body had come: nobody waits for that any more.
            self._deadline.set(IDLE, self._limits.idle)
        elif self._deadline.wait is BODY:
            self._deadline.wait = None

    def broke_off(self) -> None:
        """The client's bytes make no sense: who waits for them is told."""
        self.woken()
        self._wake()

    def _await_head(self) -> None:
        """Let the time of a head that has begun run from its first byte."""
        incoming = self._incoming
        if incoming.current is not None or incoming.queue or not incoming.parser.in_head:
            return
        if self._deadline.wait is not Wait.HEAD:
            self._deadline.set(Wait.HEAD, self._limits.head_read)

    def has_input(self) -> bool:
        """Tell whether the client has sent something that was not read yet."""
        return has_input(self.transport)

    def pause_input(self) -> None:
        """Read no more from the client for now."""
        if not self.closed:
            self._input.pause()

    def resume_input(self) -> None:
        """Read again, unless there is enough to do."""
        incoming = self._incoming
        if not (incoming.full or incoming.ended or self.closed):
            self._input.resume()

    # --- for exchanges and the upstream -------------------------------------------------------

    @property
    def answers_last(self) -> bool:
        """The answer to the current request is the last one here."""
        return self._incoming.last and not self._incoming.queue

    @property
    def at_once(self) -> bool:
        """The handler has not waited for anything that its task has to wait for."""
        return self._eager.begun is not None and self._eager.handed is None

    def write(self, data: bytes) -> None:
        """Write unless the client is gone."""
        if not self.closed:
            self.transport.write(data)

    def await_body(self, waiting: bool) -> None:
        """A reader waits for the body, or has what it wanted."""
        if waiting:
            self._deadline.set(BODY, self._limits.body_idle)
        else:
            self._deadline.wait = None

    def abort(self) -> None:
        """End the connection so that the client can tell an answer is not whole."""
        if self.closed:
            return
        self.closed = self._closing = True
        self._detach()
        current, receiving = self._incoming.current, self._incoming.receiving
        if current is not None and current.ends_by_closing:
            reset_on_close(self.transport)
        self.transport.abort()
        if receiving is not None:
            receiving.intake.fail(WireError(400, "the connection was aborted"))
            self.woken()
        self.outflow.close()

    def _give_up(self) -> None:
        logger.info("%s took nothing of its answer for %g s", self.peer, self._limits.stall)
        self.abandon()

    def abandon(self) -> None:
        """End the connection and whatever its handler is doing."""
        if not self.closed:
            self.closed = True
            self.outflow.close()
            self._detach()
            self.transport.abort()
        if self.task is not None:
            self.task.cancel()

    def _detach(self) -> None:
        current = self._incoming.current
        if current is not None and current.running is not None:
            current.running.client_lost()

    # --- for the places -----------------------------------------------------------------------

    def claim(self, owner: str) -> bool:
        """A request has shown whose this connection is; False: that one has too many."""
        return self.owner == owner or self._server.places.claim(self, owner)

    def awaited_since(self) -> float | None:
        """Return since when the client has to do something, None while it is answered.

        A body is awaited from its head on, and for longer the more of it has come.
        """
        incoming, deadline = self._incoming, self._deadline
        current = incoming.current
        if deadline.wait is not None and deadline.wait is not BODY:
            head = deadline.wait is Wait.HEAD
            return deadline.when - (self._limits.head_read if head else self._limits.idle)
        if incoming.receiving is not None and (current is None or not current.response_started):
            return incoming.body_began + incoming.receiving.intake.received / _PACE
        if current is not None and current.stays:
            return incoming.body_began + _STAYS
        if current is not None and current.running is not None:
            return None
        if not self.outflow.writable:
            return self.outflow.paused_at
        # It asks so much at once that a place would have to wait for all of it.
        return incoming.last_input + _STAYS if incoming.queue or incoming.held.size else None

    def give_way(self) -> None:
        """Close for others: with an answer where one is awaited and none has begun."""
        waiting = self._incoming.receiving or self._incoming.current
        if self._lost.done() or self.transport.is_closing():
            return
        if waiting is not None and (waiting.response_started or not self.outflow.writable):
            self.abandon()
            return
        if waiting is not None or self._incoming.parser.in_head or self.task is None:
            self._refuse(WireError(503, _FULL), waiting)
        self.closed = True
        self.outflow.close()
        self._detach()
        self._incoming.take_no_more()
        self.transport.close()
        if self.task is not None:
            self.task.cancel()
        else:
            self._release()

    def retire(self) -> None:
        """Accept no further request: close at once when idle, else after the running answer."""
        incoming = self._incoming
        incoming.take_no_more()
        if incoming.current is None and not incoming.queue and incoming.receiving is None:
            self._wake()

    # --- tunnels ------------------------------------------------------------------------------

    def start_tunnel(self, relay: Relay) -> None:
        """From here on every byte goes to the relay's upstream."""
        self._tunnel = relay
        if self._incoming.held.size:
            relay.upstream.send(self._incoming.held.take_all())
        self.resume_input()

    def finish_writing(self) -> bool:
        """The tunnel's other side has ended; False when this side had ended before."""
        if self._incoming.ended or self.closed:
            return False
        self._closing = True
        self._deadline.set(Wait.CLOSING, self._limits.idle)
        end_output(self.transport)
        return True

    def _tunnel_eof(self, relay: Relay) -> bool:
        if self._closing or self._is_gone():
            relay.client_lost()
            return False
        self._incoming.end()
        self._deadline.set(Wait.CLOSING, self._limits.idle)
        relay.upstream.finish_sending()
        return True

    def _is_gone(self) -> bool:
        gone = client_is_gone(self.transport)
        if gone is None:
            return self._loop.time() - self._incoming.last_input > _HALF_CLOSE_WINDOW
        return gone

    # --- a handler that begins, and may end, without the task ----------------------------------

    def woken(self, *, at_once: bool = False) -> None:
        """What the handler waits for is here; `at_once`: it goes on in this very call."""
        if self._eager.awaited is None:
            return  # it runs, or its task does
        if at_once and not self.closed:
            self._go_on()
        else:
            self._eager.hand_over()
            self._wake()

    def _begin(self) -> None:
        """Go on with what has come: in this call where the task waits for it, else in the task."""
        awaited = self._eager.awaited
        if awaited is not None:
            if awaited.done():
                self.woken(at_once=True)
            return
        queue, arrival = self._incoming.queue, self._arrival
        if not queue:
            return
        first = queue[0]
        if (
            len(queue) > 1
            or self._incoming.current is not None
            or arrival is None
            or arrival.done()
            or isinstance(first, WireError)
        ):
            self._wake()
            return
        queue.clear()
        self._go_on(first)

    def _go_on(self, begins: Exchange | None = None) -> None:
        """Run the handler until it waits; for what this connection does not tell, the task does."""
        eager, incoming = self._eager, self._incoming
        if begins is not None:
            self._waits = False
            self._deadline.wait = None
            eager.begun = self._serve(begins)
        assert self.task is not None
        try:
            ended = eager.step(self.task)
        except BaseException:
            self.abandon()
            raise
        if not ended:
            current = incoming.current
            if eager.handed is None and (current is None or eager.awaited is not current.awaited):
                eager.hand_over()
            if eager.handed is not None:
                self._wake()
            return
        self._over = not eager.result
        if (
            self._over
            or not (incoming.calm or incoming.is_empty)
            or self._input.off
            or not self.outflow.writable
        ):
            self._wake()
        elif not self.closed:
            self._waits = True
            self._deadline.set(IDLE, self._limits.idle)

    def _wake(self) -> None:
        self._waits = False
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

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
        self._eager.close()
        self._deadline.close()
        self.transport.abort()
        self._release()

    def _release(self) -> None:
        self._incoming.close()
        # A cancelled task keeps the frames that it was cancelled in, with all that they hold.
        self.task = self._arrival = None

    async def _next(self) -> Awaitable[bool] | WireError | None:
        """Wait for a request to serve, or to go on with; None: there is none after it."""
        incoming, eager = self._incoming, self._eager
        while True:
            if eager.begun is not None:
                if eager.handed is not None:
                    return eager.rest()
            elif incoming.queue:
                item = incoming.queue.popleft()
                return item if isinstance(item, WireError) else self._serve(item)
            elif self.closed or self._over or (incoming.last and incoming.receiving is None):
                return None
            elif incoming.held.size:
                incoming.parse_held()
                self._await_head()
                self.resume_input()
                continue
            elif not self._await_client():
                return None
            self._arrival = self._loop.create_future()
            try:
                await self._arrival
            except asyncio.CancelledError:
                if eager.begun is None:
                    raise
                return eager.rest(cancel=True)
            self._served = 0

    async def _share(self) -> None:
        """Let the others have their turn, and a client that sends much read its answers."""
        self._served += 1
        now = time.monotonic()
        if self._served == 1:
            self._turn_ends = now + _ONE_TURN
        elif self._served >= _IN_ONE_TURN or now > self._turn_ends:
            self._served = 0
            await asyncio.sleep(0)
        if not self.outflow.writable:
            await self.outflow.drained()

    def _await_client(self) -> bool:
        """Let the client send more, in its time; False: it sends nothing more."""
        incoming = self._incoming
        self.resume_input()
        if incoming.ended:
            return False
        if incoming.receiving is not None:
            self._deadline.set(BODY, self._limits.body_idle)
        elif incoming.parser.in_head:
            self._await_head()
        else:
            self._deadline.set(IDLE, self._limits.idle)
            self._waits = True
        return True

    async def _serve(self, exchange: Exchange) -> bool:
        """Run the handler; tell whether the connection can take another request."""
        incoming = self._incoming
        incoming.current = exchange
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
        self._deadline.wait = None
        if not exchange.finished:
            self.abort()
        incoming.current = None
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
        incoming = self._incoming
        lingers = incoming.receiving is not None or incoming.broken
        self._closing = True
        incoming.take_no_more()
        incoming.receiving = None
        self.resume_input()
        self._deadline.set(Wait.CLOSING, _LINGER if lingers else self._limits.idle)
        if lingers and not incoming.ended:
            end_output(self.transport)
        else:
            self.transport.close()
        await self._lost

    # --- timeouts -----------------------------------------------------------------------------

    def _on_deadline(self, wait: Wait) -> None:
        """What was awaited did not come in time."""
        match wait:
            case Wait.IDLE:
                self.retire()
            case Wait.HEAD:
                self._incoming.break_off(WireError(408, "the request head took too long to arrive"))
            case Wait.BODY:
                self._incoming.break_off(WireError(408, "the request body stopped arriving"))
            case Wait.CLOSING:
                self._detach()
                self.transport.abort()
