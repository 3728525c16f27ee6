"""Small writes of one turn of the event loop, done together when all that came was read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Outbox:
    """Writes a moment later what is ready now.

    Each write to a socket wakes the process that waits at its other end. Where a turn of the loop
    has many requests or answers, one wake for all of them costs less, and so does the code that
    runs without the kernel's in between. Who is alone is not put off.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        #: requests that were begun at once and are not over
        self.open = 0
        self._waiting: list[tuple[Callable[[bytes], None], bytes]] = []

    def put(self, write: Callable[[bytes], None], data: bytes) -> None:
        """Call `write(data)` before anything else that is asked for from now on.

        It has to look itself whether its connection is open still.
        """
        if not self._waiting:
            if self.open <= 1:
                write(data)
                return
            self._loop.call_soon(self._flush)
        self._waiting.append((write, data))

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for write, data in waiting:
            write(data)
