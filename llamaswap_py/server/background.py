"""Background work beside serving: notifications, captures, watching the file, late estimates.

Each starts again if it fails (tasks/guard.py).
"""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from llamaswap_py.api.capture import Captures
from llamaswap_py.scheduler.feasibility import footprint_text
from llamaswap_py.scheduler.lifecycle import State
from llamaswap_py.scheduler.types import PresetId
from llamaswap_py.tasks import guard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from llamaswap_py.api.request import Services
    from llamaswap_py.config.sections import Config
    from llamaswap_py.scheduler.state import SchedulerState
    from llamaswap_py.server import Notifier
    from llamaswap_py.supervisor.reload import Reloader
    from llamaswap_py.supervisor.supervisor import Supervisor

_log: Final = logging.getLogger("lswap")


@asynccontextmanager
async def notifying(notifier: Notifier, supervisor: Supervisor) -> AsyncIterator[None]:
    """Tell the service manager that lswap serves, and keep its status line up to date."""
    async with asyncio.TaskGroup() as tasks:
        notifier.status(status_line(supervisor.scheduler.state))
        notifier.ready()
        tell = partial(notifier.run, lambda: status_line(supervisor.scheduler.state))
        telling = tasks.create_task(guard.keep_going("notifying", tell), name="notifying")
        try:
            yield
        finally:
            telling.cancel()


def status_line(state: SchedulerState) -> str:
    """Return the status line for the service manager."""
    loaded = sum(one.state in (State.READY, State.SLEEPING) for one in state.instances.values())
    requests = len(state.leases) + len(state.waiters)
    plural = "" if requests == 1 else "s"
    return f"{loaded} of {len(state.presets)} models loaded, {requests} request{plural}"


@asynccontextmanager
async def capturing(services: Services, config: Config, name: str) -> AsyncIterator[None]:
    """Store prompts and answers, if the file says so."""
    if config.capture == "off":
        yield
        return
    services.captures = Captures(name, config.log.rotate)
    async with asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(
            guard.keep_going("capture", services.captures.run), name="capture"
        )
        try:
            yield
        finally:
            writing.cancel()


@asynccontextmanager
async def watching(reloader: Reloader) -> AsyncIterator[None]:
    """Reload when the file changes, and on SIGHUP."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:

        def reload() -> None:
            work = guard.contained("reload", reloader.try_reload("SIGHUP"))
            tasks.create_task(work, name="reload")

        loop.add_signal_handler(signal.SIGHUP, reload)
        watching = tasks.create_task(
            guard.keep_going("watching the file", reloader.watch), name="watching the file"
        )
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            watching.cancel()


@asynccontextmanager
async def telling_choices(
    state: SchedulerState, next_estimate: Callable[[], Awaitable[None]], names: Sequence[str]
) -> AsyncIterator[None]:
    """Log what is chosen for these models, which the first lines could not say yet."""
    async with asyncio.TaskGroup() as tasks:
        tell = partial(_tell_choices, state, next_estimate, list(names))
        telling = tasks.create_task(guard.keep_going("telling", tell), name="telling")
        try:
            yield
        finally:
            telling.cancel()


async def _tell_choices(
    state: SchedulerState, next_estimate: Callable[[], Awaitable[None]], waiting: list[str]
) -> None:
    while True:
        for line in take_choices(state, waiting):
            _log.info("%s", line)
        if not waiting:
            return
        await next_estimate()


def take_choices(state: SchedulerState, waiting: list[str]) -> list[str]:
    """Return `NAME: what was chosen; its memory` of models that are estimated by now.

    They leave `waiting`. A model for which nothing was chosen, or that can never fit, has no line
    here: the scheduler logs its refusal.
    """
    lines = []
    for name in list(waiting):
        preset = state.presets.get(PresetId(name))
        if preset is not None and preset.plan.estimating:
            continue
        waiting.remove(name)
        choices = preset.plan.choices if preset is not None else ()
        if choices and choices[0].chosen:
            lines.append(
                f"{name}: {choices[0].chosen}; {footprint_text(choices[0].footprint or {})}"
            )
    return lines
