"""Unpacks archives that came from elsewhere: only into their folder, and only up to a size.

An archive may name any path, link anywhere, and hold far more than its own size. All of it is
checked before its bytes reach the disk.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from llamaswap_py.errors import EngineError
from llamaswap_py.units import GIB, MIB, format_size

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SPARE", "room_for", "unpack"]

SPARE: Final = 256 * MIB
"""Bytes of the disk that stay free."""
MOST_UNPACKED: Final = 16 * GIB
MOST_MEMBERS: Final = 50_000


class _Refused(Exception):
    """Raised for a member that must not be unpacked."""


def room_for(folder: Path) -> int:
    """Return how many bytes may still be written to the disk of `folder`."""
    return max(shutil.disk_usage(folder).free - SPARE, 0)


def unpack(archive: Path, target: Path) -> None:
    """Unpack a .tar.gz or .zip into the new folder `target`.

    Raises EngineError when it is neither, is damaged, reaches outside, or holds too much.
    """
    target.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, target)
        else:
            _untar(archive, target)
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, _Refused) as error:
        raise EngineError(
            f"{archive.name} cannot be unpacked ({error})",
            remedy="it must be a .tar.gz or .zip whose members stay inside their folder",
        ) from error


def _untar(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        _check_sizes((member.size for member in members), target)
        for member in members:
            if member.issym() or member.islnk():
                _check_link(member.name, member.linkname)
        tar.extractall(target, filter="data")


def _unzip(archive: Path, target: Path) -> None:
    """Extract with modes and symbolic links, which ZipFile.extractall drops."""
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        _check_sizes((member.file_size for member in members), target)
        for member in members:
            name = PurePosixPath(member.filename)
            mode = member.external_attr >> 16
            if name.is_absolute() or ".." in name.parts:
                raise _Refused(f"{member.filename} reaches outside")
            path = target / name
            if member.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if stat.S_ISLNK(mode):
                _link(path, file.read(member).decode(errors="replace"))
                continue
            with file.open(member) as content, path.open("xb") as copy:
                shutil.copyfileobj(content, copy)
            path.chmod(0o755 if mode & 0o100 else 0o644)


def _check_sizes(sizes: Iterable[int], target: Path) -> None:
    total, most = 0, min(MOST_UNPACKED, room_for(target))
    for number, size in enumerate(sizes, 1):
        total += size
        if number > MOST_MEMBERS:
            raise _Refused(f"it has more than {MOST_MEMBERS:,} members")
        if total > most:
            raise _Refused(f"it holds more than {format_size(most)}, the most that may be written")


def _check_link(name: str, destination: str) -> None:
    """Refuse a link upwards: without `..`, no chain of links leaves the folder."""
    path = PurePosixPath(destination)
    if not destination or path.is_absolute() or ".." in path.parts:
        raise _Refused(f"{name} links to {destination}")


def _link(path: Path, destination: str) -> None:
    # Libraries link to files beside them; a release does not need any other link.
    if os.sep in destination or destination in ("", ".", ".."):
        raise _Refused(f"{path.name} links to {destination}")
    path.symlink_to(destination)
