"""Runs a coroutine by hand until it has to wait, and lets a task continue it then.

A coroutine that does not have to wait needs no task and no turn of the event loop.
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import _enter_task, _leave_task
from types import coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine, Generator

_Result = TypeVar("_Result")


class Eager(Generic[_Result]):
    """Runs one such coroutine at a time, as a part of a task that waits meanwhile.

    Code that asks for the current task (a timeout, a task group) gets the task that will continue
    the coroutine.
    """

    __slots__ = ("_loop", "awaited", "begun", "handed", "result")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        #: the coroutine, until it ends or the task continues it; set it to start one
        self.begun: Coroutine[Any, Any, _Result] | None = None
        #: what it waits for; None while it runs, and when the task continues it
        self.awaited: asyncio.Future[Any] | None = None
        #: what it waited for when it was handed over to the task
        self.handed: tuple[asyncio.Future[Any] | None] | None = None
        #: the result of the last coroutine that ended here
        self.result: _Result | None = None

    def step(self, task: asyncio.Task[Any]) -> bool:
        """Run it until it waits; tell whether it has ended. Raises what it raises."""
        begun = self.begun
        assert begun is not None
        try:
            _enter_task(self._loop, task)
        except RuntimeError:  # another task is running: it has brought what was awaited
            self.hand_over()
            return False
        self.awaited = None
        try:
            awaited = begun.send(None)
        except StopIteration as end:
            self.begun = None
            self.result = end.value
            return True
        except BaseException:
            self.begun = None
            raise
        finally:
            _leave_task(self._loop, task)
        self.awaited = awaited
        if awaited is None:
            self.hand_over()
        return False

    def hand_over(self) -> None:
        """Let the task continue it, with `rest`."""
        self.handed, self.awaited = (self.awaited,), None

    def rest(self, *, cancel: bool = False) -> Awaitable[_Result]:
        """Return an awaitable that continues it to its end, or cancels it with `cancel`."""
        begun, handed = self.begun, self.handed
        assert begun is not None
        self.begun = self.awaited = self.handed = None
        return _rest(begun, None if handed is None else handed[0], cancel=cancel)

    def close(self) -> None:
        """Close the coroutine, if it has not ended."""
        if self.begun is not None:
            self.begun.close()
            self.begun = None


@coroutine
def _rest(
    begun: Coroutine[Any, Any, _Result], awaited: Any, *, cancel: bool
) -> Generator[Any, Any, _Result]:
    error: BaseException | None = asyncio.CancelledError() if cancel else None
    while True:
        if error is None:
            try:
                yield awaited
            except BaseException as thrown:
                error = thrown
        try:
            awaited = begun.send(None) if error is None else begun.throw(error)
        except StopIteration as end:
            result: _Result = end.value
            return result
        finally:
            error = None  # or this frame, and all that it holds, would be left to the collector
