"""Finds what serves for a program outside of its own processes, and ends it after a stop.

`docker run` only talks to a daemon, and a container may outlive it, with its memory and its name.
So the stop of such a program is over only once its container is gone. lswap ends a process or
container only if it is proven to be this program's: it began after the program, and it has the name
of the program's container, publishes the program's port, or held it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
from typing import TYPE_CHECKING, Final

import psutil

from llamaswap_py.children.containers import (
    ContainerCommand,
    Outside,
    ask_engine,
    began_at,
    find_container,
    find_holder,
    find_publisher,
    read_command,
    read_engine,
    removes,
    words_of,
)
from llamaswap_py.children.family import family_of
from llamaswap_py.children.holders import listening, serves_itself
from llamaswap_py.children.program import accepts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llamaswap_py.children.child_events import ChildSpec
    from llamaswap_py.endpoint import Endpoint

_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_KILLED: Final = 5.0
"""Seconds for a process to end after SIGKILL."""
_TRIES: Final = 3
"""Attempts to remove a container: another process of its engine may be at it."""
_ENGINE: Final = 10.0
"""Seconds that a container engine may take longer than the container that it stops."""


class OutsideSearch:
    """Looks for what one program has outside of its own processes; `found` keeps it.

    Call `begin` when the program runs.
    """

    def __init__(self, spec: ChildSpec, argv: Sequence[str]) -> None:
        self.found: Outside | None = None
        self._env = spec.env
        self._folder = spec.program.cwd if spec.program is not None else None
        self._argv = argv
        self._pid: int | None = None
        self._since = math.inf
        self._endpoint: Endpoint | None = None
        self._inodes: set[int] = set()
        self._forwarded = False
        self._serves_itself = False
        self._words: Sequence[str] = ()
        """The command that runs the container."""

    @property
    def unseen(self) -> bool:
        """Whether another program serves for it, or may begin to, that was not found."""
        return self.found is None and not self._serves_itself

    def begin(self, pid: int) -> None:
        """Note the program's process, and when it began."""
        self._pid, self._since = pid, began_at(pid) or math.inf

    async def look(self, endpoint: Endpoint | None = None) -> None:
        """Look for it, also by the `endpoint` if the program is ready. Call it before a reap."""
        if self._pid is None:
            return
        if endpoint is not None and self._endpoint is None:
            self._endpoint = endpoint
            self._inodes = await asyncio.to_thread(listening, endpoint)
            self._forwarded = not self._inodes and await accepts(endpoint)
            self._serves_itself = await asyncio.to_thread(serves_itself, self._pid, endpoint)
        if not self.unseen:
            return
        found = await self._by_engine(endpoint)
        if found is None and endpoint is not None:
            found = await asyncio.to_thread(find_holder, self._pid, endpoint, self._since)
        if found is not None and await asyncio.to_thread(found.began_after, self._since):
            self.found = found

    async def _by_engine(self, endpoint: Endpoint | None) -> Outside | None:
        command, engine = await asyncio.to_thread(self._commands)
        if command is not None:
            found = await find_container(command, self._env, self._folder)
            if found is not None:
                return found
        if engine and endpoint is not None and endpoint.path is None:
            return await find_publisher(engine, endpoint.port, self._env, self._folder)
        return None

    def _commands(self) -> tuple[ContainerCommand | None, tuple[str, ...]]:
        """Return the command of the program, or of one it started, that runs a container."""
        assert self._pid is not None
        if engine := read_engine(self._argv):
            self._words = self._argv
            return read_command(self._argv), engine
        for pid in family_of(self._pid):
            if engine := read_engine(words := words_of(pid)):
                self._words = words
                return read_command(words), engine
        return None, ()

    # The end

    async def living(self) -> str:
        """Return in words what of it still runs; "" if nothing shows that anything does."""
        found, endpoint = self.found, self._endpoint
        pids = [] if found is None else await asyncio.to_thread(found.pids)
        if pids:
            return await asyncio.to_thread(str, found)
        if endpoint is None:
            return ""
        if self._inodes and not self._inodes.isdisjoint(
            await asyncio.to_thread(listening, endpoint)
        ):
            return f"the program that listens at {endpoint}"
        if self._forwarded and await accepts(endpoint):
            return f"the program that answers at {endpoint}"
        return ""

    async def end(self, patience: float, *, told: bool, say: Callable[[str], None]) -> str:
        """End what still runs, and return what cannot be ended; "" once it is gone.

        It gets SIGTERM and `patience` seconds, unless it was `told` to end already; then SIGKILL.
        """
        steps = [(signal.SIGKILL, _KILLED)]
        if not told:
            steps.insert(0, (signal.SIGTERM, patience))
        for number, seconds in steps:
            if not (left := await self.living()):
                return ""
            if self.found is not None:
                say(f"{left} runs on: lswap ends it ({signal.Signals(number).name})")
                await self._signal(self.found, number, seconds)
            await self._gone_within(seconds)
        return await self.living()

    async def _signal(self, found: Outside, number: signal.Signals, seconds: float) -> None:
        if found.id and found.engine:
            stop = ["stop", "-t", f"{math.ceil(seconds)}"]
            words = stop if number is signal.SIGTERM else ["kill"]
            how = [*found.engine, *words, found.id]
            await ask_engine(how, self._env, self._folder, seconds + _ENGINE)
        await asyncio.to_thread(self._send, found, number)

    def _send(self, found: Outside, number: signal.Signals) -> None:
        """Signal its processes: those of this user that began after the program."""
        for pid in found.pids():
            with contextlib.suppress(OSError, psutil.Error):
                process = psutil.Process(pid)
                ours = bool(found.id) or process.uids().real == os.getuid()
                if ours and process.create_time() >= self._since:
                    process.send_signal(number)

    async def tidy(self) -> None:
        """Remove what is left of a container that ended, if its command says so (`--rm`).

        Podman does it by a process that ended with the client. What is left would have the name.
        """
        engine = read_engine(self._words)
        if self.found is None or not self.found.id or not engine or not removes(self._words):
            return
        known = self.found.id
        inspect = [*engine, "inspect", "--type", "container", "--format", "{{.Id}}", known]
        for _ in range(_TRIES):
            await ask_engine([*engine, "rm", "--force", known], self._env, self._folder)
            if not (await ask_engine(inspect, self._env, self._folder)).strip():
                return
            await asyncio.sleep(_LONGEST_PAUSE)

    async def _gone_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.gone()

    async def gone(self) -> None:
        """Wait until it is gone, however long that takes."""
        pause = _PAUSE
        while await self.living():
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE)
