"""Counts and names slow turns of the event loop: all requests wait while one turn runs.

While there are requests, a timer of the loop beats: its delay shows how long the loop was busy with
one turn. When a beat is late, a thread looks which function the loop's thread runs, and names it.
Neither slows a turn down. Without requests both rest, and do not wake the processor.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Final

from llamaswap_py.tasks.guard import reporting

_log: Final = logging.getLogger("lswap")
SLOW: Final = 0.02
"""Seconds from which a turn counts as slow."""
_EVERY: Final = 0.01
"""Seconds between two beats: a turn begins up to that long before its beat is late."""
_ROUND: Final = 100
"""Beats between two checks whether there are requests."""
_SAID_AGAIN: Final = 60.0
"""Seconds between two lines of the log about the same name."""
_MOST: Final = 200
"""How many names are counted separately."""
_PACKAGE: Final = __package__.partition(".")[0] + "."
_LOOP: Final = "asyncio.runners"
ELSEWHERE: Final = "elsewhere"
"""The name where none of lswap's code ran: the machine had no processor for it, or stopped it."""


class Turns:
    """Counts the slow turns of one loop. Only `name_of` and the thread run outside the loop."""

    def __init__(self) -> None:
        self.asleep = False
        """Whether `wake` is to be called at the next request."""
        self.slow: Counter[str] = Counter()
        """Slow turns by name: `lswap_slow_turns_total`."""
        self.longest: dict[str, float] = {}
        """Seconds of the longest by name."""
        self._busy: Callable[[], bool] = bool
        self._thread = threading.Thread(target=self._look, name="lswap-turns", daemon=True)
        self._awake = threading.Event()
        self._ended = False
        self._due, self._beats = 0.0, 0
        self._timer: asyncio.TimerHandle | None = None
        self._seen = (0.0, ELSEWHERE)
        """When a late beat was due, and which function ran at that time."""
        self._loop_thread = 0
        self._said: dict[str, float] = {}

    @asynccontextmanager
    async def watched(self, busy: Callable[[], bool]) -> AsyncIterator[None]:
        """Watch the loop that runs here: from a `wake` on, for as long as it is `busy`."""
        self._busy, self._loop_thread = busy, threading.get_ident()
        self._thread.start()
        self.asleep = True
        try:
            yield
        finally:
            self.asleep, self._ended = False, True
            if self._timer is not None:
                self._timer.cancel()
            self._awake.set()

    def wake(self) -> None:
        """Begin to watch, because a request has come."""
        self.asleep, self._beats = False, 0
        self._next(time.monotonic())
        self._awake.set()

    def _next(self, now: float) -> None:
        self._due = now + _EVERY
        self._timer = asyncio.get_running_loop().call_later(_EVERY, self._beat)

    def _beat(self) -> None:
        now = time.monotonic()
        late = now - self._due
        if late >= SLOW:
            with reporting("slow turns"):
                self._record(late)
        self._beats += 1
        if self._beats % _ROUND or self._busy():
            self._next(now)
        else:
            self._timer = None
            self._awake.clear()
            self.asleep = True

    def _record(self, late: float) -> None:
        due, name = self._seen
        if due != self._due or (name not in self.slow and len(self.slow) >= _MOST):
            name = ELSEWHERE
        self.slow[name] += 1
        self.longest[name] = max(self.longest.get(name, 0.0), late)
        now = time.monotonic()
        if now - self._said.get(name, -_SAID_AGAIN) >= _SAID_AGAIN:
            self._said[name] = now
            what = "something outside of lswap:" if name == ELSEWHERE else "one run of"
            text = "all requests waited %.0f ms for %s %s (so far: %d)"
            _log.info(text, late * 1000, what, name, self.slow[name])

    def _look(self) -> None:
        """Name the function that runs when a beat is late; this is the thread's loop."""
        while not self._ended:
            self._awake.wait()
            due, now = self._due, time.monotonic()
            if now - due >= SLOW and self._seen[0] != due:
                frame = sys._current_frames().get(self._loop_thread)
                self._seen = (due, name_of(frame))
                del frame  # or it keeps what its function holds
            time.sleep(max(due + SLOW - now, _EVERY))


def name_of(frame: FrameType | None) -> str:
    """Return the innermost function of lswap's in a stack (`api.extract.read_ask`)."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module == _LOOP:
            break  # the function that started the loop
        if module.startswith(_PACKAGE):
            return f"{module.removeprefix(_PACKAGE)}.{frame.f_code.co_qualname}"
        frame = frame.f_back
    return ELSEWHERE
