"""What the kernel shows of a program and the processes that it started: their work, their sockets.

A program that is only the client of another one (`docker run`, `ssh`) does not do the work itself,
so its processor time says nothing. Such a program is recognised by the socket on which lswap asks
it: none of its processes holds that socket.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import psutil

from llamaswap_py.children.liveness import Work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamaswap_py.endpoint import Endpoint

_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
_LISTENS: Final = "0A"  # TCP_LISTEN, include/net/tcp_states.h


def family_of(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    try:
        return [pid, *(one.pid for one in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return [pid]


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


def serves_itself(pid: int, endpoint: Endpoint) -> bool:
    """Tell whether a process of the family holds the socket that listens at `endpoint`."""
    wanted = {f"socket:[{inode}]" for inode in _listening(endpoint)}
    return any(link in wanted for one in family_of(pid) for link in _sockets(one))


def _listening(endpoint: Endpoint) -> Iterator[str]:
    """Yield the inodes of the sockets that listen there (proc_pid_net(5))."""
    if endpoint.path is not None:
        for fields in _table("unix"):
            if fields[-1] == endpoint.path:
                yield fields[6]
        return
    port = f":{endpoint.port:04X}"
    for name in ("tcp", "tcp6"):
        for fields in _table(name):
            if fields[3] == _LISTENS and fields[1].endswith(port):
                yield fields[9]


def _table(name: str) -> Iterator[list[str]]:
    try:
        with open(f"/proc/net/{name}", encoding="utf-8", errors="replace") as file:
            next(file, None)
            yield from (fields for line in file if len(fields := line.split()) > 6)
    except OSError:
        return


def _sockets(pid: int) -> Iterator[str]:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
