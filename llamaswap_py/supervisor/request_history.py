"""Keeps the scheduler's statistics of requests on disk, so that a restart begins with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.demand import Traffic
from llamaswap_py.scheduler.types import PresetId
from llamaswap_py.storage.counters import KeptTraffic, TrafficStore
from llamaswap_py.storage.record_folder import traffic_folder

_EVERY: Final = 300.0
"""Seconds between two writes: what a kill may lose."""


class RequestHistory:
    """Reads the traffic of the run before, and writes that of this one now and then."""

    def __init__(self, name: str, traffic: Callable[[], Traffic]) -> None:
        self._store = TrafficStore(traffic_folder(), name)
        self._traffic = traffic

    async def recall(self) -> ev.TrafficRecalled | None:
        """Return what the run before has learned, None if there is nothing."""
        kept = await asyncio.to_thread(self._store.read)
        if kept is None:
            return None
        return ev.TrafficRecalled(_as_traffic(kept), max(time.time() - kept.saved_at, 0.0))

    async def run(self) -> None:
        """Write every few minutes, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY)
            await asyncio.to_thread(self._store.write, _as_kept(self._traffic(), time.time()))

    def save(self) -> None:
        """Write now, for the last time, if there is anything to keep. It blocks on the disk."""
        if (traffic := self._traffic()).rates:
            self._store.write(_as_kept(traffic, time.time()))


def _as_traffic(kept: KeptTraffic) -> Traffic:
    return Traffic(
        {PresetId(name): rates for name, rates in kept.rates.items()},
        {PresetId(name): gaps for name, gaps in kept.gaps.items()},
        {
            PresetId(name): {PresetId(other): count for other, count in row.items()}
            for name, row in kept.followers.items()
        },
        {PresetId(name): seconds for name, seconds in kept.unused.items()},
    )


def _as_kept(traffic: Traffic, now: float) -> KeptTraffic:
    return KeptTraffic(
        now,
        {str(name): rates for name, rates in traffic.rates.items()},
        {str(name): gaps for name, gaps in traffic.gaps.items()},
        {
            str(name): {str(other): count for other, count in row.items()}
            for name, row in traffic.followers.items()
        },
        {str(name): seconds for name, seconds in traffic.unused.items()},
    )
