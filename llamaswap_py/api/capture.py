"""Prompts and answers on disk, where the file asks for it (`capture: on`); off by default."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from llamaswap_py.children import ChildLog
from llamaswap_py.children.logs import LogFile
from llamaswap_py.storage.records import captures_folder

_LAST_WRITES: Final = 2.0
"""Seconds that the last records may take to be written."""
_log: Final = logging.getLogger("lswap")


class Captures:
    """Appends one line of JSON a request to a file that only its owner can read."""

    def __init__(self, name: str, rotate: int | None) -> None:
        self.path: Path = captures_folder() / f"{name}.jsonl"
        self._file = LogFile(self.path, rotate)
        self._trouble = ChildLog()
        self._said = -1

    def keep(self, record: Mapping[str, Any]) -> None:
        """Write a record soon; a disk that is full or slow loses it, and the log says so."""
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
            with suppress(TimeoutError):  # a disk that hangs keeps nobody from ending
                async with asyncio.timeout(_LAST_WRITES):
                    await self._file.flush(self._trouble)
