"""What the kernel shows of a program and all that it started: their work, their sockets."""

from __future__ import annotations

import contextlib
import os
from typing import Final

import psutil

from llamaswap_py.children.liveness import Work

_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
_SOCKET: Final = "socket:["


def family_of(pid: int) -> list[int]:
    """Return a process, all that descend from it, and all of the session that it leads.

    A process whose parent has ended descends from nobody any more, but is still in its session.
    """
    found = {pid: None}
    with contextlib.suppress(psutil.Error):
        found |= {one.pid: None for one in psutil.Process(pid).children(recursive=True)}
    found |= {one: None for one in psutil.pids() if _session(one) == pid}
    return list(found)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def work_of(pid: int) -> Work | None:
    """Read /proc/PID/stat and io; None where there is no /proc or the process is gone.

    See proc(5): the fields 14 to 17 of stat are utime, stime, and those of children that ended,
    counted from behind the name.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        ticks = sum(map(int, fields[11:15]))
    except (OSError, ValueError, IndexError):
        return None
    fetched = 0
    try:
        with open(f"/proc/{pid}/io", "rb") as file:
            fetched = int(dict(line.split(b": ") for line in file)[b"read_bytes"])
    except (OSError, ValueError, KeyError):
        pass  # not for everybody's eyes
    return Work(ticks * _TICK, fetched)


def work_of_family(pid: int) -> Work | None:
    """Return what a process and all that descend from it have done; None where nobody can know."""
    found = [work for one in family_of(pid) if (work := work_of(one)) is not None]
    if not found:
        return None
    return Work(sum(one.cpu for one in found), sum(one.read_bytes for one in found))


def sockets_of(pid: int) -> frozenset[int]:
    """Return the inodes of the sockets that a process has open. Raises OSError: not for us."""
    folder = f"/proc/{pid}/fd"
    found = set()
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):  # closed meanwhile
            if (link := os.readlink(f"{folder}/{name}")).startswith(_SOCKET):
                found.add(int(link[len(_SOCKET) : -1]))
    return frozenset(found)
