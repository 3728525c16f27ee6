"""Control groups (cgroups) of children: what a child starts stays in its group and ends with it.

A process can leave its process group, its session and its parent, but not its cgroup. See the
kernel's cgroup-v2.rst, and cgroup-v1/freezer-subsystem.rst, pids.rst and memory.rst.

In each hierarchy lswap makes one folder with a random name beside its own group, and in it a folder
per child. Version 2 ends a group at once (`cgroup.kill`, Linux 5.14). Otherwise lswap freezes the
group, so that it cannot fork, and kills its processes one by one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

SWITCH: Final = "LSWAP_CONTAIN"
"""The variable that says which ways may be used: cgroup2, cgroup1 or subreaper; all if unset."""
JOIN: Final = (
    'until [ "$1" = -- ]; do echo 0 >"$1/cgroup.procs" || exit 125; shift; done; shift; exec "$@"'
)
"""What /bin/sh does first in a child: join the folders up to `--`, then be the command."""
_PREFIX: Final = "lswap-"
_MAIN: Final = "main"
_FREEZERS: Final = (("freezer.state", "FROZEN", "THAWED"), ("cgroup.freeze", "1", "0"))
_LIMITS: Final = {
    "tasks_max": ("pids.max",),
    "memory_max": ("memory.max", "memory.limit_in_bytes"),
}
"""The files of each limit in the two versions."""
_OOM: Final = ("memory.events", "memory.oom_control")
_CONTROLLERS: Final = ("pids", "memory")
_ROUNDS: Final = 40
_PAUSE: Final = 0.005
_GUARD: Final = """trap "" HUP INT TERM; read -r _
n=0; while [ $n -lt 200 ]; do
  echo 1 >"$1/cgroup.kill" || {
    echo FROZEN >"$1/freezer.state" || echo 1 >"$1/cgroup.freeze"
    for file in $(find "$1" -name cgroup.procs); do
      while read -r pid; do kill -s KILL "$pid"; done <"$file"
    done
    echo THAWED >"$1/freezer.state" || echo 0 >"$1/cgroup.freeze"
  }
  find "$@" -depth -type d -exec rmdir {} ";"
  [ -d "$1" ] || exit
  n=$((n + 1)); sleep 0.02
done"""
"""A shell script that waits until lswap is gone, however it ended; then it ends the groups.

