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
        self._wait: Wait | None = None
        self._when = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_when = 0.0

    def set(self, wait: Wait, delay: float) -> None:
        """Call `expired(wait)` in `delay` seconds, and forget what was awaited before."""
        self._wait = wait
        self._when = self._loop.time() + delay
        if self._timer is None or self._timer_when > self._when:
            self._start()

    def clear(self) -> None:
        """Await nothing."""
        self._wait = None

    def awaits(self, wait: Wait) -> bool:
        """Tell whether this is what is awaited."""
        return self._wait is wait

    @property
    def awaited(self) -> tuple[Wait, float] | None:
        """What is awaited, and until when on the loop's clock."""
        return None if self._wait is None else (self._wait, self._when)

    def close(self) -> None:
        """Await nothing, ever again, and let go of who would be told."""
        self.clear()
        self._expired = _nobody
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._when, self._look)
        self._timer_when = self._when

    def _look(self) -> None:
        self._timer = None
        if self._wait is None:
            return
        if self._when > self._loop.time():
            self._start()
            return
        wait, self._wait = self._wait, None
        self._expired(wait)
