"""A folder of small JSON records, one file each: atomic, versioned, never required.

Several supervisors share the folder. With one file per record, none can overwrite what another has
learned, and a crash damages one record at most. The places of the folders are here, too (XDG Base
Directory Specification).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from pathlib import Path
from typing import Annotated, Final, Generic, TypeVar

import msgspec

from llamaswap_py.storage.regular_files import read_regular

T = TypeVar("T", bound=msgspec.Struct)

_log: Final = logging.getLogger("lswap.state")
_NAME: Final = re.compile(r"[0-9A-Za-z_-]{1,100}")
_MAX_BYTES: Final = 1024**2
_KEPT: Final = 2000


class _Envelope(msgspec.Struct):
    version: Annotated[int, msgspec.Meta(ge=1, le=999_999)]
    record: msgspec.Raw


class RecordFolder(Generic[T]):
    """Records of the type `kind` in `folder`, by name; `version` of their form.

    A record of another version is set aside. It comes back when a release reads it that knows this
    version. No method raises an error of the disk: a record that cannot be read is absent, and
    one that cannot be written is lost, with one warning.
    """

    def __init__(self, folder: Path, kind: type[T], *, version: int, kept: int = _KEPT) -> None:
        self.folder = folder
        self._kind = kind
        self._version = version
        self._kept = kept
        self._complained = False
        self._told = False

    def read(self, name: str) -> T | None:
        """Return a record, None if there is none.

        A broken file is set aside as `NAME.json.broken`, with a line in the log, and one of another
        version as `NAME.json.v2`.
        """
        path = self._path(name)
        envelope = self._read(path)
        if envelope is not None and envelope.version != self._version:
            self._set_version_aside(path, envelope.version)
            envelope = None
        if envelope is None and (own := _aside(path, self._version)).exists():
            self._move("take back", own, path)
            envelope = self._read(path)
        if envelope is None or envelope.version != self._version:
            return None
        try:
            return msgspec.json.decode(envelope.record, type=self._kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._set_broken_aside(path, error)
            return None

    def write(self, name: str, record: T) -> bool:
        """Replace a record as a whole; returns False when the disk refused."""
        path = self._path(name)
        content = msgspec.json.encode(
            _Envelope(self._version, msgspec.Raw(msgspec.json.encode(record)))
        )
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with unfinished.open("wb") as file:
                file.write(content)
                file.flush()
                # Without this, some file systems keep the new name and lose the content.
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            self._complain("write", path, error)
            return False
        return True

    def discard(self, name: str) -> None:
        """Remove a record, if it is there."""
        path = self._path(name)
        for one in (path, _aside(path, self._version)):
            try:
                one.unlink(missing_ok=True)
            except OSError as error:
                self._complain("remove", one, error)

    def prune(self) -> int:
        """Remove the oldest records beyond the limit, and left-overs; returns how many."""
        try:
            entries = [entry for entry in os.scandir(self.folder) if entry.is_file()]
            aged = sorted(entries, key=lambda entry: entry.stat().st_mtime_ns, reverse=True)
        except OSError:
            return 0
        removed = 0
        for entry in aged[self._kept :]:
            try:
                os.unlink(entry.path)
                removed += 1
            except OSError:  # another supervisor was first
                continue
        return removed

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of a record")
        return self.folder / f"{name}.json"

    def _read(self, path: Path) -> _Envelope | None:
        try:
            return msgspec.json.decode(read_regular(path, _MAX_BYTES + 1), type=_Envelope)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain("read", path, error)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._set_broken_aside(path, error)
        return None

    def _set_broken_aside(self, path: Path, error: Exception) -> None:
        aside = path.with_name(f"{path.name}.broken")
        if self._move("set aside", path, aside):
            _log.warning("%s is damaged (%s): set aside as %s", path, error, aside.name)

    def _set_version_aside(self, path: Path, version: int) -> None:
        aside = _aside(path, version)
        if self._move("set aside", path, aside) and not self._told:
            self._told = True
            what = "records of another release of lswap are set aside, for example %s as %s"
            _log.info(what, path, aside.name)

    def _move(self, what: str, path: Path, target: Path) -> bool:
        try:
            path.replace(target)
        except OSError as error:
            self._complain(what, path, error)
            return False
        return True

    def _complain(self, what: str, path: Path, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            _log.warning("cannot %s %s (%s): going on without", what, path, error.strerror or error)


def _aside(path: Path, version: int) -> Path:
    """Return the path of a record of this version while another release uses its name."""
    return path.with_name(f"{path.name}.v{version}")


def learned_folder() -> Path:
    """Return the folder of what was measured: `$XDG_STATE_HOME/lswap/learned`."""
    return xdg_base("XDG_STATE_HOME", ".local/state") / "lswap" / "learned"


def traffic_folder() -> Path:
    """Return the folder of what was learned of requests: `$XDG_STATE_HOME/lswap/traffic`."""
    return xdg_base("XDG_STATE_HOME", ".local/state") / "lswap" / "traffic"


def captures_folder() -> Path:
    """Return the folder of what `capture: on` stores: `$XDG_STATE_HOME/lswap/captures`."""
    return xdg_base("XDG_STATE_HOME", ".local/state") / "lswap" / "captures"


def estimates_folder() -> Path:
    """Return the folder of estimates worked out before: `$XDG_CACHE_HOME/lswap/estimates`."""
    return xdg_base("XDG_CACHE_HOME", ".cache") / "lswap" / "estimates"


def kept_folder() -> Path:
    """Return the folder of conversations, where memory has no room: `$XDG_CACHE_HOME/lswap/kv`."""
    return xdg_base("XDG_CACHE_HOME", ".cache") / "lswap" / "kv"


def xdg_base(variable: str, default: str, home: Path | None = None) -> Path:
    """Return a folder of the XDG Base Directory Specification: of the environment, else `default`.

    `default` is below `home` (this user's). The specification says to ignore a relative path.
    """
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else (home or Path.home()) / default