It does the same as `Group.kill_and_remove`."""


@dataclass(frozen=True, slots=True)
class Group:
    """The cgroup of one child: a folder in each hierarchy, the first of which can end it."""

    folders: tuple[str, ...]
    limits: Mapping[str, int] = field(default_factory=dict)

    def make(self) -> None:
        """Make the folders and set the limits. Raises OSError."""
        for folder in self.folders:
            os.mkdir(folder)
        for name, value in self.limits.items():
            self._set(_LIMITS[name], value)
        with contextlib.suppress(OSError):  # one folder without the others has no use
            self._set(("memory.oom.group",), 1)

    def _set(self, names: tuple[str, ...], value: int) -> None:
        for path in self._files(names):
            _write(path, str(value))

    def _files(self, names: tuple[str, ...]) -> Iterator[str]:
        paths = (os.path.join(folder, name) for folder in self.folders for name in names)
        return filter(os.path.exists, paths)

    def can(self) -> frozenset[str]:
        """Return the limits that the kernel offers for this group, which exists."""
        return frozenset(name for name, files in _LIMITS.items() if any(self._files(files)))

    def pids(self) -> list[int]:
        """Return every process in the group, or in one below it."""
        return list(_pids(self.folders[0]))

    def kill(self) -> bool:
        """SIGKILL all its processes; False when it had none. Blocks for some milliseconds."""
        if not self.pids():
            return False
        try:
            _write(os.path.join(self.folders[0], "cgroup.kill"), "1")
        except OSError:
            _kill_frozen(self.folders[0])
        return True

    def kill_and_remove(self, seconds: float) -> bool:
        """Kill until it is empty; then remove it. Blocks; returns whether it is gone."""
        deadline = time.monotonic() + seconds
        while self.kill() or not self.remove():
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)
        return True

    def remove(self) -> bool:
        """Remove the empty folders; returns whether all are gone."""
        for folder in self.folders:
            for path, _, _ in os.walk(folder, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)
        return not any(map(os.path.exists, self.folders))

    def oom_kills(self) -> int:
        """Return how many of its processes the kernel has killed because memory ran out."""
        return sum(map(_oom_kills, self._files(_OOM)))


class Home:
    """The place of the groups of one lswap's children; `open` finds it, or returns None."""

    def __init__(self, folders: tuple[str, ...], way: str) -> None:
        self.folders = folders
        self.way = way
        self.can: frozenset[str] = frozenset()
        self._enabled: list[str] = []
        self._guard: subprocess.Popen[bytes] | None = None

    @classmethod
    def open(cls, ways: str | None = None) -> Home | None:
        """Make the folders, and try whether a process can join; remove them if it cannot."""
        ways = os.environ.get(SWITCH, "") if ways is None else ways
        for way, parents in _places():
            if ways not in ("", way):
                continue
            name = f"{_PREFIX}{secrets.token_hex(8)}"
            home = cls(tuple(os.path.join(parent, name) for parent in parents), way)
            if home._works():
                return home
            home.close()
        return None

    def group(self, name: str, limits: Mapping[str, int] | None = None) -> Group:
        """Return the group of that name, not made yet, with the limits that can be enforced."""
        name = "".join(char if char.isalnum() and char.isascii() else "_" for char in name)[-200:]
        held = {key: value for key, value in (limits or {}).items() if key in self.can}
        return Group(tuple(os.path.join(folder, name) for folder in self.folders), held)

    def guard(self) -> None:
        """Start the process that ends all groups once this one is gone, however it ends."""
        with contextlib.suppress(OSError):  # the sweep of the next start remains
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "sh", *self.folders],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={"PATH": os.defpath},
                cwd="/",
            )

    def close(self) -> None:
        """End what is left, and remove all folders."""
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._guard = None
        for parent in reversed(self._enabled):
            for controller in _CONTROLLERS:
                with contextlib.suppress(OSError):
                    _write(os.path.join(parent, "cgroup.subtree_control"), f"-{controller}")
        main = os.path.join(self.folders[0], _MAIN)
        if os.path.isdir(main):
            with contextlib.suppress(OSError):
                for pid in _pids(main):
                    _write(os.path.join(os.path.dirname(self.folders[0]), "cgroup.procs"), str(pid))
        Group(self.folders).kill_and_remove(1.0)

    def _works(self) -> bool:
        try:
            os.mkdir(self.folders[0])
        except OSError:
            return False
        kept = [self.folders[0]]
        for folder in self.folders[1:]:
            with contextlib.suppress(OSError):
                os.mkdir(folder)
                kept.append(folder)
        self.folders = tuple(kept)
        if self.way == "cgroup2":
            self._enable()
        trial = self.group("trial")
        try:
            trial.make()
            words = ["/bin/sh", "-c", JOIN, "sh", *trial.folders, "--", "true"]
            done = subprocess.run(words, capture_output=True, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
        self.can = trial.can()
        return trial.kill_and_remove(1.0) and done.returncode == 0

    def _enable(self) -> None:
        """Have the kernel count tasks and memory of the groups below.

        The kernel refuses that for a group which holds processes itself. If lswap is the only
        process of its group, as in a unit with Delegate=yes, it moves into a group of its own.
        """
        parent = os.path.dirname(self.folders[0])
        for folder in (parent, self.folders[0]):
            for controller in _CONTROLLERS:
                with contextlib.suppress(OSError):
                    if controller in _words(folder, "cgroup.controllers"):
                        self._enable_in(parent, folder, controller)

    def _enable_in(self, parent: str, folder: str, controller: str) -> None:
        control = os.path.join(folder, "cgroup.subtree_control")
        if controller in _words(folder, "cgroup.subtree_control"):
            return
        try:
            _write(control, f"+{controller}")
        except OSError:
            if folder != parent or list(_own_pids(parent)) != [os.getpid()]:
                raise
            main = os.path.join(self.folders[0], _MAIN)
            os.makedirs(main, exist_ok=True)
            _write(os.path.join(main, "cgroup.procs"), "0")
            _write(control, f"+{controller}")
        if folder not in self._enabled:
            self._enabled.append(folder)


def group_of(pid: int) -> Group | None:
    """Return the group that an lswap made for the child of this process; None if it has none."""
    for _, path, mount in _own_paths(str(pid)):
        parts = path.split("/")
        for at, part in enumerate(parts):
            if part.startswith(_PREFIX) and len(parts) > at + 1 and parts[at + 1] != _MAIN:
                folder = os.path.join(mount, *parts[: at + 2])
                if os.path.isdir(folder):
                    return Group((folder,))
    return None


def group_named(part: str, root: str = "") -> Group | None:
    """Return the group with `part` in its name that some process is in; None if there is none.

    Engines name the group of a container by its id: `/docker/ID`, `/libpod_parent/libpod-ID`,
    `/system.slice/docker-ID.scope`.
    """
    for pid in filter(str.isdigit, os.listdir(f"{root}/proc")):
        if not any(part in place for place in places_of(int(pid), root)):
            continue
        for _, path, mount in _own_paths(pid, root):
            parts = path.split("/")
            at = next((at for at, name in enumerate(parts) if part in name), None)
            if at is None:
                continue
            folder = os.path.join(mount, *parts[: at + 1])
            if os.path.isdir(folder):
                return Group((folder,))
    return None


def groups_around(pid: int) -> Iterator[Group]:
    """Yield the groups that a process is in, one for each hierarchy, but not the top ones."""
    for _, path, mount in _own_paths(str(pid)):
        if path.strip("/"):
            yield Group((os.path.join(mount, path),))


def places_of(pid: int, root: str = "") -> list[str]:
    """Return a process's place in each hierarchy; empty if it is gone."""
    try:
        with open(f"{root}/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            return [line.rstrip("\n").split(":", 2)[2] for line in file]
    except (OSError, IndexError):
        return []


def is_ours(folder: str) -> bool:
    """Tell whether `Home` made this folder or one above it: lswap removes no other folder."""
    parts = folder.split("/")
    return any(part.startswith(_PREFIX) for part in parts[-2:]) and ".." not in parts


def _places() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the usable kinds of cgroups, each with the folders of this process's own groups."""
    own = {kind: os.path.join(mount, path) for kind, path, mount in _own_paths("self")}
    counted = tuple(own[kind] for kind in _CONTROLLERS if kind in own)
    if "" in own:
        yield "cgroup2", (own[""].rstrip("/"), *counted)
    if "freezer" in own:
        yield "cgroup1", (own["freezer"].rstrip("/"), *counted)


def _own_paths(pid: str, root: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the kind of each hierarchy (of version 2: ""), a process's place in it, and its mount.

    See cgroups(7) and proc_pid_mountinfo(5). The mount may show only a part of the hierarchy.
    """
    try:
        with open(f"{root}/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            placed = [line.rstrip("\n").split(":", 2) for line in file]
        shown = f"{root}/proc/self/mountinfo"
        with open(shown, encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split() for line in file if " - cgroup" in line]
    except OSError:
        return
    for _, kinds, path in placed:
        for kind in kinds.split(","):
            for fields in mounts:
                shows = fields[fields.index("-") + 1 :]
                fits = kind in shows[2].split(",") if kind else shows[0] == "cgroup2"
                below = os.path.relpath(path, fields[3])
                if fits and not below.startswith(".."):
                    yield kind, "" if below == "." else below, f"{root}{fields[4]}"
                    break


def _pids(folder: str) -> Iterator[int]:
    for path, _, _ in os.walk(folder):
        yield from _own_pids(path)


def _own_pids(folder: str) -> Iterator[int]:
    with contextlib.suppress(OSError):
        yield from map(int, _words(folder, "cgroup.procs"))


def _words(folder: str, name: str) -> list[str]:
    with open(os.path.join(folder, name), encoding="ascii") as file:
        return file.read().split()


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _kill_frozen(folder: str) -> None:
    """Freeze, kill, thaw: a frozen process cannot fork, and its pid cannot pass to another."""
    found = [one for one in _FREEZERS if os.path.exists(os.path.join(folder, one[0]))]
    for name, freeze, _ in found:
        with contextlib.suppress(OSError):
            _write(os.path.join(folder, name), freeze)
            for _ in range(_ROUNDS):  # a process inside the kernel dies only when it leaves it
                if freeze in _words(folder, name):
                    break
                time.sleep(_PAUSE)
    for pid in _pids(folder):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    for name, _, thaw in found:
        with contextlib.suppress(OSError):
            _write(os.path.join(folder, name), thaw)


def _oom_kills(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    except (OSError, ValueError, IndexError):
        return 0
