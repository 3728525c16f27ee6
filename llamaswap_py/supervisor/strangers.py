"""What other programs steadily hold of each device: the least of the last ten minutes.

A preset is fitted beside it. What comes and goes within ten minutes, a compiler or a browser's
page, changes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.storage.record_folder import RecordFolder, traffic_folder

if TYPE_CHECKING:
    from llamaswap_py.devices import Device

_WINDOW: Final = 600.0
_STEP: Final = 60.0
"""Seconds whose least is kept as one figure."""
_EVERY: Final = 300.0
"""Seconds between two writes: what a kill may lose."""
_VERSION: Final = 1
_NAME: Final = "strangers"


class KeptStrangers(msgspec.Struct, frozen=True):
    """Bytes per device, as the run before has seen them."""

    held: dict[str, int]


class SteadyStrangers:
    """Takes what is measured, says the least of it, and keeps that from run to run.

    Each set of `devices` has a record of its own: of a declared device nothing is measured, and a
    name like CUDA0 may mean another card for another engine.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, devices: Sequence[Device] = ()
    ) -> None:
        self._clock = clock
        self._name = _NAME + _mark(devices)
        self._seen: deque[tuple[float, dict[str, int]]] = deque()
        self._store = RecordFolder(traffic_folder(), KeptStrangers, version=_VERSION)

    async def recall(self) -> None:
        """Begin with what the run before has seen, as if it had been measured now."""
        self.record(await asyncio.to_thread(self.kept))

    def kept(self) -> dict[str, int]:
        """Return what the run before has seen: bytes per device. It blocks on the disk."""
        found = self._store.read(self._name)
        return {} if found is None else found.held

    def record(self, held: Mapping[str, int]) -> None:
        """Take what other programs hold now, in bytes per device."""
        now = self._clock()
        if not self._seen or now - self._seen[-1][0] >= _STEP:
            self._seen.append((now, {}))
        least = self._seen[-1][1]
        for device, size in held.items():
            least[device] = min(size, least.get(device, size))
        while now - self._seen[0][0] > _WINDOW + _STEP:
            self._seen.popleft()

    def least(self) -> dict[str, int]:
        """Return the least that they held of each device, in bytes."""
        found: dict[str, int] = {}
        for _, held in self._seen:
            for device, size in held.items():
                found[device] = min(size, found.get(device, size))
        return found

    async def run(self) -> None:
        """Write every few minutes, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY)
            await asyncio.to_thread(self.save)

    def save(self) -> None:
        """Write now. It blocks on the disk."""
        if held := self.least():
            self._store.write(self._name, KeptStrangers(held))


def _mark(devices: Sequence[Device]) -> str:
    """Return an ending that tells a set of devices from others; "" without devices."""
    if not devices:
        return ""
    said = sorted(f"{one.id} {one.uuid or ''} {one.source}" for one in devices)
    return "-" + hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]
