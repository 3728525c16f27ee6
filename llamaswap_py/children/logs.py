"""The output of a child: the last lines in memory for followers, and a file that blocks nothing."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from llamaswap_py.tasks.threads import Workers
from llamaswap_py.units import MIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path


_LONGEST_FILE_NAME: Final = 240
"""Bytes; file systems take 255, and `.log.1` follows."""


def log_name(preset: str) -> str:
    """Model ids may hold slashes and colons, and be longer than the name of a file."""
    name = "".join(char if char.isalnum() or char in "-_." else "_" for char in preset)
    if len(name.encode()) <= _LONGEST_FILE_NAME:
        return name
    digest = hashlib.sha256(preset.encode()).hexdigest()[:16]
    return name.encode()[: _LONGEST_FILE_NAME - 17].decode(errors="ignore") + f"-{digest}"


_FLUSH_BYTES: Final = 64 * 1024
_FLUSH_SECONDS: Final = 0.25
_PENDING_LIMIT: Final = 4 * MIB
_WRITERS: Final = Workers(4, "lswap-logs")
"""Threads for log files alone: a disk that hangs holds up only the logs on it."""
_KEPT: Final = 3
"""How many files that were set aside are kept."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line with its number, from 1 and never used again. `str()` is the text."""

    number: int
    text: str

    def __str__(self) -> str:
        return self.text


class ChildLog:
    """The last lines, at most `capacity` of them and `max_bytes` characters in all.

    It may outlive a child and take the next one's lines too. Followers read at their own pace. A
    slow one misses lines, and is told how many; it never slows the writer down.
    """

    def __init__(self, capacity: int = 2000, max_bytes: int = MIB) -> None:
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._lines: deque[LogLine] = deque()
        self._size = 0
        self._next = 1
        self._closed = False
        self._waiters: list[asyncio.Future[None]] = []

    def append(self, text: str) -> None:
        """Add one line; the oldest give way."""
        self._lines.append(LogLine(self._next, text))
        self._next += 1
        self._size += len(text)
        while len(self._lines) > self._capacity or (
            self._size > self._max_bytes and len(self._lines) > 1
        ):
            self._size -= len(self._lines.popleft().text)
        if self._waiters:
            self._wake()

    def extend(self, texts: Iterable[str]) -> None:
        """Add lines in their order."""
        for text in texts:
            self.append(text)

    def tail(self, count: int) -> list[LogLine]:
        """Return the last `count` lines, oldest first."""
        return list(islice(self._lines, max(0, len(self._lines) - count), None))

    def close(self) -> None:
        """End all followers once they have read the lines that are there."""
        self._closed = True
        self._wake()

    async def follow(self, after: int | None = None) -> AsyncIterator[LogLine]:
        """Yield the lines after number `after` (None: only new ones) as they come, until `close`.

        One line replaces those that a follower missed, and says how many they were. Its number is
        that of the last one missed.
        """
        position = self._next if after is None else after + 1
        while True:
            first = self._next - len(self._lines)
            if position < first:
                yield LogLine(first - 1, f"[{first - position} lines skipped]")
                position = first
            elif position < self._next:
                line = self._lines[position - first]
                position += 1
                yield line
            elif self._closed:
                return
            else:
                await self._more()

    async def _more(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class LogFile:
    """Append raw output to a file from a worker thread; `run` is the coroutine that does it.

    A disk that is full or slow never stops the child: what does not fit into 4 MiB of memory is
    dropped. The child's own log gets one line when writing begins to fail, and one when it works
    again. A file that has reached `rotate` bytes becomes PATH.1, and PATH.1 becomes PATH.2, …
    """

    def __init__(self, path: Path, rotate: int | None = None) -> None:
        self._path = path
        self._rotate = rotate
        self._pending: list[bytes] = []
        self._size = 0
        self._dropped = 0
        self._more = asyncio.Event()
        self._full = asyncio.Event()
        self._failing = False

    def write(self, data: bytes) -> None:
        """Take `data`; it reaches the file within about 0.25 s."""
        if self._size + len(data) > _PENDING_LIMIT:
            self._dropped += len(data)
            return
        self._pending.append(data)
        self._size += len(data)
        self._more.set()
        if self._size >= _FLUSH_BYTES:
            self._full.set()

    async def run(self, log: ChildLog) -> None:
        """Write until cancelled; call `flush` afterwards for the rest."""
        while True:
            await self._more.wait()
            try:
                async with asyncio.timeout(_FLUSH_SECONDS):
                    await self._full.wait()
            except TimeoutError:
                pass
            await self.flush(log)

    async def flush(self, log: ChildLog) -> None:
        """Write what is pending; trouble becomes a line of `log`, once."""
        self._more.clear()
        self._full.clear()
        if not self._pending:
            return
        data = b"".join(self._pending)
        if self._dropped:
            data += b"[%d bytes of output dropped: the disk was too slow]\n" % self._dropped
        self._pending.clear()
        self._size = self._dropped = 0
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(_WRITERS, _append, self._path, data, self._rotate)
        except OSError as error:
            if not self._failing:
                log.append(f"[log file {self._path}: {error.strerror}; it will lack lines]")
            self._failing = True
        else:
            if self._failing:
                log.append(f"[log file {self._path} is written again]")
            self._failing = False


def _append(path: Path, data: bytes, rotate: int | None) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, flags, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        status = os.fstat(fd)
    finally:
        os.close(fd)
    if rotate is not None and status.st_size >= rotate and stat.S_ISREG(status.st_mode):
        with suppress(OSError):  # a folder that takes no new names: the file goes on growing
            _set_aside(path)


def _set_aside(path: Path) -> None:
    """Rename PATH.2 to PATH.3, PATH.1 to PATH.2, PATH to PATH.1; what was PATH.3 is lost."""
    for number in range(_KEPT, 0, -1):
        older = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        with suppress(FileNotFoundError):
            os.replace(older, path.with_name(f"{path.name}.{number}"))
