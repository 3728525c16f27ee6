"""Follows a load from spawned to ready: by the child's log, the kernel's figures, and one request.

A load counts as going on as long as the kernel sees the child read or map more bytes.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import psutil

from llamaswap_py.children.ask import get
from llamaswap_py.children.child_events import ChildProgress, ChildReady, ChildStalled
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.llamacpp.props import read_props
from llamaswap_py.tasks.guard import keep_going

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.children.ask import HttpAnswer
    from llamaswap_py.children.child_events import ChildEvent, ChildSpec


_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Sample:
    """Bytes so far: read by system calls, fetched from disk, resident; the last are mapped ones."""

    rchar: int
    read_bytes: int
    resident: int
    mapped: int


def sample(pid: int) -> Sample | None:
    """Read /proc/PID/io and statm; None where there is no /proc or the process is gone."""
    try:
        with open(f"/proc/{pid}/io", "rb") as file:
            io = dict(line.split(b": ") for line in file.read().splitlines())
        with open(f"/proc/{pid}/statm", "rb") as file:
            pages = [int(field) for field in file.read().split()[1:3]]
        return Sample(int(io[b"rchar"]), int(io[b"read_bytes"]), pages[0] * _PAGE, pages[1] * _PAGE)
    except (OSError, ValueError, KeyError, IndexError):
        return None


def total_size(files: tuple[str, ...]) -> int:
    """Return the bytes of all files together; one that is missing counts nothing."""
    total = 0
    for file in files:
        try:
            total += os.path.getsize(file)
        except OSError:
            continue
    return total


class LoadProgress:
    """Joins the child's own progress with the kernel's figures; knows when a load last moved on.

    Times are the event loop's, in seconds.
    """

    def __init__(self, files: tuple[str, ...], now: float) -> None:
        self._total = total_size(files)
        self._best = Sample(0, 0, 0, 0)
        self.last_sign = now
        self.fraction: float | None = None
        self.stage: str | None = None

    def heard(self, now: float) -> None:
        """Note any line from the child."""
        self.last_sign = now

    def reported(self, fraction: float | None, stage: str | None, now: float) -> None:
        """Note a state line of the child."""
        self.last_sign = now
        self.stage = stage or self.stage
        self._raise_to(fraction)

    def sampled(self, seen: Sample | None, now: float) -> None:
        """Note what the kernel counts; only growth beyond the highest so far is a sign."""
        if seen is None:
            return
        best = self._best
        if (
            seen.rchar > best.rchar
            or seen.read_bytes > best.read_bytes
            or seen.resident > best.resident
        ):
            self.last_sign = now
        self._best = Sample(
            max(seen.rchar, best.rchar),
            max(seen.read_bytes, best.read_bytes),
            max(seen.resident, best.resident),
            max(seen.mapped, best.mapped),
        )
        if self._total:
            moved = max(self._best.rchar, self._best.read_bytes, self._best.mapped)
            self._raise_to(min(0.99, moved / self._total))

    def _raise_to(self, fraction: float | None) -> None:
        if fraction is not None:
            self.fraction = max(self.fraction or 0.0, fraction)


_SAMPLE_SECONDS: Final = 0.2
_ANSWER_SECONDS: Final = 5.0
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.25
_OVERTAKEN_SECONDS: Final = 0.1
# Until a known line says that it is ready, lswap asks for /health: at this interval, not sooner.
_HEALTH_SECONDS: Final = 1.0


class Load:
    """One load; `run` ends when the child is ready. `Child` passes it the child's lines."""

    def __init__(
        self,
        spec: ChildSpec,
        emit: Callable[[ChildEvent], None],
        watched: Callable[[Endpoint], Endpoint] = lambda endpoint: endpoint,
    ) -> None:
        self._spec = spec
        self._emit = emit
        self._watched = watched
        self._loop = asyncio.get_running_loop()
        self._progress = LoadProgress(spec.files, self._loop.time())
        self._told = ChildProgress(None, None)
        self._endpoint = Endpoint(path=spec.socket_path) if spec.socket_path else None
        self._listens = False
        self._info: dict[str, Any] = {}
        self._go = asyncio.Event()
        self._stalled_at: float | None = None
        self._said_ready = asyncio.Event()

    @property
    def said_ready(self) -> bool:
        """Whether child mode's own ready line has come."""
        return self._said_ready.is_set()

    @property
    def stalled(self) -> bool:
        """Whether a stall was reported, and no sign of life has come after it."""
        return self._stalled_at == self._progress.last_sign

    def heard(self) -> None:
        """Note a log line: a sign of life."""
        self._progress.heard(self._loop.time())

    def reported(self, fraction: float | None, stage: str | None) -> None:
        """Note the progress that the child itself reports."""
        self._progress.reported(fraction, stage, self._loop.time())

    def listening(self, endpoint: Endpoint | None) -> None:
        """Note a `listening on` line, unless it names another address than this child's."""
        if self._spec.socket_path is None:
            if endpoint is None or endpoint.path is not None or endpoint.host != "127.0.0.1":
                return
            self._endpoint = self._endpoint or self._watched(endpoint)
        elif endpoint != self._endpoint:
            return
        self._listens = True
        self._check()

    def ready(self, payload: dict[str, Any]) -> None:
        """Note the ready line of child mode."""
        self._info = self._info or payload
        self._said_ready.set()
        self._check()

    def _check(self) -> None:
        if self._endpoint is not None and (self._listens or self.said_ready):
            self._go.set()

    async def run(self, pid: int) -> Endpoint:
        """Wait until it is ready and has answered; report progress, stalls, and then ready, once.

        Returns its endpoint.
        """
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep_going, "load progress", partial(self._watch, pid))
            tasks.start_soon(keep_going, "load progress", partial(self._ask_health, pid))
            await self._go.wait()
            answer = await self._confirm()
            if self._spec.child_mode:  # "listening on" may overtake it, by less than the answer
                with anyio.move_on_after(_OVERTAKEN_SECONDS):
                    await self._said_ready.wait()
            tasks.cancel_scope.cancel()
        props = read_props(answer.json() if answer.status == 200 else {}, self._info)
        assert self._endpoint is not None
        self._emit(
            ChildReady(
                self._endpoint,
                props.slots,
                props.n_ctx,
                props.inputs,
                self._info,
            )
        )
        return self._endpoint

    async def ask(self, path: str, patience: float) -> HttpAnswer:
        """Ask the child something; raises OSError when it does not answer in time."""
        assert self._endpoint is not None
        return await get(self._endpoint, path, patience)

    async def _confirm(self) -> HttpAnswer:
        """Return the first answer that is not "still loading" (503).

        Any other status proves that it serves: /props may ask for the preset's own API key. For a
        child that does not answer, `load_stall` decides.
        """
        assert self._endpoint is not None
        pause = _FIRST_PAUSE
        while True:
            try:
                answer = await get(self._endpoint, "/props", _ANSWER_SECONDS)
            except OSError:
                pass
            else:
                if answer.status != 503:
                    return answer
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _watch(self, pid: int) -> None:
        """Sample the kernel's counters; report stalls, and progress up to five times a second."""
        stall = self._spec.load_stall
        while True:
            await asyncio.sleep(min(_SAMPLE_SECONDS, stall / 4))
            now = self._loop.time()
            progress = self._progress
            progress.sampled(sample(pid), now)
            self._tell_progress()
            if now - progress.last_sign >= stall and not self.stalled:
                self._stalled_at = progress.last_sign
                self._emit(ChildStalled())

    def _tell_progress(self) -> None:
        fraction, stage = self._progress.fraction, self._progress.stage
        told = self._told
        if (
            stage != told.stage
            or (fraction is None) != (told.fraction is None)
            or (fraction or 0.0) - (told.fraction or 0.0) >= 0.005
        ):
            self._told = ChildProgress(fraction, stage)
            self._emit(self._told)

    async def _ask_health(self, pid: int) -> None:
        """Find readiness by `GET /health` = 200, for programs that do not log it."""
        while not self._go.is_set():
            await asyncio.sleep(_HEALTH_SECONDS)
            endpoint = self._endpoint
            if endpoint is None:
                if (found := find_listener(pid)) is None:
                    continue
                endpoint = self._watched(found)
            try:
                answer = await get(endpoint, "/health", _HEALTH_SECONDS)
            except OSError:
                continue
            if answer.status == 200:
                self._endpoint = self._endpoint or endpoint
                self._listens = True
                self._check()


def find_listener(pid: int) -> Endpoint | None:
    """Return the 127.0.0.1 port that a process listens on, None when there is not exactly one."""
    try:
        sockets = psutil.Process(pid).net_connections(kind="tcp4")
    except (psutil.Error, OSError):
        return None
    ports = {s.laddr.port for s in sockets if s.status == psutil.CONN_LISTEN}
    return Endpoint(port=ports.pop()) if len(ports) == 1 else None
