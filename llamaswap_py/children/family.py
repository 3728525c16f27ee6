"""What the kernel shows of a program and the processes it started: their work, their sockets."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

import psutil

from llamaswap_py.children.cgroups import group_of
from llamaswap_py.children.liveness import Work

_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
_SOCKET: Final = "socket:["


def family_of(pid: int) -> list[int]:
    """Return a child's process and all that it started, also in other sessions or groups.

    They are the processes of its cgroup, else those below its keeper (`keeper.py`). If it has
    neither, they are its descendants and the processes of the session that it leads.
    """
    found = {pid: None}
    if (group := group_of(pid)) is not None:
        found |= dict.fromkeys(group.pids())
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        parent = root.parent()
        if parent is not None and parent.ppid() == os.getpid():
            root = parent
        found |= {one.pid: None for one in root.children(recursive=True)}
    found |= {one: None for one in psutil.pids() if _session(one) == pid}
    return list(found)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def work_of(pid: int) -> Work | None:
    """Read /proc/PID/stat and io; None where there is no /proc or the process is gone.

    See proc(5): the fields 14 to 17 of stat are utime, stime, and the same of ended children. They
    are counted from the name's end, because a name may contain blanks.
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
        pass  # only its user may read it
    return Work(ticks * _TICK, fetched)


def work_of_family(pid: int) -> Work | None:
    """Return the work of a process and its descendants; None where the system does not show it."""
    found = [work for one in family_of(pid) if (work := work_of(one)) is not None]
    if not found:
        return None
    return Work(sum(one.cpu for one in found), sum(one.read_bytes for one in found))


def sockets_of(pid: int) -> frozenset[int]:
    """Return the inodes of a process's open sockets. Raises OSError if we may not see them."""
    folder = f"/proc/{pid}/fd"
    found = set()
    for name in os.listdir(folder):
        with suppress(OSError):  # closed meanwhile
            if (link := os.readlink(f"{folder}/{name}")).startswith(_SOCKET):
                found.add(int(link[len(_SOCKET) : -1]))
    return frozenset(found)
