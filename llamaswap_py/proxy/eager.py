"""A coroutine that was run by hand up to its first wait, and is then a task's."""

from __future__ import annotations

import asyncio
from types import coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

_Result = TypeVar("_Result")


@coroutine
def rest(
    begun: Coroutine[Any, Any, _Result], awaited: Any, *, cancel: bool
) -> Generator[Any, Any, _Result]:
    """Go on with a coroutine that waits for `awaited` until it ends; `cancel` it there instead."""
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
