"""What a client was sent, kept beside for `capture`. Pure."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import httptools
import msgspec

from llamaswap_py.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST: Final = MIB
"""Bytes that are kept of a prompt, and of an answer."""


@dataclass(slots=True)
class Tap:
    """Takes the bytes of an answer as they are written, heads and framing among them."""

    asked: str | msgspec.Raw = ""
    asked_whole: bool = True
    _pieces: list[bytes] = field(default_factory=list)
    _size: int = 0

    def ask(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Keep what was asked: as JSON where it is."""
        text = b""
        for piece in pieces:
            text += piece[: _MOST + 1 - len(text)]
            if len(text) > _MOST:
                break
        self.asked_whole = len(text) <= _MOST
        self.asked = _as_json(text) if self.asked_whole else text[:_MOST].decode("utf-8", "replace")

    def __call__(self, data: bytes | bytearray | memoryview) -> None:
        if self._size < _MOST:
            self._pieces.append(bytes(data[: _MOST - self._size]))
        self._size += len(data)

    def record(self) -> dict[str, Any]:
        """Return `request`, `answer`, and whether they are all of it."""
        reader = _Reader()
        # An answer that was cut, or switched to another protocol, ends in an error.
        with suppress(httptools.HttpParserError):
            httptools.HttpResponseParser(reader).feed_data(b"".join(self._pieces))
        return {
            "request": self.asked,
            "answer": _as_json(b"".join(reader.body)),
            "complete": self.asked_whole and self._size <= _MOST and reader.complete,
        }


class _Reader:
    def __init__(self) -> None:
        self.body: list[bytes] = []
        self.complete = False

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        self.complete = True


def _as_json(text: bytes) -> str | msgspec.Raw:
    try:
        msgspec.json.decode(text)
        return msgspec.Raw(msgspec.json.format(text, indent=-1))  # on one line
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return text.decode("utf-8", "replace")
