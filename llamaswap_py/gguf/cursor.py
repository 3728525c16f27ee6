"""Walk through bytes that a callback reads, never past their end and never far ahead."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from llamaswap_py.gguf.errors import GgufError

ReadAt = Callable[[int, int], bytes]
"""(offset, size) -> at most `size` bytes from there; fewer only at the end of the file."""

_WINDOW: Final = 256 * 1024


class Cursor:
    """A position in a file of `size` bytes, with a window of read-ahead."""

    def __init__(self, read_at: ReadAt, size: int) -> None:
        self.position = 0
        self.size = size
        self._read_at = read_at
        self._window = b""
        self._start = 0

    @property
    def left(self) -> int:
        """Bytes between here and the end of the file."""
        return self.size - self.position

    def take(self, count: int, what: str) -> bytes:
        """Return the next `count` bytes; `what` names them in the error when they are not there."""
        if count > self.left:
            raise GgufError(
                f"cut off at byte {self.size:,}: {what} would need {count - self.left:,} more"
            )
        inside = self.position - self._start
        if inside < 0 or inside + count > len(self._window):
            self._window = self._read_at(self.position, max(count, min(_WINDOW, self.left)))
            self._start, inside = self.position, 0
            if len(self._window) < count:
                raise GgufError(f"became shorter while it was read ({what})")
        self.position += count
        return self._window[inside : inside + count]

    def skip(self, count: int, what: str) -> None:
        """Go `count` bytes on without reading them."""
        if count > self.left:
            raise GgufError(
                f"cut off at byte {self.size:,}: {what} would need {count - self.left:,} more"
            )
        self.position += count

    def number(self, form: str, what: str) -> int | float:
        """Return one little-endian number of a struct format character."""
        value: int | float = struct.unpack("<" + form, self.take(struct.calcsize(form), what))[0]
        return value

    def count(self, what: str) -> int:
        """Return an unsigned 64-bit number."""
        return int(self.number("Q", what))
