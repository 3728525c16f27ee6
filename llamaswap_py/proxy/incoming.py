"""From a client's bytes to its requests, in their order."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol, cast

from llamaswap_py.proxy.backpressure import Outflow
from llamaswap_py.proxy.deadline import Deadline, Wait
from llamaswap_py.proxy.exchange import Exchange
from llamaswap_py.proxy.messages import WireError
from llamaswap_py.proxy.parsers import RequestParser
from llamaswap_py.proxy.pending import Pending
from llamaswap_py.proxy.principals import of_address
from llamaswap_py.proxy.sockets import Input, client_is_gone, end_output, has_input
from llamaswap_py.units import KIB

if TYPE_CHECKING:
    from llamaswap_py.proxy.head_cache import KnownRequests
    from llamaswap_py.proxy.messages import RequestHead, WireLimits
    from llamaswap_py.proxy.relay import Relay

logger = logging.getLogger(__name__)

#: Requests are parsed in steps of this size, so that few of them wait at a time.
_STEP: Final = 4 * KIB
#: Bytes of pipelined requests that may wait unparsed before the client must.
_HELD_LIMIT: Final = 64 * KIB
#: Bytes of a body in a second that count as if no second had passed.
_PACE: Final = 64 * KIB
#: Seconds by which those that stay for whatever happens go after those that owe something.
_STAYS: Final = 1e9
#: All of a piece.
_ALL: Final = 1 << 60


#: A client that half-closes does so along with its request; one that leaves does it later.
_HALF_CLOSE_WINDOW: Final = 0.05
#: Requests of one connection that are answered in one turn of the loop, and seconds of it.
_IN_ONE_TURN: Final = 16
_ONE_TURN: Final = 0.002


class Rules(Protocol):
    """What a server has for all of its connections."""

    limits: WireLimits
    heads: KnownRequests


class Incoming(asyncio.Protocol):
    """Parses what comes while a request may be taken, and holds back what comes too early."""

    def __init__(self, server: Rules) -> None:
        """Abandon a client that takes nothing of what it is sent for `limits.stall` seconds."""
        self._loop = asyncio.get_running_loop()
        self.transport = cast("asyncio.Transport", None)
        #: the client's address, or "unix"
        self.peer = "unix"
        #: whose connection it is: a key, else the address (proxy/principals.py)
        self.owner = "unix"
        self.closed = False
        self.outflow = Outflow(self._loop, server.limits.stall, self._give_up)
        self._input = Input(self._loop)
        self._half_closed = False
        self._closing = False
        self._last_input = 0.0
        #: requests since this connection gave way to others
        self._served = 0
        self._turn_ends = 0.0
        self._limits = server.limits
        self._deadline = Deadline(self._loop, self._on_deadline)
        self._server = server
        self._parser = RequestParser(self, server.limits)
        self._receiving: Exchange | None = None
        self._current: Exchange | None = None
        self._queue: deque[Exchange | WireError] = deque()
        self._arrival: asyncio.Future[None] | None = None
        #: for the first byte of a request
        self._waits = False
        self._held = Pending()
        #: of a body, found in this step
        self._pieces: list[bytes] = []
        #: what the head that is parsed next begins with
        self._begins = b""
        #: bytes that are left of a body whose head was not parsed
        self._left = 0
        self._broken = self._upgrading = False
        self._body_began = 0.0
        #: no request after the one that was received last
        self.last = False

    def abandon(self) -> None:
        """End the connection and whatever goes on for it."""
        raise NotImplementedError

    def _on_deadline(self, wait: Wait) -> None:
        """What was awaited did not come in time."""
        raise NotImplementedError

    def _give_up(self) -> None:
        logger.info("%s took nothing of its answer for %g s", self.peer, self._limits.stall)
        self.abandon()

    def _open(self, transport: asyncio.Transport) -> None:
        self._input.transport = self.transport = transport
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):
            self.peer = str(name[0])
            self.owner = of_address(self.peer)

    def write(self, data: bytes) -> None:
        """Write unless the client is gone."""
        if not self.closed:
            self.transport.write(data)

    def pause_input(self) -> None:
        """Read no more from the client for now."""
        if not self.closed:
            self._input.pause()

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

    def has_input(self) -> bool:
        """Tell whether the client has sent something that was not read yet."""
        return has_input(self.transport)

    def _is_gone(self) -> bool:
        gone = client_is_gone(self.transport)
        if gone is None:
            return self._loop.time() - self._last_input > _HALF_CLOSE_WINDOW
        return gone

    # --- tunnels ------------------------------------------------------------------------------

    def finish_writing(self) -> bool:
        """The tunnel's other side has ended; False when this side had ended before."""
        if self._half_closed or self.closed:
            return False
        self._closing = True
        self._deadline.set(Wait.CLOSING, self._limits.idle)
        end_output(self.transport)
        return True

    def _tunnel_eof(self, relay: Relay) -> bool:
        if self._closing or self._is_gone():
            relay.client_lost()
            return False
        self._half_closed = True
        self._deadline.set(Wait.CLOSING, self._limits.idle)
        relay.upstream.finish_sending()
        return True

    # --- requests -----------------------------------------------------------------------------

    def resume_input(self) -> None:
        """Read again, unless there is enough to do."""
        if self._held.size <= _HELD_LIMIT and not self.closed and not self._half_closed:
            self._input.resume()

    def _take(self, head: RequestHead, whole: bytes | None = None) -> Exchange:
        """Begin a request whose body follows, or is here in full."""
        raise NotImplementedError

    def _take_known(self, data: bytes) -> Exchange | None:
        """Take a request whose head has come before, without parsing it; None: parse it."""
        found = self._server.heads.read(self.peer, data)
        if found is None:
            return None
        head, start = found
        self._body_began = self._last_input = self._loop.time()
        length = head.content_length or 0
        end = start + length
        if len(data) > end:
            self._held.add(data[end:])
        if len(data) >= end:
            self.last = self.last or not head.keep_alive
            return self._take(head, data[start:end])
        self._receiving = exchange = self._take(head)
        self._left = end - len(data)
        if len(data) > start:
            exchange.intake.add(data[start:])
        return exchange

    def _take_rest(self, data: bytes) -> None:
        """Take what comes of a body that is counted, and hold what follows it."""
        self._last_input = self._loop.time()
        piece = data[: self._left]
        self._left -= len(piece)
        self._pieces.append(piece)
        if self._left:
            self._hand_on()
            return
        self.on_request_complete()
        if len(piece) < len(data):
            self._held.put_back(data[len(piece) :])

    def _wake(self) -> None:
        self._waits = False
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def woken(self, *, at_once: bool = False) -> None:
        """What the handler waits for is here."""
        raise NotImplementedError

    def awaited_since(self) -> float | None:
        """Return since when the client has to do something, None while it is answered.

        A body is awaited from its head on, and for longer the more of it has come.
        """
        current, awaited = self._current, self._deadline.awaited
        if awaited is not None and awaited[0] is not Wait.BODY:
            wait, until = awaited
            return until - (self._limits.head_read if wait is Wait.HEAD else self._limits.idle)
        if self._receiving is not None and (current is None or not current.response_started):
            return self._body_began + self._receiving.intake.received / _PACE
        if current is not None and current.stays:
            return self._body_began + _STAYS
        if current is not None and current.running is not None:
            return None
        if not self.outflow.writable:
            return self.outflow.paused_at
        # It asks so much at once that a place would have to wait for all of it.
        return self._last_input + _STAYS if self._queue or self._held.size else None

    def _may_parse(self) -> bool:
        """Tell whether what comes next is parsed now; what was held comes before it."""
        return not self._held.size and self._is_free()

    def _is_free(self) -> bool:
        if self._receiving is not None:
            return True
        return not self.last and self._current is None and not self._queue

    def _parse(self, data: bytes) -> None:
        self._last_input = self._loop.time()
        waited, self._waits = self._waits, False  # then it was looked for already
        if self._receiving is None and not self._parser.in_head:
            if not waited and (exchange := self._take_known(data)) is not None:
                self._queue.append(exchange)
                return
            self._begins = data
        if self._receiving is not None or len(data) <= _STEP:
            self._feed(data)
            self._await_head()
        else:
            self._held.add(data)
            self._parse_held(data)

    def _parse_held(self, begins: bytes = b"") -> None:
        """Parse what was held, until a request has to be answered first; `begins`: all of it."""
        while self._held.size and self._is_free():
            step = self._held.take(_STEP if self._receiving is None else _ALL)
            if self._receiving is None and not self._parser.in_head:
                self._begins, begins = begins or step, b""
            if not self._feed(step):
                break
        if self._held.size > _HELD_LIMIT:
            self.pause_input()
        self._await_head()

    def _feed(self, data: bytes) -> bool:
        """Parse a step; False: there is nothing to parse after it."""
        if self._left:
            self._take_rest(data)
            return True
        try:
            rest = self._parser.feed(data)
        except WireError as error:
            self._pieces.clear()
            self._break_off(error)
            return False
        if self._pieces:
            self._hand_on()
        if rest is None:
            return True
        self.last = self._upgrading = True
        self._held.put_back(rest)
        return False

    def _await_head(self) -> None:
        """Let the time of a head that has begun run from its first byte."""
        if self._current is not None or self._queue:
            return
        if self._parser.in_head and not self._deadline.awaits(Wait.HEAD):
            self._deadline.set(Wait.HEAD, self._limits.head_read)

    def _hold(self, data: bytes) -> None:
        self._held.add(data)
        if self._held.size > _HELD_LIMIT:
            self.pause_input()

    def _break_off(self, error: WireError) -> None:
        """The client's bytes make no sense from here on: answer what came before, then this."""
        if self.last and self._receiving is None:
            return
        self.last = self._broken = True
        self._held.clear()
        if self._receiving is not None:
            receiving, self._receiving = self._receiving, None
            receiving.intake.fail(error)
        else:
            self._queue.append(error)
        self.woken()
        self._wake()

    def on_request(self, head: RequestHead) -> None:
        begins, self._begins = self._begins, b""
        self._server.heads.note(self.peer, begins, head)
        self._body_began = self._last_input
        self._receiving = self._take(head)
        self._queue.append(self._receiving)

    def on_piece(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def _hand_on(self) -> None:
        """Give the body what this step had of it, in one: its chunks may be of a byte each."""
        pieces, self._pieces = self._pieces, []
        if self._receiving is not None:
            self._receiving.intake.add(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            if self._deadline.awaits(Wait.BODY):
                self._deadline.set(Wait.BODY, self._limits.body_idle)

    def on_request_complete(self) -> None:
        if self._pieces:
            self._hand_on()
        if self._receiving is not None:
            receiving, self._receiving = self._receiving, None
            self.last = self.last or not receiving.head.keep_alive
            receiving.intake.finish()
            if self._current is None and not self._queue:
                # It was answered before its body had come: nobody waits for that any more.
                self._deadline.set(Wait.IDLE, self._limits.idle)
