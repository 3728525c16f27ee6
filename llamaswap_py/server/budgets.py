"""Limits for clients: open files and main memory of this process."""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from llamaswap_py.devices.host import read_host

if TYPE_CHECKING:
    from llamaswap_py.config.sections import Limits

_FILES: Final = 65_536
"""Open files to ask for, as the service's unit does. A common limit is 1,024: about 450 streams."""
_KEPT: Final = 64
"""The least number of descriptors that are kept for children, logs, files and lswap itself."""
_EACH: Final = 2
"""Descriptors that a request takes: its own connection, and the one to its child."""
_M_MMAP_THRESHOLD: Final = -3
_MAPPED_FROM: Final = 128 * 1024


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard one, at most to `_FILES`.

    A low soft limit only protects programs that call select(2) with a large descriptor.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # macOS allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def give_memory_back() -> None:
    """Make glibc return the memory of large bodies to the system when their request ends.

    Setting M_MMAP_THRESHOLD to its own default keeps it from growing, mallopt(3). When it grows,
    gigabytes of freed pieces stay with this process, below any small piece still in use.
    """
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)


def most_connections(asked: int | None) -> int:
    """Return how many clients may be connected: the setting, or less if few files may be open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _FILES if soft == resource.RLIM_INFINITY else soft
    room = max((files - max(_KEPT, files // 8)) // _EACH, 8)
    return room if asked is None else min(asked, room)


def most_bodies(limits: Limits) -> int:
    """Return how many bytes of bodies may be in memory; with `auto` at least 4 of the largest."""
    if limits.body_memory is not None:
        return limits.body_memory
    least = 4 * max(limits.body, limits.upload)
    try:
        return max(read_host().total // 8, least)
    except (OSError, ValueError):
        return least
