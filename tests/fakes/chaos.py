"""Runs `lswap` in this process with faults of its own: `chaos.py PYTHON -m llamaswap_py ARGS`.

With FAKE_CHAOS=SEED every guarded task and every callback that is named here raises once, at a
random moment, until SIGUSR2 ends the faults. With FAKE_AUDIT=1 it says on stderr which files are
opened on the event loop.
"""

from __future__ import annotations

import asyncio
import os
import random
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from llamaswap_py.tasks import guard

_RANDOM = random.Random(os.environ.get("FAKE_CHAOS", ""))
_AFTER = {"connection_lost", "connection_made", "_on_exit"}
"""What is done before it raises: nothing tells it a second time."""
_over = threading.Event()
"""Set by SIGUSR2: no callback raises any more."""


class ChaosError(Exception):
    """The fault."""


def _say(what: str) -> None:
    sys.stderr.write(f"chaos: {what}\n")


def _end(*_: object) -> None:
    _over.set()
    sys.stderr.write("the chaos is over\n")


def _break_tasks() -> None:
    keep_going, contained = guard.keep_going, guard.contained
    broken: set[str] = set()

    async def keep_going_once_broken(task: str, work: Callable[[], Awaitable[Any]]) -> Any:
        async def first() -> Any:
            if task in broken:
                return await work()
            broken.add(task)
            try:
                async with asyncio.timeout(_RANDOM.uniform(0.1, 3.0)):
                    return await work()
            except TimeoutError:
                _say(task)
                raise ChaosError(task) from None

        return await keep_going(task, first)

    async def contained_once_broken(task: str, life: Awaitable[Any]) -> Any:
        async def first() -> Any:
            result = await life
            if task not in broken:
                broken.add(task)
                _say(task)
                raise ChaosError(task)
            return result

        return await contained(task, first())

    guard.keep_going = keep_going_once_broken
    guard.contained = contained_once_broken


def _break_once(owner: Any, name: str) -> None:
    real, calls, at = getattr(owner, name), [0], _RANDOM.randint(3, 30)

    def broken(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] != at or _over.is_set():
            return real(*args, **kwargs)
        _say(f"{owner.__name__}.{name}")
        if name in _AFTER:
            real(*args, **kwargs)
        raise ChaosError(name)

    setattr(owner, name, broken)


def callbacks() -> dict[type, tuple[str, ...]]:
    """Return what the event loop or another part of lswap calls back, by class."""
    from llamaswap_py.api.app import App
    from llamaswap_py.children.process import Output, Process
    from llamaswap_py.proxy.backpressure import Outbox
    from llamaswap_py.proxy.client import ClientConnection
    from llamaswap_py.proxy.deadline import Deadline
    from llamaswap_py.proxy.sockets import Input
    from llamaswap_py.proxy.upstream import UpstreamConnection
    from llamaswap_py.scheduler import Scheduler
    from llamaswap_py.supervisor.dispatcher import Timer
    from llamaswap_py.supervisor.event_log import EventLog
    from llamaswap_py.supervisor.leases import Leases
    from llamaswap_py.supervisor.supervisor import Supervisor
    from llamaswap_py.tasks.loop_lag import Turns

    protocol = ("connection_made", "data_received", "eof_received", "connection_lost")
    return {
        ClientConnection: protocol,
        UpstreamConnection: (*protocol, "_take_steps"),
        Scheduler: ("handle", "grant_at_once", "finish_at_once", "deadline"),
        Supervisor: ("_carry_out", "_measured"),
        Leases: ("grant", "refuse"),
        EventLog: ("record",),
        Timer: ("_due",),
        App: ("_let_in_again",),
        Outbox: ("_flush",),
        Deadline: ("_look",),
        Input: ("_rested",),
        Turns: ("_beat",),
        Process: ("_on_exit",),
        Output: ("_read",),
    }


def _audit() -> None:
    """Say what the loop's thread opens, once it serves."""
    loops = threading.main_thread()

    def heard(event: str, args: tuple[Any, ...]) -> None:
        if event != "open" or threading.current_thread() is not loops:
            return
        path = args[0]
        if not isinstance(path, str | bytes) or os.fsdecode(path).startswith(
            ("/proc/", "/dev/", "/sys/")
        ):
            return
        if os.fsdecode(path).endswith((".py", ".pyc", ".so")):  # a module's first import
            return
        stack = traceback.extract_stack()
        if any(one.filename.endswith("asyncio/runners.py") for one in stack):
            where = [one for one in stack if "/llamaswap_py/" in one.filename][-3:]
            places = " ".join(f"{os.path.basename(one.filename)}:{one.lineno}" for one in where)
            _say(f"opened {os.fsdecode(path)} at {places}")

    sys.addaudithook(heard)


def main() -> None:
    """Run what follows the interpreter's name on the command line."""
    if os.environ.get("FAKE_CHAOS"):
        signal.signal(signal.SIGUSR2, _end)
        _break_tasks()
        for owner, names in callbacks().items():
            for name in names:
                _break_once(owner, name)
    if os.environ.get("FAKE_AUDIT"):
        _audit()
    del sys.argv[:3]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
