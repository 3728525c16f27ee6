"""What goes out: whether a client takes any more, and small writes that are done together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llamaswap_py.tasks.guard import report

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

#: Seconds after which writes that were put off should have been done.
_LATE: Final = 0.5


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


class Outbox:
    """Writes a moment later what is ready now.

    Each write to a socket wakes the process that waits at its other end. Where a turn of the loop
    has many requests or answers, one wake for all of them costs less, and so does the code that
    runs without the kernel's in between. Who is alone is not put off.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        #: relays that are not over
        self.open = 0
        #: when the first of those that wait was put here, on the loop's clock
        self._since = 0.0
        self._waiting: list[tuple[Callable[[bytes], None], bytes]] = []

    def put(self, write: Callable[[bytes], None], data: bytes) -> None:
        """Call `write(data)` before anything else that is asked for from now on.

        It has to look itself whether its connection is open still.
        """
        if not self._waiting:
            if self.open <= 1:
                write(data)
                return
            self._since = self._loop.time()
            self._loop.call_soon(self._flush)
        self._waiting.append((write, data))
        if self._loop.time() - self._since > _LATE:
            self._flush()  # that call has failed

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for write, data in waiting:
            try:
                write(data)
            except Exception as error:  # of one connection; the others get theirs
                report("write", error)
