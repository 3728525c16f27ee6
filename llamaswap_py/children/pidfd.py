"""Descriptors of processes (pidfd_open(2)), which poll as readable once the process has ended."""

from __future__ import annotations

import os
import sys


def open_pidfd(pid: int) -> int | None:
    """Return a descriptor of a process; None where there are none.

    That is macOS, Linux before 5.3, an old sandbox, a process that is gone, or no more files.
    """
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # Python was built for an older Linux
        return None
