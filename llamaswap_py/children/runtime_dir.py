"""The private folder of one supervisor: its lock, its children's sockets and records."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llamaswap_py.children.cgroups import Home
from llamaswap_py.children.orphans import (
    Swept,
    new_record,
    record_file,
    sweep,
    sweep_file,
    write_record,
)
from llamaswap_py.children.running_lswaps import (
    LOCK,
    Served,
    base_dir,
    living_owner,
    remove_served,
    start_time,
    write_served,
)
from llamaswap_py.errors import StateError
from llamaswap_py.tasks.threads import PatientDisk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from llamaswap_py.children.cgroups import Group

# sockaddr_un.sun_path holds 108 bytes with its NUL on Linux, 104 on macOS.
SOCKET_PATH_LIMIT: Final = 107 if os.uname().sysname == "Linux" else 103
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_RECORDS: Final = "instances"
_EMPTY: Final = "empty"
_CGROUPS: Final = "cgroups.json"
_SWEEP_SECONDS: Final = 5.0


class RuntimeDir:
    """The folder of one supervisor; `with RuntimeDir.choose(...) as runtime:` holds it.

    Entering makes the folder (0700), takes its lock and writes the pid file; StateError if
    another lswap holds it, or if it is not ours alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.home: Home | None = None
        """The place of the children's cgroups, once `contain` has made one."""
        self._lock: int | None = None
        self._disk = PatientDisk("lswap-records")

    @classmethod
    def choose(
        cls,
        *,
        config_path: Path | None = None,
        name: str | None = None,
        serves: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> RuntimeDir:
        """Return the folder of a config (by the hash of its real path), or of `--name`.

        `serves` also tells two supervisors apart: folders of models, and addresses if there is not
        a config. The folder lies below `$XDG_RUNTIME_DIR/lswap`, else `$RUNTIME_DIRECTORY`, else a
        folder of this user in the temporary directory. Raises StateError for a name that cannot be
        a folder's.
        """
        base = base_dir(os.environ if env is None else env)
        return cls(base / folder_name(config_path, name, serves))

    def __enter__(self) -> RuntimeDir:
        make_private(self.path.parent)
        make_private(self.path)
        self._lock = lock = _claim(self.path)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()} {start_time(os.getpid())}\n".encode(), 0)
        remove_served(self.path)
        for part in (_RECORDS, _EMPTY):
            (self.path / part).mkdir(mode=0o700, exist_ok=True)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release the folder. The lock file stays: removing it could give two owners one name."""
        if self._lock is not None:
            with contextlib.suppress(OSError):  # a disk that hangs must not delay the end
                if self.home is not None:
                    self.home.close()
                    if not any(map(os.path.exists, self.home.folders)):
                        self._disk(_remove, self.path / _CGROUPS)
                self._disk(remove_served, self.path)
            self.home = None
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    @property
    def config_home(self) -> Path:
        """An empty folder, for the children's XDG_CONFIG_HOME."""
        return self.path / _EMPTY

    def tell(self, served: Served) -> None:
        """Let commands find this lswap, and tell them what it serves."""
        write_served(self.path, served)

    def socket_path(self, epoch: int) -> str | None:
        """Return the socket of an instance; None (use TCP) when the path is too long for one."""
        path = str(self.path / f"{epoch}.sock")
        return path if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT else None

    def contain(self) -> None:
        """Make a place for the children's cgroups, if the system allows it; call it once."""
        home = self.home = Home.open()
        if home is None:
            return
        record = new_record("", 0, "", home.folders)
        assert record is not None
        with contextlib.suppress(OSError):  # a full disk: the guard remains
            write_record(self.path / _CGROUPS, record)
        home.guard()

    def group(self, name: str, limits: Mapping[str, int]) -> Group | None:
        """Return the cgroup for a child; None if it cannot have one."""
        return self.home.group(name, limits) if self.home is not None else None

    def record(
        self, name: str, pid: int, binary: str, group: Group | None = None, mark: str = ""
    ) -> None:
        """Note a child so that a restart finds it; call it on ChildSpawned, before any await.

        Raises OSError (a full disk): the child then has only the kernel's parent-death signal.
        """
        record = new_record(name, pid, binary, group.folders if group else (), mark)
        if record is not None:
            self._disk(write_record, record_file(self.path / _RECORDS, name), record)

    def remove_record(self, name: str) -> None:
        """Drop the record of a child that is reaped."""
        with contextlib.suppress(OSError):  # a sweep finds out that its process is gone
            self._disk(record_file(self.path / _RECORDS, name).unlink)

    def sweep_orphans(self) -> list[Swept]:
        """Kill the children of dead supervisors: this folder's, and those of its neighbours.

        A neighbour whose lock is held is alive, and left alone; so is one of another user. Blocks
        at most about two seconds for each process that will not die. Call it once, at the start.
        """
        swept = _sweep_folder(self.path)
        with contextlib.suppress(OSError):
            for folder in sorted(self.path.parent.iterdir()):
                if folder != self.path and (folder / LOCK).exists():
                    swept.extend(_sweep_neighbour(folder))
        return swept


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def folder_name(config_path: Path | None, name: str | None, serves: Sequence[str] = ()) -> str:
    """Return `--name`, else a hash of the config's real path and of `serves`.

    Raises StateError for a bad name.
    """
    if name is not None:
        if not _NAME.fullmatch(name):
            raise StateError(
                f"{name!r} cannot be the name of a supervisor",
                remedy="use up to 40 letters, digits, dots, dashes and underscores",
            )
        return name
    real = os.path.realpath(config_path) if config_path is not None else ""
    return hashlib.sha256(os.fsencode("\0".join((real, *serves)))).hexdigest()[:12]


