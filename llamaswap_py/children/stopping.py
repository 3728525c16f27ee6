"""How a llama-server is asked to exit: words and signals, in their order, and how often."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.children.process import Process

# A SIGTERM that comes between "listening on" and the main loop is lost (b11434: the handler's
# terminate() is undone by start_loop()), and so is an exit command. In child mode the repeat is
# the first SIGTERM and does no harm; elsewhere the second SIGTERM ends the process at once, which
# must not cut off an exit that is under way and says nothing.
_REPEAT_SECONDS: Final = 0.25
_REPEAT_SECONDS_CHILD_MODE: Final = 0.05
_CLOSE_SECONDS: Final = 0.75


async def ask_to_exit(
    process: Process, patience: float, child_mode: bool, ends: Callable[[], bool]
) -> None:
    """Repeat, for as long as `patience`, what its stop has begun with; `ends`: it says it exits."""
    repeat = _REPEAT_SECONDS_CHILD_MODE if child_mode else _REPEAT_SECONDS
    first, second = min(repeat, patience / 4), min(_CLOSE_SECONDS, patience / 4)
    await asyncio.sleep(first)
    if not ends():
        process.command_exit()
        process.signal(signal.SIGTERM)
    await asyncio.sleep(second)
    process.close_stdin()
    if not ends():
        process.signal(signal.SIGTERM)
    await asyncio.sleep(patience - first - second)
