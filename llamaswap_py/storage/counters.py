"""Request rates and load speeds, kept on disk from run to run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import msgspec

from llamaswap_py.storage.record_folder import RecordFolder

VERSION: Final = 1
_NEWEST: Final = 0.3
"""Weight of the newest load in the running mean."""
_LEAST: Final = 64 << 20
"""Only loads of at least these bytes count: for smaller models the start takes most of the time."""


class KeptTraffic(msgspec.Struct, frozen=True):
    """Request rates (over half a minute and an hour), idle gaps, and which preset follows which.

    `saved_at` is Unix time. See `scheduler.demand.Traffic`. `unused` is empty in records of lswap
    0.2, which ignores it in newer ones.
    """

    saved_at: float
    rates: dict[str, tuple[float, float]] = {}
    gaps: dict[str, tuple[float, ...]] = {}
    followers: dict[str, dict[str, float]] = {}
    unused: dict[str, float] = {}


class _LoadRate(msgspec.Struct, frozen=True):
    bytes_per_second: float


class TrafficStore:
    """The traffic of one supervisor, by its name. Its calls may block on the disk."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = RecordFolder(folder, KeptTraffic, version=VERSION)
        self._key = "traffic-" + hashlib.sha256(name.encode()).hexdigest()[:24]

    def read(self) -> KeptTraffic | None:
        """Return the traffic that the run before has kept, None if there is none."""
        return self._folder.read(self._key)

    def write(self, traffic: KeptTraffic) -> None:
        """Keep the traffic."""
        self._folder.write(self._key, traffic)


class LoadRates:
    """How fast models load, per kind of engine (`cpu`, `cuda`). Its calls may block on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = RecordFolder(folder, _LoadRate, version=VERSION)

    def expect(self, backend: str, size: int) -> float | None:
        """Return the seconds that loading `size` bytes should take; None if it is unknown."""
        rate = self._folder.read(_key(backend))
        return size / rate.bytes_per_second if rate is not None and size >= _LEAST else None

    def record(self, backend: str, size: int, seconds: float) -> None:
        """Learn from a load of `size` bytes; small ones do not count."""
        if size < _LEAST or seconds <= 0:
            return
        old, new = self._folder.read(_key(backend)), size / seconds
        if old is not None:
            new = _NEWEST * new + (1 - _NEWEST) * old.bytes_per_second
        self._folder.write(_key(backend), _LoadRate(new))


def _key(backend: str) -> str:
    return "load-rate-" + "".join(char for char in backend if char.isalnum())
