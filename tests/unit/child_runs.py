"""Run a Child and wait for its events; shared by the tests of children/."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from llamaswap_py.children import (
    Child,
    ChildEvent,
    ChildExited,
    ChildLog,
    ChildReady,
    ChildSpawned,
    ChildSpec,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

E = TypeVar("E")
PATIENCE = 60.0


def make_spec(binary: str, folder: Path, **changes: Any) -> ChildSpec:
    """Return a spec in child mode on a unix socket, with `changes`."""
    fields: dict[str, Any] = {
        "name": "alpha#1",
        "preset": "alpha",
        "epoch": 1,
        "binary": binary,
        "args": ("--alias", "alpha", "--log-jsonl"),
        "env": {},
        "socket_path": str(folder / "1.sock"),
        "child_mode": True,
        "files": (),
        "log_path": None,
        "stop_timeout": 10.0,
        "load_stall": 60.0,
        "liveness": 120.0,
        **changes,
    }
    return ChildSpec(**fields)


class Run:
    """A child that runs in a task, and the events it has told."""

    def __init__(
        self, spec: ChildSpec, on_event: Callable[[ChildEvent], None] | None = None
    ) -> None:
        self.events: list[ChildEvent] = []
        self.logs = ChildLog()
        self.child = Child(spec, on_event or self._take, self.logs)
        self.task: asyncio.Task[ChildExited] | None = None
        self._more = asyncio.Event()

    def _take(self, event: ChildEvent) -> None:
        self.events.append(event)
        self._more.set()

    async def seen(self, kind: type[E]) -> E:
        """Wait for the first event of a kind; fails at once when the child has exited instead."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for event in self.events:
                    if isinstance(event, kind):
                        return event
                ended = [event for event in self.events if isinstance(event, ChildExited)]
                assert not ended, f"it exited instead: {ended}"
                self._more.clear()
                await self._more.wait()

    async def log_line(self, text: str) -> None:
        """Wait for a log line that contains `text`."""
        async with asyncio.timeout(PATIENCE):
            async for line in self.logs.follow(after=0):
                if text in line.text:
                    return

    async def ended(self) -> ChildExited:
        """Wait for the end; exactly one exit was told, last, and it is what run returned."""
        assert self.task is not None
        exited = await asyncio.wait_for(self.task, PATIENCE)
        assert self.events[-1] is exited
        assert [e for e in self.events if isinstance(e, ChildExited)] == [exited]
        assert len([e for e in self.events if isinstance(e, ChildReady)]) <= 1
        for event in self.events:
            if isinstance(event, ChildSpawned):
                assert not exists(f"/proc/{event.pid}")
        assert not (self.child.spec.socket_path and exists(self.child.spec.socket_path))
        return exited


@contextlib.asynccontextmanager
async def running(spec: ChildSpec) -> AsyncIterator[Run]:
    """Run a child for the length of the block; it is gone afterwards."""
    run = Run(spec)
    run.task = asyncio.get_running_loop().create_task(run.child.run())
    try:
        yield run
    finally:
        run.task.cancel()
        await asyncio.wait([run.task])


def exists(path: str) -> bool:
    """Tell whether a path is there; `/proc/PID` is until the process is reaped."""
    return os.path.exists(path)


def alive(pid: int) -> bool:
    """Tell whether a process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody tells us about."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.005)


async def gone(pid: int) -> None:
    """Wait until a process that is not ours to reap is gone."""
    await until(lambda: not alive(pid))


async def file_text(path: Path) -> str:
    """Wait for a file to appear, and return what is in it."""
    await until(path.exists)
    return await anyio.Path(path).read_text()
