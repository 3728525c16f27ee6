"""The transport of one client: what goes to it, when it is heard, and whether it is there."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, cast

from .outflow import Outflow
from .sockets import Input, client_is_gone

logger = logging.getLogger(__name__)

#: A client that half-closes does so along with its request; one that leaves does it later.
_HALF_CLOSE_WINDOW: Final = 0.05


class ClientSide(asyncio.Protocol):
    """Knows of bytes, and nothing of requests."""

    def __init__(self, stall: float) -> None:
        """Abandon a client that takes nothing of what it is sent for `stall` seconds."""
        self._loop = asyncio.get_running_loop()
        self.transport = cast("asyncio.Transport", None)
        #: the client's address, or "unix"
        self.peer = "unix"
        self.closed = False
        self.outflow = Outflow(self._loop, stall, self._give_up)
        self._input = Input(self._loop)
        self._half_closed = False
        self._closing = False
        self._last_input = 0.0
        self._stall = stall

    def abandon(self) -> None:
        """End the connection and whatever goes on for it."""
        raise NotImplementedError

    def _give_up(self) -> None:
        logger.info("%s took nothing of its answer for %g s", self.peer, self._stall)
        self.abandon()

    def _open(self, transport: asyncio.Transport) -> None:
        self._input.transport = self.transport = transport
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):
            self.peer = str(name[0])

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

    def _is_gone(self) -> bool:
        gone = client_is_gone(self.transport)
        if gone is None:
            return self._loop.time() - self._last_input > _HALF_CLOSE_WINDOW
        return gone
