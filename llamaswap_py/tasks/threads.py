"""Daemon threads for calls that block: the process can end without waiting for them.

The interpreter waits for threads of `concurrent.futures` at its end. One that waits for a disk that
hangs would keep lswap running after SIGTERM.
"""

from __future__ import annotations

import errno
import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_T = TypeVar("_T")
_LAST: Final = 1.0
"""Seconds that shutdown() waits for what has begun."""
_PATIENCE: Final = 1.0


class Workers(ThreadPoolExecutor):
    """Up to `count` daemon threads, made as they are needed; usable as a loop's executor.

    It is a subclass of ThreadPoolExecutor because an event loop accepts only that as its executor.
    It uses none of its code.
    """

    def __init__(self, count: int, name: str) -> None:
        super().__init__(count, name)
        self._most, self._name = count, name
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._jobs = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._started: list[threading.Thread] = []
        self._open = 0
        """Jobs that have not ended."""
        self._ended = False

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Run a call in a thread soon; raises RuntimeError after shutdown()."""
        future: Future[_T] = Future()
        with self._guard:
            if self._ended:
                raise RuntimeError("these threads were told to end")
            self._open += 1
            self._jobs.put((future, partial(fn, *args, **kwargs)))
            if self._open > len(self._started) < self._most:
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._started.append(thread)
                thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs; with `wait`, give those that have begun a second to end."""
        with self._guard:
            self._ended = True
            if cancel_futures:
                self._cancel_waiting()
            for _ in self._started:
                self._jobs.put(None)
        until = time.monotonic() + _LAST
        for thread in self._started if wait else ():
            thread.join(max(until - time.monotonic(), 0))

    def _cancel_waiting(self) -> None:
        try:
            while job := self._jobs.get_nowait():
                job[0].cancel()
        except queue.Empty:
            pass

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, call = job
            if future.set_running_or_notify_cancel():
                try:
                    result = call()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            with self._guard:
                self._open -= 1
            del job, future, call  # what they hold may go while this thread waits


class PatientDisk:
    """Runs short calls on a disk that may hang, in order.

    A caller waits for each call, a second at most. While one call hangs, further callers do not
    wait at all; their calls are done when the disk answers again.
    """

    def __init__(self, name: str) -> None:
        self._threads = Workers(1, name)
        self._hangs: Future[Any] | None = None

    def __call__(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Return what a call returns; raise what it raises, or OSError if the disk hangs."""
        job = self._threads.submit(call, *args, **kwargs)
        waits = self._hangs is None or self._hangs.done()
        try:
            return job.result(_PATIENCE if waits else 0)
        except TimeoutError:
            self._hangs = job
            raise TimeoutError(errno.ETIMEDOUT, "the disk does not answer") from None
