"""The transport of one client: what goes to it, when it is heard, and whether it is there."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, cast

from llamaswap_py.proxy.backpressure import Outflow
from llamaswap_py.proxy.deadline import Deadline, Wait
from llamaswap_py.proxy.principals import of_address
from llamaswap_py.proxy.sockets import Input, client_is_gone, end_output, has_input

if TYPE_CHECKING:
    from llamaswap_py.proxy.messages import WireLimits
    from llamaswap_py.proxy.relay import Relay

logger = logging.getLogger(__name__)

#: A client that half-closes does so along with its request; one that leaves does it later.
_HALF_CLOSE_WINDOW: Final = 0.05
#: Requests of one connection that are answered in one turn of the loop, and seconds of it.
_IN_ONE_TURN: Final = 16
_ONE_TURN: Final = 0.002


class ClientSide(asyncio.Protocol):
    """Knows of bytes, and nothing of requests."""

    def __init__(self, limits: WireLimits) -> None:
        """Abandon a client that takes nothing of what it is sent for `limits.stall` seconds."""
        self._loop = asyncio.get_running_loop()
        self.transport = cast("asyncio.Transport", None)
        #: the client's address, or "unix"
        self.peer = "unix"
        #: whose connection it is: a key, else the address (proxy/principals.py)
        self.owner = "unix"
        self.closed = False
        self.outflow = Outflow(self._loop, limits.stall, self._give_up)
        self._input = Input(self._loop)
        self._half_closed = False
        self._closing = False
        self._last_input = 0.0
        #: requests since this connection gave way to others
        self._served = 0
        self._turn_ends = 0.0
        self._limits = limits
        self._deadline = Deadline(self._loop, self._on_deadline)

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

    def resume_input(self) -> None:
        """Read again."""
        if not self.closed and not self._half_closed:
            self._input.resume()

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
