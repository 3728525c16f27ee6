"""Find and kill the children of a supervisor that died without stopping them.

A process is identified by (pid, start time, boot, pid namespace): no other process can have all
four. lswap acts upon a record only if the supervisor named in it is dead by the same test, and the
caller holds the lock of the record's folder.

Processes that a child started are found by its cgroup, which has a random name of its own. If the
child had no cgroup, they are found by a variable of its environment (`MARK`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import select
import signal
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec
import psutil

from llamaswap_py.children.cgroups import Group, is_ours
from llamaswap_py.children.environment import MARK
from llamaswap_py.children.pidfd import open_pidfd
from llamaswap_py.children.running_lswaps import start_time
from llamaswap_py.storage.regular_files import read_regular

if TYPE_CHECKING:
    from pathlib import Path

VERSION: Final = 1
_DEATH_SECONDS: Final = 2.0
_PAUSE: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRecord:
    """What a restart must know to find a child; one JSON file each.

    `started` and `supervisor_started` are start times as `start_time` gives them. The pids mean
    something only in the same `boot` and pid `namespace`. `cgroup` has the folders of its cgroup,
    `mark` is the value of `MARK` in its environment.
    """

    name: str
    pid: int
    started: int
    binary: str
    supervisor: int
    supervisor_started: int
    boot: str
    namespace: str
    cgroup: tuple[str, ...] = ()
    mark: str = ""
    version: int = VERSION


class _Versioned(msgspec.Struct):
    version: int = VERSION


class SweptHow(Enum):
    """What became of a record."""

    KILLED = "killed"  # its process lived: the group got SIGKILL and is gone
    GONE = "gone"  # nothing to do: no such process any more
    KEPT = "kept"  # it could not be decided, or the process would not die; the record stays


@dataclass(frozen=True, slots=True)
class Swept:
    """One record that the sweep met: what it named, and what was done."""

    record: InstanceRecord
    how: SweptHow


@functools.cache
def boot_id() -> str:
    """Return what changes with every start of the machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return str(int(psutil.boot_time()))


@functools.cache
def pid_namespace() -> str:
    """Return the name of the pid namespace (containers), empty where there is none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def new_record(
    name: str, pid: int, binary: str, cgroup: tuple[str, ...] = (), mark: str = ""
) -> InstanceRecord | None:
    """Return the record of a child of this process; None if it is dead already.

    Pid 0 stands for a cgroup alone.
    """
    started = start_time(pid) if pid else 0
    own = start_time(os.getpid())
    if started is None or own is None:
        return None
    return InstanceRecord(
        name=name,
        pid=pid,
        started=started,
        binary=binary,
        supervisor=os.getpid(),
        supervisor_started=own,
        boot=boot_id(),
        namespace=pid_namespace(),
        cgroup=cgroup,
        mark=mark,
    )


def record_file(folder: Path, name: str) -> Path:
    """Return where the record of instance `name` lies; any name makes a good file name."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return folder / f"{quote(name, safe='')[:60]}-{digest}.json"


def write_record(path: Path, record: InstanceRecord) -> None:
    """Write a record so that a reader sees all of it or nothing. Raises OSError."""
    partial = path.with_suffix(".tmp")
    partial.write_bytes(msgspec.json.encode(record))
    partial.replace(path)


def sweep(folder: Path) -> list[Swept]:
    """Kill what the records of `folder` name, if their supervisor is dead; drop those records.

    The caller holds the lock of that folder. A file that is not a record is removed, and the record
    of a newer release is left to that one.
    """
    swept = [sweep_file(path) for path in sorted(folder.glob("*.json"))]
    for path in folder.glob("*.tmp"):
        _remove(path)
    return [one for one in swept if one is not None]


def sweep_file(path: Path) -> Swept | None:
    """Settle the record in one file, as `sweep` does; it goes with what it names."""
    try:
        content = read_regular(path)
        if msgspec.json.decode(content, type=_Versioned).version > VERSION:
            return None
        record = msgspec.json.decode(content, type=InstanceRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        _remove(path)
        return None
    how = _settle(record)
    if how is not SweptHow.KEPT:
        _remove(path)
    return Swept(record, how)


def _remove(path: Path) -> None:
    """Remove a file; a folder in its place is left, because lswap has not made it."""
    with contextlib.suppress(IsADirectoryError, PermissionError):  # the latter on macOS
        path.unlink(missing_ok=True)


def _settle(record: InstanceRecord) -> SweptHow:
    if record.boot != boot_id():
        return SweptHow.GONE
    if record.namespace != pid_namespace():
        return SweptHow.KEPT  # another container's pids mean nothing here
    if start_time(record.supervisor) == record.supervisor_started:
        return SweptHow.KEPT
    how = _kill(record)
    if record.cgroup and all(map(is_ours, record.cgroup)):
        group = Group(record.cgroup)
        found = bool(group.pids())
        if not group.kill_and_remove(_DEATH_SECONDS):
            return SweptHow.KEPT
        how = SweptHow.KILLED if found else how
    if record.mark:
        return _kill_marked(f"{MARK}={record.mark}".encode(), how)
    return how


def _kill_marked(mark: bytes, how: SweptHow) -> SweptHow:
    """SIGKILL the processes with `mark` in their environment: children inherit it."""
    deadline = time.monotonic() + _DEATH_SECONDS
    while found := [pid for pid in psutil.pids() if _is_marked(pid, mark)]:
        how = SweptHow.KILLED
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return SweptHow.KEPT
        time.sleep(_PAUSE)
    return how


def _is_marked(pid: int, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return mark in file.read().split(b"\0")
    except OSError:  # gone, a zombie, or another user's
        return False


def _kill(record: InstanceRecord) -> SweptHow:
    """SIGKILL the recorded process and its group, and wait until it is gone."""
    if record.pid <= 1 or start_time(record.pid) != record.started:
        return SweptHow.GONE
    with contextlib.ExitStack() as stack:
        descriptor = open_pidfd(record.pid)
        if descriptor is not None:
            stack.callback(os.close, descriptor)
            # Between the check above and the opening, the pid may have changed hands.
            if start_time(record.pid) != record.started:
                return SweptHow.GONE
        try:
            if os.getpgid(record.pid) == record.pid:
                os.killpg(record.pid, signal.SIGKILL)
            else:
                os.kill(record.pid, signal.SIGKILL)
        except ProcessLookupError:
            return SweptHow.GONE
        except PermissionError:
            return SweptHow.KEPT
        return _await_death(record, descriptor)


def _await_death(record: InstanceRecord, descriptor: int | None) -> SweptHow:
    if descriptor is not None:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(_DEATH_SECONDS * 1000)
    else:
        with contextlib.suppress(psutil.Error):
            psutil.Process(record.pid).wait(_DEATH_SECONDS)
    alive = start_time(record.pid) == record.started
    return SweptHow.KEPT if alive else SweptHow.KILLED
