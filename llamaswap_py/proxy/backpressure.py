"""Output to clients: notices a client that does not read, and joins small writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llamaswap_py.tasks.guard import report

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

#: Seconds after which delayed writes should have been done.
_LATE: Final = 0.5


def _nobody() -> None:
    """It is closed."""


class Outflow:
    """Follows the transport's pauses; calls `stalled` if nothing could be written for `limit`.

    A client may read slowly. Only one that reads not a byte for `limit` seconds is given up,
    because it holds a slot of its model for which others may wait.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit: float, stalled: Callable[[], None]
    ) -> None:
        self.writable = True
        #: since when writing is paused, on the loop's clock; 0.0: it is not
        self.paused_at = 0.0
        self._loop = loop
        self._limit = limit
        self._stalled = stalled
        self._closed = False
        self._drained: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def drained(self) -> None:
        """Wait while the client has much unread output."""
        while not self.writable and not self._closed:
            self._drained = self._loop.create_future()
            await self._drained

    def pause(self, transport: asyncio.WriteTransport) -> None:
        """Note that the transport's buffer is full."""
        self.writable = False
        self.paused_at = self._loop.time()
        if not self._closed:
            self._watch(transport)

    def resume(self) -> None:
        """Note that the transport's buffer has drained."""
        self.writable = True
        self._let_go()

    def close(self) -> None:
        """End the watch after the last write, and drop the reference to `stalled`."""
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


class Outbox:
    """Delays writes to the end of a turn of the event loop, to do them together.

    Each write to a socket wakes the process at its other end. If a turn of the loop has many
    requests or answers, it is cheaper to write them one after another: the other process is woken
    once, and the loop's own code is not interrupted by the kernel's. A single write is not delayed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        #: number of running relays
        self.open = 0
        #: when the first delayed write was added, on the loop's clock
        self._since = 0.0
        self._waiting: list[tuple[Callable[[bytes], None], bytes]] = []

    def put(self, write: Callable[[bytes], None], data: bytes) -> None:
        """Call `write(data)` before any callback that is scheduled from now on.

        `write` must check itself whether its connection is still open.
        """
        if not self._waiting:
            if self.open <= 1:
                write(data)
                return
            self._since = self._loop.time()
            self._loop.call_soon(self._flush)
        self._waiting.append((write, data))
        if self._loop.time() - self._since > _LATE:
            self._flush()  # the scheduled call seems to have failed

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for write, data in waiting:
            try:
                write(data)
            except Exception as error:  # it concerns one connection; continue with the others
                report("write", error)
