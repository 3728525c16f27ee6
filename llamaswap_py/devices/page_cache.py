"""The page cache: files read into it, and what the kernel says of a file's pages.

A thread reads a file in order, at the lowest disk priority. Nothing is copied: sendfile(2) to
/dev/null makes the kernel read the pages and drop the output. That takes a thirtieth of a second of
CPU per GiB, a fifth of what reading into a buffer takes. Python has no functions for cachestat and
ioprio_set, so they are called by number. If the kernel or a file's permissions refuse a call, the
answer is None or False, not an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from llamaswap_py.storage.regular_files import open_regular

_CACHESTAT: Final = 451
"""On every architecture, since Linux 6.5. Newer kernels tell it only to users with write access."""
_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "loongarch64": 30}
_IOPRIO_WHO_PROCESS: Final = 1
_IDLE: Final = 3 << 13
"""IOPRIO_CLASS_IDLE in include/uapi/linux/ioprio.h."""


class _Range(ctypes.Structure):
    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _Stat(ctypes.Structure):
    """`struct cachestat` of include/uapi/linux/mman.h, in pages."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")
    )


@functools.cache
def _system() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def cached_bytes(descriptor: int, start: int, length: int) -> int | None:
    """Return how many bytes of this range of a file are in the page cache; None if unknown."""
    if sys.platform != "linux":
        return None
    found = _Stat()
    where = _Range(start, length)
    failed = _system().syscall(
        _CACHESTAT, descriptor, ctypes.byref(where), ctypes.byref(found), ctypes.c_uint(0)
    )
    return None if failed else min(int(found.cache) * mmap.PAGESIZE, length)


def read_when_idle() -> bool:
    """Give this thread's disk reads the lowest priority; False if the system refuses."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is None or sys.platform != "linux":
        return False
    return bool(_system().syscall(number, _IOPRIO_WHO_PROCESS, 0, _IDLE) == 0)


WINDOW: Final = 1 << 20
"""Bytes between two checks whether to go on: a hundredth of a second of a slow disk."""
_STRETCH: Final = 32 * WINDOW
"""Bytes between two checks of the room; a part that is in the page cache already is skipped."""


class Reading:
    """Reads `paths` one after the other, until `cancel()` or the first `room()` bytes are there.

    The thread calls `room`, and at its end, whatever the result, `ended`. It is a daemon thread, so
    that a disk that hangs cannot delay the end of lswap. A file that cannot be opened or read is
    skipped: the load that needs it will report it.
    """

    def __init__(
        self, paths: Sequence[str], room: Callable[[], int], ended: Callable[[], None]
    ) -> None:
        self.size = 0
        """The bytes of all files; known soon after the start."""
        self.there = 0
        """How far it has come: the first so many bytes of the files are in the page cache."""
        self.read = 0
        """How many of them were not there before, as far as the kernel tells."""
        self.seconds = 0.0
        self.short = False
        """Whether it ended because the room was used up."""
        self.blind = False
        """Whether the kernel does not tell what is in the page cache: `read` is then too high."""
        self._paths = tuple(paths)
        self._room, self._ended = room, ended
        self._cancelled = False
        self._scratch: memoryview | None = None
        self._thread = threading.Thread(target=self._run, name="lswap-read-ahead", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def cancel(self) -> None:
        """Stop after the window that is being read; `ended` is called then."""
        self._cancelled = True

    def _run(self) -> None:
        began = time.monotonic()
        try:
            read_when_idle()
            self.size = sum(map(_size, self._paths))
            # Without descriptors even /dev/null cannot be opened: nothing is read then.
            with contextlib.suppress(OSError), open(os.devnull, "wb", buffering=0) as nowhere:
                for path in self._paths:
                    with contextlib.suppress(OSError), open_regular(path) as file:
                        self._read_file(file.fileno(), nowhere.fileno())
                    if self._cancelled or self.short:
                        break
        finally:
            self.seconds = time.monotonic() - began
            self._ended()

    def _read_file(self, file: int, nowhere: int) -> None:
        size = os.fstat(file).st_size
        if sys.platform == "linux":
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        starts = range(0, size, _STRETCH)
        # Asked before reading: pages that are being read count as present.
        cached = [cached_bytes(file, at, min(_STRETCH, size - at)) for at in starts]
        self.blind |= None in cached
        for start, there in zip(starts, cached, strict=True):
            length = min(_STRETCH, size - start)
            self._read_stretch(file, nowhere, start, length, length - (there or 0))

    def _read_stretch(self, file: int, nowhere: int, start: int, length: int, missing: int) -> None:
        allowed = self._room() - self.there
        for at in range(start, start + length, WINDOW):
            step = min(WINDOW, start + length - at)
            if self._cancelled or self.short:
                return
            if at + step - start > allowed:
                self.short = True
                return
            if missing:
                self._bring_in(file, nowhere, at, step)
            self.there += step
            self.read += missing * step // length

    def _bring_in(self, file: int, nowhere: int, at: int, length: int) -> None:
        end = at + length
        while at < end:
            try:
                done = os.sendfile(nowhere, file, at, end - at)
            except OSError:  # a file system that cannot splice
                done = self._copy(file, at, end - at)
            if done == 0:  # the file has become shorter
                return
            at += done

    def _copy(self, file: int, at: int, length: int) -> int:
        if self._scratch is None:
            self._scratch = memoryview(bytearray(WINDOW))
        return os.preadv(file, [self._scratch[:length]], at)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
