"""What goes to a client: whether it takes any more, and for how long it has taken nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


def _nobody() -> None:
    """It is closed."""


class Outflow:
    """Follows the transport's pauses; calls `stalled` when nothing could be written for `limit`.

    A client that reads slowly is let be, whatever its pace: only one that takes not a byte for
    `limit` seconds is given up, because it holds a slot of its model that others wait for.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit: float, stalled: Callable[[], None]
    ) -> None:
        self.writable = True
        #: on the loop's clock, where it is not
        self.paused_at = 0.0
        self._loop = loop
        self._limit = limit
        self._stalled = stalled
        self._closed = False
        self._drained: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def drained(self) -> None:
        """Wait while the client has much to read."""
        while not self.writable and not self._closed:
            self._drained = self._loop.create_future()
            await self._drained

    def pause(self, transport: asyncio.WriteTransport) -> None:
        """The transport's buffer is full."""
        self.writable = False
        self.paused_at = self._loop.time()
        if not self._closed:
            self._watch(transport)

    def resume(self) -> None:
        """The transport's buffer has drained."""
        self.writable = True
        self._let_go()

    def close(self) -> None:
        """Nothing will be written any more: let go of who would be told."""
        self._closed = True
        self._stalled = _nobody
        self._let_go()

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _watch(self, transport: asyncio.WriteTransport) -> None:
        left = transport.get_write_buffer_size()
        self._timer = self._loop.call_later(self._limit, self._look, transport, left)

    def _look(self, transport: asyncio.WriteTransport, left: int) -> None:
        self._timer = None
        if transport.get_write_buffer_size() < left:
            self._watch(transport)
        else:
            self._stalled()
