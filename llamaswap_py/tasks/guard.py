"""Runs background work: when it fails, this module reports the failure and begins the work again.

One failure must not end the process, nor stop a part of it for good. So all work that goes on
beside the requests runs here.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from llamaswap_py.errors import without_frames

_T = TypeVar("_T")
_log: Final = logging.getLogger("lswap")
FIRST_PAUSE: Final = 0.5
LAST_PAUSE: Final = 60.0
"""Seconds before work that failed is begun again: twice as long each time, up to this."""
_SAID_AGAIN: Final = 60.0
"""Seconds between two lines of the log about the same failure."""

failures: Counter[str] = Counter()
"""How often each kind of background work has failed, ever: `lswap_task_failures_total`."""
_said: dict[tuple[str, type[BaseException]], tuple[float, int]] = {}


def report(task: str, error: BaseException) -> None:
    """Count a failure of a kind of work, and log it: with its traceback the first time.

    The same failure again is logged once a minute.
    """
    failures[task] += 1
    kind, now = (task, type(error)), time.monotonic()
    at, unsaid = _said.get(kind, (None, 0))
    if at is None:
        _log.error("%s failed; this is a bug, and lswap goes on", task, exc_info=error)
    elif now - at >= _SAID_AGAIN:
        text = "%s failed %d times more: %s: %s"
        _log.error(text, task, unsaid + 1, type(error).__name__, error)
    else:
        _said[kind] = (at, unsaid + 1)
        without_frames(error)
        return
    _said[kind] = (now, 0)


@contextmanager
def reporting(task: str) -> Iterator[None]:
    """Report an exception of the block, and go on after the block."""
    try:
        yield
    except Exception as error:
        report(task, error)


async def contained(task: str, life: Awaitable[_T]) -> _T | None:
    """Await work that is done once; a failure is reported, and returns None."""
    try:
        return await life
    except Exception as error:
        report(task, error)
        return None


async def keep_going(task: str, work: Callable[[], Awaitable[_T]]) -> _T:
    """Do work that goes on until it is cancelled, or returns; begin it again when it fails."""
    loop, pause = asyncio.get_running_loop(), FIRST_PAUSE
    while True:
        began = loop.time()
        try:
            return await work()
        except asyncio.CancelledError as error:
            me = asyncio.current_task()
            if me is None or me.cancelling():
                raise
            report(task, error)  # what it waited for was cancelled, not the work
        except Exception as error:
            report(task, error)
        if loop.time() - began > LAST_PAUSE:
            pause = FIRST_PAUSE
        await asyncio.sleep(pause)
        pause = min(2 * pause, LAST_PAUSE)


def heed(loop: asyncio.AbstractEventLoop) -> None:
    """Report exceptions of the loop's callbacks, of tasks never awaited, and of threads."""

    def from_loop(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is None:
            _log.error("%s", context.get("message"))
        else:
            report("task" if "task" in context or "future" in context else "callback", error)

    def from_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            report("thread", args.exc_value)

    loop.set_exception_handler(from_loop)
    threading.excepthook = from_thread
