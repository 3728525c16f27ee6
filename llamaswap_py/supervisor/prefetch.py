"""Prefetch: model files are read into the page cache before their load.

Files of models that wait for memory come first, then those of `keep_in_ram`. One file is read at a
time, while nothing loads, and never into memory that is needed. Page cache counts as free memory:
it is not charged to a model, and not locked.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from llamaswap_py.config.sections import Memory
from llamaswap_py.devices import read_cache_room
from llamaswap_py.devices.page_cache import Reading
from llamaswap_py.llamacpp.memory_settings import read_settings
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.lifecycle import State
from llamaswap_py.scheduler.state import SchedulerState
from llamaswap_py.scheduler.types import PoolId, PresetId
from llamaswap_py.snapshot import ReadAheadView
from llamaswap_py.supervisor.prepare import Prepared
from llamaswap_py.units import HOST

_GRACE: Final = 0.02
"""Seconds before anything is read: most swaps of an idle model are over by then."""
_TICK: Final = 0.25
"""Seconds between two looks at the ledger while a file is read."""
_KEPT_EVERY: Final = 30.0
"""Seconds between two looks at whether the kernel has dropped what is kept."""


@dataclass(frozen=True, slots=True)
class _Order:
    """The files of a preset's variant: of one that waits, or (`kept`) of one that is kept."""

    preset: PresetId
    variant: str
    kept: bool = False


class Prefetch:
    """Reads what `aim` named last, in that order; else what `keep_in_ram` keeps.

    `prepared` and `state` are the supervisor's own, and change. `room` says how far the page cache
    may grow (bytes); it is asked in a thread.
    """

    def __init__(
        self,
        prepared: Mapping[str, Prepared],
        state: SchedulerState,
        memory: Memory,
        dispatch: Callable[[ev.Event], None],
        room: Callable[[], int] = read_cache_room,
    ) -> None:
        self._prepared, self._state = prepared, state
        self._memory, self._dispatch, self._room = memory, dispatch, room
        self._total = 0
        self._wanted: tuple[_Order, ...] = ()
        self._keep: list[str] = []
        """The presets that `keep_in_ram`, in the file's order."""
        self._done: dict[_Order, Reading] = {}
        self._now: tuple[_Order, Reading] | None = None
        self._limit = 0
        self._stir = asyncio.Event()
        self._blind = False
        """Whether the kernel does not tell what is in the page cache."""

    @property
    def bytes_read(self) -> int:
        """Bytes that were brought into the page cache, ever."""
        return self._total + (self._now[1].read if self._now else 0)

    def aim(self, presets: tuple[tuple[PresetId, str], ...]) -> None:
        """Read the files of these presets (name, variant) from now on, and no others."""
        if self._memory.read_ahead == "off" or sys.platform != "linux":
            return
        self._wanted = tuple(_Order(*one) for one in presets)
        self._discard(lambda order: not order.kept and order not in self._wanted)
        self._stir.set()

    def recheck(self) -> None:
        """Look again at what is kept: a child is gone."""
        if self._keep:
            self._discard(lambda order: order.kept)
            self._stir.set()

    def presets_changed(self) -> None:
        """Take other presets: a file was read again, or a model's files have come."""
        self._keep = [name for name, one in self._prepared.items() if one.preset.keep_in_ram]
        self._discard(lambda order: order.kept)
        self._stir.set()

    def view(self, preset: str) -> ReadAheadView | None:
        """Return how much of a waiting preset's files was read ahead; None: nothing is."""
        found = [*self._done.items(), *([self._now] if self._now else [])]
        for order, reading in found:
            if order.preset == preset and order in self._wanted and reading.size:
                return ReadAheadView(reading.there, reading.size, reading.read)
        return None

    async def run(self) -> None:
        """Read whenever there is something to read, until cancelled."""
        self.presets_changed()
        while True:
            self._stir.clear()
            order = self._next()
            if order is None:
                await self._wait_for_work()
            elif self._is_loading():
                await self._stirred(_TICK)
            elif order.kept or not await self._stirred(_GRACE):
                await self._read(order)

    def _next(self) -> _Order | None:
        orders = self._wanted or self._kept()
        return next((one for one in orders if one not in self._done), None)

    def _kept(self) -> tuple[_Order, ...]:
        """Return what is kept and not loaded, in the file's order."""
        if not self._keep or sys.platform != "linux":
            return ()
        loaded = {key.preset for key in self._state.instances}
        return tuple(
            _Order(PresetId(name), next(iter(self._prepared[name].ways)), kept=True)
            for name in self._keep
            if name not in loaded and self._prepared[name].plan.problem is None
        )

    def _is_loading(self) -> bool:
        return any(one.state is State.LOADING for one in self._state.instances.values())

    async def _wait_for_work(self) -> None:
        kept = [order for order in self._done if order.kept]
        look_again = bool(kept) and not self._blind and not self._wanted
        if not await self._stirred(_KEPT_EVERY if look_again else None):
            self._discard(lambda order: order.kept)

    async def _stirred(self, seconds: float | None) -> bool:
        """Wait until something changes, or so long; return whether it did."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stir.wait()
                return True
        return False

    def _discard(self, which: Callable[[_Order], bool]) -> None:
        self._done = {order: one for order, one in self._done.items() if not which(order)}

    def _files(self, order: _Order) -> tuple[str, ...]:
        """Return what a load would read through the page cache."""
        prepared = self._prepared.get(order.preset)
        way = prepared.ways.get(order.variant) if prepared is not None else None
        if way is None or read_settings(way.args).direct:
            return ()
        return way.files

    async def _read(self, order: _Order) -> None:
        """Read one preset's files, as long as it is its turn."""
        loop = asyncio.get_running_loop()
        before = sum(one.there for other, one in self._done.items() if other.kept == order.kept)
        self._limit = self._promise(order)
        ended = False

        def finish() -> None:
            nonlocal ended
            ended = True
            self._stir.set()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the result is not needed
                loop.call_soon_threadsafe(finish)

        reading = Reading(self._files(order), lambda: self._allowed() - before, tell)
        self._now = order, reading
        reading.start()
        stopped = False
        try:
            while not ended:
                self._stir.clear()
                await self._stirred(_TICK)
                self._limit = self._promise(order)
                if not ended and (self._next() != order or self._is_loading()):
                    stopped = True
                    reading.cancel()
        finally:
            reading.cancel()
            self._now = None
            self._total += reading.read
        self._record(order, reading, stopped=stopped)

    def _record(self, order: _Order, reading: Reading, *, stopped: bool) -> None:
        self._blind |= reading.blind
        if not stopped and (order.kept or order in self._wanted):
            self._done[order] = reading
        if reading.read:
            told = (reading.there, reading.size, reading.read, reading.seconds)
            self._dispatch(ev.FilesRead(order.preset, *told, kept=order.kept))

    def _promise(self, order: _Order) -> int:
        """Return how many bytes the ledger has not promised to a model."""
        free = self._state.ledger.free().get(PoolId(HOST), 0)
        if order.kept and self._memory.host_cache is not None:
            return min(free, self._memory.host_cache)
        return free

    def _allowed(self) -> int:
        """Return how many bytes the page cache may take now; called in the reading thread."""
        try:
            room = self._room() - self._memory.margin.of(HOST)
        except (OSError, ValueError):
            return 0
        return min(room, self._limit)
