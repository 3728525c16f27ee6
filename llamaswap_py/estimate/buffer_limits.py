"""The sizes of tensors that devices have refused, kept over restarts.

No device tells its limit before a run: 128 MiB on Mesa's software driver, 4 GiB on many cards.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from llamaswap_py.estimate.wanted import SCHEMA
from llamaswap_py.storage import RecordFolder

if TYPE_CHECKING:
    from llamaswap_py.estimate.wanted import Wanted


class _Limit(msgspec.Struct, frozen=True):
    """`refused`: the smallest size in bytes that was too large."""

    refused: int


class BufferLimits:
    """What each device of each engine has refused. Its calls may block on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = RecordFolder(folder, _Limit, version=SCHEMA)

    def refused(self, wanted: Wanted) -> dict[str, int]:
        """Return the smallest size that each device refused; nothing of a device that did not."""
        found: dict[str, int] = {}
        for gpu in wanted.gpus:
            if (limit := self._folder.read(_name(wanted, gpu))) is not None:
                found[gpu] = limit.refused
        return found

    def record(self, wanted: Wanted, gpu: str, size: int) -> None:
        """Keep that a device refused a tensor of `size` bytes."""
        known = self.refused(wanted).get(gpu)
        if known is None or size < known:
            self._folder.write(_name(wanted, gpu), _Limit(size))


def _name(wanted: Wanted, gpu: str) -> str:
    machine = [one for one in wanted.machine if one.startswith(f"{gpu}=")]
    told = msgspec.json.encode([wanted.engine, gpu, machine])
    return f"limit-{hashlib.sha256(told).hexdigest()[:32]}"
