"""Writes prompts and answers to disk if the configuration says `capture: on`; off by default.

A `Tap` collects the request and the answer of one client, up to a bound; `Captures` writes them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httptools
import msgspec

from llamaswap_py.children import ChildLog
from llamaswap_py.children.logs import LogFile
from llamaswap_py.storage.record_folder import captures_folder
from llamaswap_py.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable

_LAST_WRITES: Final = 2.0
"""Seconds that lswap waits at its end for the last records to be written."""
_MOST: Final = MIB
"""The most bytes that are stored of a prompt, and of an answer."""
_log: Final = logging.getLogger("lswap")


class Captures:
    """Appends a line of JSON for each request to a file that only its owner can read."""

    def __init__(self, name: str, rotate: int | None) -> None:
        self.path: Path = captures_folder() / f"{name}.jsonl"
        self._file = LogFile(self.path, rotate)
        self._trouble = ChildLog()
        self._said = -1

    def keep(self, record: Mapping[str, Any]) -> None:
        """Write a record soon; if the disk is full or slow, it is lost, and the log says so."""
        self._file.write(msgspec.json.encode(record) + b"\n")
        for line in self._trouble.tail(1):
            if line.number != self._said:
                self._said = line.number
                _log.warning("capture: %s", line)

    async def run(self) -> None:
        """Write until cancelled."""
        _log.warning("capture is on: prompts and answers are written to %s", self.path)
        try:
            await self._file.run(self._trouble)
        finally:
            with suppress(TimeoutError):  # so that lswap ends even if the disk hangs
                async with asyncio.timeout(_LAST_WRITES):
                    await self._file.flush(self._trouble)


@dataclass(slots=True)
class Tap:
    """Collects the bytes of an answer as they are written, with its head and framing."""

    asked: str | msgspec.Raw = ""
    asked_whole: bool = True
    _pieces: list[bytes] = field(default_factory=list)
    _size: int = 0

    def ask(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Store the body of the request, as JSON if it is JSON."""
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
        """Return `request`, `answer`, and whether each is complete."""
        reader = _Reader()
        # The parser raises for an answer that was cut, or that switched to another protocol.
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