def make_private(folder: Path) -> None:
    """Make `folder` 0700, or check that it is a real folder of ours; StateError otherwise.

    If others may only read it, it is closed to them; if they can write to it, it is refused.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise StateError(
            f"cannot use the folder {folder}: {error.strerror}",
            remedy="set XDG_RUNTIME_DIR to a folder that you can write to",
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise StateError(
            f"{folder} belongs to user {found.st_uid}"
            if stat.S_ISDIR(found.st_mode)
            else f"{folder} is not a folder",
            remedy="remove it, or set XDG_RUNTIME_DIR to a private folder of yours",
        )
    if found.st_mode & 0o022:
        raise StateError(
            f"others can write to {folder}", remedy=f"look what is in it, then chmod 700 {folder}"
        )
    if found.st_mode & 0o077:
        folder.chmod(0o700)


def _take_lock(folder: Path) -> int | None:
    """Return the locked pid file of `folder`, None if another lswap holds the lock."""
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode=0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _claim(folder: Path) -> int:
    """Return the locked pid file; StateError when another supervisor has it.

    The sweep of a neighbour holds the lock for a moment too, without writing its pid there: this
    waits for that.
    """
    deadline = time.monotonic() + _SWEEP_SECONDS
    while True:
        lock = _take_lock(folder)
        if lock is not None:
            return lock
        owner = living_owner(folder)
        if owner is not None or time.monotonic() > deadline:
            who = f"pid {owner}" if owner is not None else "its pid is not known"
            raise StateError(
                f"another lswap ({who}) runs with this configuration already",
                remedy="`lswap status` says where, `lswap stop` ends it; a second one beside it "
                "needs another address (--port) and a --name of its own",
            )
        time.sleep(0.02)


def _sweep_neighbour(folder: Path) -> list[Swept]:
    try:
        if folder.lstat().st_uid != os.getuid():
            return []
        lock = _take_lock(folder)
    except OSError:
        return []
    if lock is None:
        return []
    try:
        return _sweep_folder(folder)
    finally:
        os.close(lock)


def _sweep_folder(folder: Path) -> list[Swept]:
    """Settle the records of a folder whose lock we hold; with the last one remove its sockets."""
    swept = sweep(folder / _RECORDS)
    sweep_file(folder / _CGROUPS)
    if not any((folder / _RECORDS).glob("*.json")):
        for path in folder.glob("*.sock"):
            path.unlink(missing_ok=True)
    return swept
