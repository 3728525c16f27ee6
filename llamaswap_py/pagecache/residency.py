"""What the kernel says of a file's pages, and the priority of a thread's reads. Plain system calls.

Python has no names for these calls. What a kernel or an owner refuses is None or False, no error.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import sys
from typing import Final

_CACHESTAT: Final = 451
"""On every architecture, since Linux 6.5. Newer ones tell it only to who may write the file."""
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
    """Let this thread's reads from disks wait for everybody else's; False where that cannot be."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is None or sys.platform != "linux":
        return False
    return bool(_system().syscall(number, _IOPRIO_WHO_PROCESS, 0, _IDLE) == 0)
