"""Figures measured in earlier loads of a preset: bytes per device, and seconds of loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from llamaswap_py.storage.record_folder import RecordFolder

VERSION: Final = 1
NEWEST: Final = 0.3
"""Weight of the newest load time in the running mean, as the scheduler weighs them."""


class Facts(msgspec.Struct, frozen=True):
    """Bytes per device, seconds.

    A life is the time from a load to its unload. `at_ready` is of the newest life, `peak` the most
    of any life. `growth` is the estimate of memory that comes with use (compute buffers that only a
    full batch touches, the prompt cache): a life of small requests does not show it.
    """

    preset: str
    at_ready: dict[str, int] = {}
    peak: dict[str, int] = {}
    growth: dict[str, int] = {}
    load_seconds: float | None = None
    loads: int = 0
    reported: bool = False

    @property
    def footprint(self) -> dict[str, int]:
        """The most that the next life will take: the peak, or `at_ready` plus all growth."""
        return {
            device: max(self.peak.get(device, 0), ready + self.growth.get(device, 0))
            for device, ready in self.at_ready.items()
        }


class LearnedFacts:
    """The facts on disk, by key (`Wanted.key`). Its calls may block on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = RecordFolder(folder, Facts, version=VERSION)

    def get(self, key: str) -> Facts | None:
        """Return what is known, None if nothing is."""
        return self._folder.read(key)

    def record_ready(
        self,
        key: str,
        preset: str,
        use: Mapping[str, int],
        growth: Mapping[str, int] | None,
        load_seconds: float | None,
    ) -> Facts:
        """Keep what a child took when it became ready, and how long its load was.

        `growth` None leaves the earlier value.
        """
        old = self.get(key) or Facts(preset)
        seconds = old.load_seconds
        if load_seconds is not None:
            seconds = (
                load_seconds if seconds is None else NEWEST * load_seconds + (1 - NEWEST) * seconds
            )
        facts = msgspec.structs.replace(
            old,
            at_ready={**old.at_ready, **use},
            peak=_most(old.peak, use),
            growth=old.growth if growth is None else dict(growth),
            load_seconds=seconds,
            loads=old.loads + 1,
        )
        self._folder.write(key, facts)
        return facts

    def record_peak(self, key: str, use: Mapping[str, int]) -> Facts | None:
        """Keep the most a child took; does nothing before record_ready."""
        old = self.get(key)
        if old is None:
            return None
        facts = msgspec.structs.replace(old, peak=_most(old.peak, use))
        if facts != old:
            self._folder.write(key, facts)
        return facts

    def record_reported(self, key: str) -> None:
        """Remember that a wrong estimate was logged, so that it is logged only once."""
        old = self.get(key)
        if old is not None and not old.reported:
            self._folder.write(key, msgspec.structs.replace(old, reported=True))

    def discard(self, key: str) -> None:
        """Drop what is known of one key."""
        self._folder.discard(key)

    def prune(self) -> int:
        """Drop the oldest facts beyond a limit; returns how many."""
        return self._folder.prune()


def _most(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {
        device: max(one.get(device, 0), other.get(device, 0)) for device in sorted({*one, *other})
    }
