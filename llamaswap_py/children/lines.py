"""Bytes of a stream -> lines of text, of bounded length."""

from __future__ import annotations

from typing import Final

# The longest line kept; a ready line is a few KiB.
LINE_LIMIT: Final = 64 * 1024


class LineSplitter:
    """Cut a byte stream into lines; what a line has beyond `limit` bytes is dropped."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._held = 0

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that `data` completes, without their ends; bad UTF-8 is replaced."""
        *complete, rest = data.split(b"\n")
        lines: list[str] = []
        for part in complete:
            self._hold(part)
            lines.append(self._take())
        self._hold(rest)
        return lines

    def close(self) -> list[str]:
        """Return what the stream ended with, if it ended without a newline."""
        return [self._take()] if self._held else []

    def _hold(self, part: bytes) -> None:
        room = self._limit - self._held
        if room > 0 and part:
            self._pieces.append(part[:room])
            self._held += min(room, len(part))

    def _take(self) -> str:
        line = b"".join(self._pieces)
        self._pieces.clear()
        self._held = 0
        return line.removesuffix(b"\r").decode("utf-8", "replace")
