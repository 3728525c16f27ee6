"""A deadline that can be moved for every request at little cost."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Wait(Enum):
    """What a client connection waits for."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    CLOSING = auto()


#: Access to a member of an Enum calls a function of its class, which is slow in Python 3.11.
IDLE: Final = Wait.IDLE
BODY: Final = Wait.BODY


def _nobody(_: Wait) -> None:
    """Take the place of `expired` after the deadline is closed."""


class Deadline:
    """A time limit for the one thing that a connection waits for.

    To move the deadline costs two assignments. The timer is not cancelled and set again for every
    request: if it fires too early, it is set for the rest of the time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[Wait], None]) -> None:
        self._loop = loop
        self._expired = expired
        #: the present wait; set it to None to end the wait
        self.wait: Wait | None = None
        #: its deadline, on the loop's clock
        self.when = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_when = 0.0

    def set(self, wait: Wait, delay: float) -> None:
        """Call `expired(wait)` in `delay` seconds, instead of an earlier wait."""
        self.wait = wait
        self.when = self._loop.time() + delay
        if self._timer is None or self._timer_when > self.when:
            self._start()

    def close(self) -> None:
        """End the wait for good, and drop the reference to `expired`."""
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
