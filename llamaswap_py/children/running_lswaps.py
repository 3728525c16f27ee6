"""Finds the running lswaps of this user by their runtime folders, for commands without `--url`.

Each lswap that serves keeps a small record in its folder. The record is versioned: an older lswap
does not look at it, and of a newer version's record only the process is known.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.storage.regular_files import read_regular

if TYPE_CHECKING:
    from collections.abc import Mapping

LOCK: Final = "lswap.pid"
_RECORD: Final = "serves.json"
_VERSION: Final = 1


class Served(msgspec.Struct, frozen=True):
    """What an lswap says of itself: addresses, what it serves, time of its start (Unix seconds)."""

    urls: tuple[str, ...] = ()
    what: str = ""
    started_at: float = 0.0
    stopping: bool = False
    version: int = _VERSION


class RunningLswap(msgspec.Struct, frozen=True):
    """A living lswap; `served` is None while it starts, and if its record has another version."""

    name: str
    pid: int
    served: Served | None

    @property
    def url(self) -> str | None:
        """The address to ask it at."""
        return self.served.urls[0] if self.served is not None and self.served.urls else None

    def __str__(self) -> str:
        what = self.served.what if self.served is not None else ""
        about = f"pid {self.pid}" + (f", serves {what}" if what else "")
        return f"{self.url or 'an lswap'} ({about})"


def find_running(env: Mapping[str, str]) -> list[RunningLswap]:
    """Return the living lswaps of this user, the oldest first."""
    found = {}
    for base in bases(env):
        with suppress(OSError):  # there is none, or it is another user's
            for folder in sorted(base.iterdir()):
                if (pid := living_owner(folder)) is not None:
                    found[pid] = RunningLswap(folder.name, pid, _read(folder))
    return sorted(found.values(), key=_age)


def _age(one: RunningLswap) -> tuple[float, int]:
    return (one.served.started_at if one.served is not None else 0.0), one.pid


def start_time(pid: int) -> int | None:
    """Return when a process began, in ticks that tell it from any later one of the same pid.

    None if no such process runs; a zombie counts as ended, because it holds nothing. Linux:
    field 22 of /proc/PID/stat (proc(5)); elsewhere microseconds by psutil.
    """
    if not os.path.isdir("/proc/self"):
        import psutil  # noqa: PLC0415 - commands with `--url` do not need it

        try:
            return int(psutil.Process(pid).create_time() * 1e6)
        except psutil.Error:
            return None
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def living_owner(folder: Path) -> int | None:
    """Return the pid that the pid file of a runtime folder names, if that very process lives."""
    try:
        pid, started = map(int, read_regular(folder / LOCK).split())
    except (OSError, ValueError):
        return None
    return pid if start_time(pid) == started else None


def write_served(folder: Path, served: Served) -> None:
    """Replace the record of a runtime folder; on a full disk only the record is missing."""
    unfinished = folder / f".{_RECORD}"
    with suppress(OSError):
        unfinished.write_bytes(msgspec.json.encode(served))
        unfinished.replace(folder / _RECORD)


def remove_served(folder: Path) -> None:
    """Remove the record: this lswap does not serve any more."""
    with suppress(OSError):
        (folder / _RECORD).unlink(missing_ok=True)


def _read(folder: Path) -> Served | None:
    try:
        served = msgspec.json.decode(read_regular(folder / _RECORD), type=Served)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return served if served.version == _VERSION else None


def base_dir(env: Mapping[str, str]) -> Path:
    """Return the folder that holds the folders of all supervisors of this user."""
    runtime = env.get("XDG_RUNTIME_DIR", "")
    if _is_ours(runtime):
        return Path(runtime, "lswap")
    service = env.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if _is_ours(service):
        return Path(service)
    return Path(tempfile.gettempdir(), f"lswap-{os.getuid()}")


def bases(env: Mapping[str, str]) -> dict[Path, None]:
    """Return where to look: this shell's folder, and those of lswaps started in other ways.

    A service has /run/lswap (RuntimeDirectory= of its unit). If XDG_RUNTIME_DIR is not set, as in
    cron or after `su`, the folder of the user's session is searched too.
    """
    bases = [base_dir(env)]
    if not env.get("XDG_RUNTIME_DIR"):
        bases.append(Path(f"/run/user/{os.getuid()}/lswap"))
    return dict.fromkeys([*bases, Path("/run/lswap")])


def _is_ours(folder: str) -> bool:
    return os.path.isabs(folder) and os.access(folder, os.W_OK | os.X_OK)
