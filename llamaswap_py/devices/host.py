"""Host memory: its total, what is free, what a process holds. From /proc and cgroups, else psutil.

Every function takes the root of the file system, so that tests can give one of their own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import psutil

ROOT: Final = Path("/")
INITIAL_PID_NAMESPACE: Final = "pid:[4026531836]"
"""PROC_PID_INIT_INO of the kernel's include/linux/proc_ns.h."""


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes of host memory: of the machine, or of the tightest cgroup around this process.

    `available` is what can be allocated without swapping; the kernel may drop page cache for it.
    """

    total: int
    available: int


@dataclass(frozen=True, slots=True)
class _Flavour:
    """The files of a version of cgroups with its figures, and which pages it can drop."""

    limits: tuple[str, ...]
    usage: str
    droppable: frozenset[str]
    mapped: str


# memory.high throttles long before memory.max kills: nothing can be loaded beyond it.
_V2: Final = _Flavour(
    ("memory.max", "memory.high"),
    "memory.current",
    frozenset({"active_file", "inactive_file", "slab_reclaimable"}),
    "file_mapped",
)
_V1: Final = _Flavour(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    frozenset({"total_active_file", "total_inactive_file"}),
    "total_mapped_file",
)


def read_host(root: Path = ROOT) -> HostMemory:
    """Return the memory this process may use; raises OSError or ValueError if unreadable.

    The limits of all cgroups from our own up to the root count, because nothing below can exceed a
    limit above (the kernel's cgroup-v2.rst). The tightest bounds the total, each bounds what is
    free.
    """
    total, available = _read_machine(root)
    for group, flavour, limit in _limited_groups(root, total):
        available = min(available, limit - _held(group, flavour))
        total = min(total, limit)
    return HostMemory(total, max(available, 0))


def read_cache_room(root: Path = ROOT) -> int:
    """Return the bytes that files may take in the page cache without pushing mapped ones out.

    That is available memory without the file pages that processes have mapped. The kernel could
    drop those, but they would be read again at once. Raises OSError or ValueError if unreadable.
    """
    total, room = _read_machine(root)
    with contextlib.suppress(FileNotFoundError):
        room -= _read_table(root / "proc/meminfo").get("Mapped", 0) * 1024
    for group, flavour, limit in _limited_groups(root, total):
        mapped = _read_table(group / "memory.stat").get(flavour.mapped, 0)
        room = min(room, limit - _held(group, flavour) - mapped)
    return max(room, 0)


def read_host_total(root: Path = ROOT) -> tuple[int, str]:
    """Return (bytes, source): the machine's memory, or less where a cgroup limits it."""
    machine, _ = _read_machine(root)
    limit = min((limit for _, _, limit in _limited_groups(root, machine)), default=machine)
    return limit, "cgroup" if limit < machine else "psutil"


def _read_machine(root: Path) -> tuple[int, int]:
    try:
        rows = _read_table(root / "proc/meminfo")
        return rows["MemTotal"] * 1024, rows["MemAvailable"] * 1024
    except (FileNotFoundError, KeyError):  # no Linux, or one before 3.14
        memory = psutil.virtual_memory()
        return memory.total, memory.available


def _limited_groups(root: Path, total: int) -> Iterator[tuple[Path, _Flavour, int]]:
    """Yield (folder, flavour, limit in bytes) of every cgroup around us with a real limit."""
    for group, flavour in _groups(root):
        limits = [size for name in flavour.limits if (size := _size(group / name)) is not None]
        if limits and min(limits) < total:
            yield group, flavour, min(limits)


def _groups(root: Path) -> Iterator[tuple[Path, _Flavour]]:
    """Yield our own memory cgroups and all above them.

    In a container our path may be the host's, and does not exist here. The mounted root then is our
    group, and the last one yielded.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except FileNotFoundError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            base, flavour = mount / "memory", _V1
        elif hierarchy == "0" and not controllers:
            base, flavour = mount, _V2
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for group in (inner, *inner.parents):
            yield base / group, flavour


def _size(path: Path) -> int | None:
    """Return the number in a file; None for the word `max`, or no such file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _held(group: Path, flavour: _Flavour) -> int:
    """Return the bytes of a cgroup that dropping page cache cannot free."""
    rows = _read_table(group / "memory.stat")
    droppable = sum(size for name, size in rows.items() if name in flavour.droppable)
    return max(int((group / flavour.usage).read_text()) - droppable, 0)


def _read_table(path: Path) -> dict[str, int]:
    """Return `name: 12 kB` and `name 12` lines as numbers, units left out."""
    rows = (
        line.replace(":", " ").split() for line in path.read_text(errors="replace").splitlines()
    )
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def sees_all_processes(root: Path = ROOT) -> bool:
    """Return whether drivers use the same process ids: they do not inside a container."""
    try:
        return str((root / "proc/self/ns/pid").readlink()) == INITIAL_PID_NAMESPACE
    except OSError:
        return False


def process_trees(pids: Iterable[int], root: Path = ROOT) -> dict[int, frozenset[int]]:
    """Return each process with all its descendants; one that has ended has none."""
    wanted = list(pids)
    children = _children(root) if wanted else {}
    return {pid: frozenset(_descend(pid, children)) for pid in wanted}


def _children(root: Path) -> Mapping[int, list[int]]:
    """Return parent -> children of all processes, by plain `os` calls, because it runs often."""
    children: dict[int, list[int]] = {}
    folder = f"{root}/proc"
    for name in filter(str.isdigit, os.listdir(folder) if os.path.isdir(folder) else ()):
        try:
            with open(f"{folder}/{name}/stat", "rb") as file:
                stat = file.read()
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ended just now
            continue
        parent = int(
            stat.rpartition(b")")[2].split()[1]
        )  # the name before it may hold any character
        children.setdefault(parent, []).append(int(name))
    return children


def _descend(pid: int, children: Mapping[int, list[int]]) -> Iterator[int]:
    yield pid
    for child in children.get(pid, ()):
        yield from _descend(child, children)


def held_by_process(pid: int, root: Path = ROOT) -> int | None:
    """Return the bytes that only this process can free; 0 once it has ended, None if unknown.

    These are anonymous and shared memory (RssAnon, RssShmem) and locked pages of files. Other
    mapped pages of files are page cache, which MemAvailable counts as free.
    """
    try:
        rows = _read_table(root / f"proc/{pid}/status")
    except (FileNotFoundError, ProcessLookupError):
        return 0 if (root / "proc/self").exists() else None
    except OSError:
        return None
    locked = min(rows.get("VmLck", 0), rows.get("RssFile", 0))
    return (rows.get("RssAnon", 0) + rows.get("RssShmem", 0) + locked) * 1024
