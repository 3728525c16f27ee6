"""The folder of kept conversations: private, bounded, and of one run only.

lswap never restores a file of an earlier run. The list of files is in memory alone, and the next
lswap removes the folder that a killed one left. An unfinished file never gets on the list.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import psutil

from llamaswap_py.tasks.threads import PatientDisk

_log: Final = logging.getLogger("lswap")
_IN_MEMORY: Final = ("tmpfs", "ramfs")
_LOCK: Final = ".lock"
_NAME: Final = re.compile(r"kv-[0-9a-f]{16}")
_SPARE: Final = 1024**3
"""Bytes of a file system that stay free, or a tenth of it if that is less."""


@dataclass(frozen=True, slots=True)
class KvPlace:
    """The folder that holds kept conversations; `in_memory`: its bytes are main memory."""

    path: Path
    in_memory: bool


@dataclass(frozen=True, slots=True)
class KeptSlot:
    """One slot's file: the slot, its tokens, and size and time, by which a change is noticed."""

    slot: int
    name: str
    tokens: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Kept:
    """The kept files of one preset; only a child with the same `identity` may restore them."""

    identity: str
    slots: tuple[KeptSlot, ...]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(one.size for one in self.slots)


_P = ParamSpec("_P")
_T = TypeVar("_T")


def _patient(default: Any) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Make a method of KeptFolder return `default` if its disk hangs."""

    def wrap(method: Callable[_P, _T]) -> Callable[_P, _T]:
        @wraps(method)
        def patient(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            folder = args[0]
            assert isinstance(folder, KeptFolder)
            if threading.get_ident() == folder.thread:  # one such method calls another
                return method(*args, **kwargs)

            def call() -> _T:
                folder.thread = threading.get_ident()
                return method(*args, **kwargs)

            try:
                return folder.disk(call)
            except TimeoutError:
                instead: _T = default
                return instead

        return patient

    return wrap


class KeptFolder:
    """The files of one supervisor, the oldest preset first; never more than `limit` bytes.

    The first use makes the folder, below the first of `places` that is main memory with room for
    the limit, else below the last one. `close` removes everything. No method raises an error of
    the disk.
    """

    def __init__(self, places: Sequence[Path], limit: int) -> None:
        self.limit = limit
        self.place: KvPlace | None = None
        self._places = tuple(places)
        self._kept: dict[str, Kept] = {}
        self._lock: int | None = None
        self._failed = False
        self.disk = PatientDisk("lswap-kept")
        self.thread = 0

    @property
    def size(self) -> int:
        """Bytes of everything that is kept."""
        return sum(one.size for one in self._kept.values())

    @property
    def in_memory(self) -> int:
        """Bytes of it that are in main memory."""
        return self.size if self.place is not None and self.place.in_memory else 0

    @property
    def presets(self) -> tuple[str, ...]:
        """The presets that have kept files, the oldest first."""
        return tuple(self._kept)

    def __contains__(self, preset: str) -> bool:
        return preset in self._kept

    @_patient(None)
    def path(self) -> Path | None:
        """Return the folder, made if needed; None, with one warning, if none can be made."""
        if self.place is not None and _is_ours(self.place.path):
            return self.place.path
        self.close()  # it was removed
        if self._failed:
            return None
        for place in self._suitable():
            try:
                self._open(place)
            except OSError as error:
                _log.debug("%s cannot hold conversations: %s", place.path, error)
                continue
            assert self.place is not None
            return self.place.path
        self._failed = True
        tried = ", ".join(map(str, self._places))
        _log.warning("keep_kv keeps nothing: no folder for it can be used (tried %s)", tried)
        return None

    @_patient(0)
    def room(self) -> int:
        """Return how many bytes may be kept in all, by the limit and by the file system."""
        if self.place is None:
            return 0
        try:
            free = _free(self.place.path)
        except OSError:
            return 0
        return max(min(self.limit, free + self.size), 0)

    def new_name(self) -> str:
        """Return a file name that cannot be guessed, for a file that is not finished."""
        return f"{secrets.token_hex(16)}.part"

    @_patient(None)
    def finish(self, slot: int, name: str, tokens: int, size: int) -> KeptSlot | None:
        """Keep a file that was written whole; if it was not, remove it and return None."""
        path = self.path()
        if path is None:
            return None
        unfinished, finished = path / name, path / name.removesuffix(".part")
        try:
            unfinished.chmod(0o600)
            found = unfinished.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_size != size:
                raise OSError(errno.EIO, "it is not whole")
            unfinished.rename(finished)
        except OSError as error:
            _log.debug("%s is not kept: %s", unfinished, error)
            self.remove_files((name,))
            return None
        return KeptSlot(slot, finished.name, tokens, found.st_size, found.st_mtime_ns)

    def put(self, preset: str, kept: Kept) -> None:
        """Keep this instead of the preset's earlier files."""
        self.discard(preset)
        self._kept[preset] = kept

    def shrink(self, size: int, *, last: Collection[str] = ()) -> int:
        """Remove the oldest until at most `size` bytes are kept; presets in `last` go last.

        Returns how many bytes it removed.
        """
        before = self.size
        for preset in sorted(self._kept, key=lambda name: name in last):  # stable: oldest first
            if self.size <= size:
                break
            self.discard(preset)
        return before - self.size

    def size_of(self, presets: Collection[str]) -> int:
        """Return the bytes that are kept of these presets."""
        return sum(one.size for preset, one in self._kept.items() if preset in presets)

    def take(self, preset: str) -> Kept | None:
        """Take a preset's files off the list and return them; the caller has to remove them."""
        return self._kept.pop(preset, None)

    @_patient(False)
    def is_whole(self, slot: KeptSlot) -> bool:
        """Return whether a file is unchanged: a shorter one makes llama-server crash."""
        if self.place is None:
            return False
        try:
            found = (self.place.path / slot.name).lstat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (slot.size, slot.mtime_ns)

    def discard(self, preset: str) -> None:
        """Remove the kept files of a preset."""
        if kept := self._kept.pop(preset, None):
            self.remove_files(one.name for one in kept.slots)

    @_patient(None)
    def remove_files(self, names: Iterable[str]) -> None:
        """Remove files."""
        if self.place is None:
            return
        for name in names:
            with contextlib.suppress(OSError):
                (self.place.path / name).unlink()

    @_patient(None)
    def close(self) -> None:
        """Remove everything."""
        self._kept.clear()
        if self.place is not None:
            shutil.rmtree(self.place.path, ignore_errors=True)
            self.place = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @_patient(0)
    def sweep(self) -> int:
        """Remove the folders that killed supervisors of this user left; returns how many."""
        return sum(map(sweep_kept, self._places))

    def _suitable(self) -> Iterator[KvPlace]:
        """Yield the usable places: main memory with room for the limit, then the last one."""
        *others, last = self._places
        for path in others:
            with contextlib.suppress(OSError):
                if is_in_memory(path) and _free(path) >= self.limit:
                    yield KvPlace(path, in_memory=True)
        yield KvPlace(last, is_in_memory(last))

    def _open(self, place: KvPlace) -> None:
        """Make a folder of our own below `place`, and lock it; raises OSError."""
        make_private(place.path)
        path = place.path / f"kv-{secrets.token_hex(8)}"
        path.mkdir(mode=0o700)
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink == 0:
                raise OSError(errno.EBUSY, "it was swept")
        except OSError:
            os.close(lock)
            raise
        self.place, self._lock = KvPlace(path, place.in_memory), lock


