"""The steps that ran out of memory, kept from run to run with the memory that there was.

An estimate that was too low would be too low again after a restart, and the same load would fail
again.
"""

from __future__ import annotations

from typing import Final

import msgspec

from llamaswap_py.storage.record_folder import RecordFolder, traffic_folder

_VERSION: Final = 1
"""Raise it if the order of the steps in `estimate/fitting.py` changes: ranks are kept."""


class StepDown(msgspec.Struct, frozen=True):
    """The ranks of steps that ran out of memory, and the bytes per device that there were.

    `rank` is that of the usual choice, for which others are unloaded. `beside` is that of the
    choice which fits beside others. -1: none ran out of memory.
    """

    room: dict[str, int]
    rank: int = -1
    beside: int = -1


class StepDowns:
    """The steps by a key that names files, arguments, engine and devices. Its calls may block."""

    def __init__(self) -> None:
        self._folder = RecordFolder(traffic_folder(), StepDown, version=_VERSION)

    def read(self, key: str) -> StepDown | None:
        """Return what failed, None if nothing did."""
        return self._folder.read(f"step-down-{key}")

    def write(self, key: str, failed: StepDown) -> None:
        """Keep what failed."""
        self._folder.write(f"step-down-{key}", failed)

    def discard(self, key: str) -> None:
        """Forget what failed, so that it may be tried again."""
        self._folder.discard(f"step-down-{key}")
