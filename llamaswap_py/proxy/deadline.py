"""A deadline that is moved for every request, and a timer that is not."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Wait(Enum):
    """What a client connection waits for."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    CLOSING = auto()


def _nobody(_: Wait) -> None:
    """It is closed."""


class Deadline:
    """At most one thing is awaited at a time.

    Moving the deadline away costs two assignments: the timer wakes early and looks again, instead
    of being cancelled and set anew with every request.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[Wait], None]) -> None:
        self._loop = loop
        self._expired = expired
        #: what is awaited; set it to None to await nothing
        self.wait: Wait | None = None
        #: until when, on the loop's clock
        self.when = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_when = 0.0

    def set(self, wait: Wait, delay: float) -> None:
        """Call `expired(wait)` in `delay` seconds, and forget what was awaited before."""
        self.wait = wait
        self.when = self._loop.time() + delay
        if self._timer is None or self._timer_when > self.when:
            self._start()

    def close(self) -> None:
        """Await nothing, ever again, and let go of who would be told."""
        self.wait = None
        self._expired = _nobody
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self.when, self._look)
        self._timer_when = self.when

    def _look(self) -> None:
        self._timer = None
        if self.wait is None:
            return
        if self.when > self._loop.time():
            self._start()
            return
        wait, self.wait = self.wait, None
        self._expired(wait)