def make_private(folder: Path) -> None:
    """Make a folder that only its owner may enter, or check that it is one; raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_ours(folder):
        raise PermissionError(errno.EPERM, "others may write to it, or it is not ours")
    folder.chmod(0o700)


def is_in_memory(path: Path) -> bool:
    """Return whether a path lies on a file system that is main memory."""
    real = os.path.realpath(_existing(path))
    try:
        mounts = psutil.disk_partitions(all=True)
    except (OSError, psutil.Error):
        return False
    inside = [one for one in mounts if Path(real).is_relative_to(one.mountpoint)]
    # Of two mounts at one point the later one is on top.
    nearest = max(enumerate(inside), key=lambda one: (len(one[1].mountpoint), one[0]), default=None)
    return nearest is not None and nearest[1].fstype in _IN_MEMORY


def _existing(path: Path) -> Path:
    """Return the folder itself, or the nearest one above it that exists."""
    # os.path.exists() does not raise for a folder that we may not enter.
    return next((one for one in (path, *path.parents) if os.path.exists(one)), Path("/"))


def _free(path: Path) -> int:
    """Return the bytes that we may write to a file system while some stay free."""
    found = os.statvfs(_existing(path))
    total = found.f_frsize * found.f_blocks
    return found.f_frsize * found.f_bavail - min(total // 10, _SPARE)


def _is_ours(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def sweep_kept(base: Path) -> int:
    """Remove the folders below `base` that no running lswap has locked."""
    removed = 0
    with contextlib.suppress(OSError):
        if not _is_ours(base):
            return 0
        for folder in base.iterdir():
            if _NAME.fullmatch(folder.name) and _is_ours(folder) and _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
    return removed


def _is_abandoned(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:  # killed between mkdir and the lock, or made this very moment
        return False
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
