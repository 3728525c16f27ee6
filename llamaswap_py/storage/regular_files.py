"""Opens files only if they are regular files, and without waiting.

A pipe or a device in the place of a file could block the open for ever.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from contextlib import suppress
from typing import IO, Final

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class NotRegularError(OSError):
    """Raised if a path names something other than a regular file; `strerror` says what."""

    def __init__(self, path: str | os.PathLike[str], mode: int) -> None:
        what = next((word for is_one, word in _KINDS if is_one(mode)), "something else")
        super().__init__(errno.EINVAL, f"this is {what}, not a regular file", os.fspath(path))


_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a regular file for reading, unbuffered; raises OSError, NotRegularError for others.

    It blocks as long as the file's disk does.
    """
    _check(path, os.stat(path))  # first, because opening some devices does something
    fd = os.open(path, _FLAGS)
    try:
        _check(path, os.fstat(fd))  # the file may have been replaced after the first check
        return open(fd, "rb", buffering=0)
    except BaseException:
        os.close(fd)
        raise


def read_regular(path: str | os.PathLike[str], most: int = -1) -> bytes:
    """Return the first `most` bytes of a regular file; raises like open_regular()."""
    with open_regular(path) as file:
        parts, left = [], most
        while left and (part := file.read(left)):  # one read may return less than there is
            parts.append(part)
            left -= len(part) if most >= 0 else 0
        return b"".join(parts)


def write_whole(path: str | os.PathLike[str], data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file's content by `data` in one step: on a full disk the old content stays.

    A link stays a link, and the file keeps its mode; a new one gets `mode`. Raises OSError. If the
    path is not a regular file (`/dev/stdout`), or is mounted by itself, it is written in place.
    """
    target = os.path.realpath(path)
    try:
        kept = os.stat(target)
    except FileNotFoundError:
        kept = None
    if kept is not None and not stat.S_ISREG(kept.st_mode):
        _write_there(target, data)
        return
    fd, new = tempfile.mkstemp(dir=os.path.dirname(target), prefix=".lswap-")
    try:
        with open(fd, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())  # without it, some file systems keep the new name alone
        os.chmod(new, mode if kept is None else stat.S_IMODE(kept.st_mode))
        os.replace(new, target)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(new)
        if not (isinstance(error, OSError) and error.errno == errno.EBUSY):
            raise
        _write_there(target, data)


def _write_there(target: str, data: bytes) -> None:
    with open(target, "wb") as out:
        out.write(data)


def _check(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularError(path, status.st_mode)
