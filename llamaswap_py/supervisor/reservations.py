"""Reservations: memory held for other programs, each for as long as its holder lives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from llamaswap_py.errors import ApiError
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.ledger import is_counting
from llamaswap_py.scheduler.types import PoolId, PresetId
from llamaswap_py.snapshot import ReservationView

HEARTBEAT: Final = 30.0
"""Seconds a reservation without a connection lives after each sign of its holder."""
_PREFIX: Final = "reservation:"


@dataclass(slots=True, eq=False)
class Reservation:
    """Bytes per pool, and for whom. `pid` is the root of the process tree that uses them."""

    name: str
    footprint: dict[PoolId, int]
    settled: asyncio.Future[None]
    """Done once it is held; an ApiError when it cannot be."""
    asked_at: float = field(default_factory=time.time)
    held_at: float | None = None
    pid: int | None = None
    expires: asyncio.TimerHandle | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    baseline: dict[PoolId, int] = field(default_factory=dict)
    """Other programs' bytes when it began to be held, for one whose processes are not known."""

    @property
    def preset(self) -> PresetId:
        """What the scheduler knows it by."""
        return PresetId(_PREFIX + self.name)


class Reservations:
    """All reservations of one supervisor; `feed` hands events to its scheduler."""

    def __init__(self, dispatch: Callable[[ev.Event], None]) -> None:
        self._dispatch = dispatch
        self._all: dict[PresetId, Reservation] = {}
        self._numbers = count(1)

    @property
    def held(self) -> list[Reservation]:
        """Those that hold their memory."""
        return [one for one in self._all.values() if one.held_at is not None]

    @property
    def pids(self) -> list[int]:
        """The processes whose memory is reserved."""
        return [one.pid for one in self.held if one.pid is not None]

    @asynccontextmanager
    async def hold(
        self,
        footprint: Mapping[str, int],
        *,
        name: str | None = None,
        pid: int | None = None,
        evict: bool = True,
    ) -> AsyncIterator[Reservation]:
        """Wait until the memory is held, and hold it until the end of the context.

        Without `evict` no model is unloaded for it. Raises ApiError when it can never be held, or
        the name is taken.
        """
        reservation = self.ask(footprint, name=name, pid=pid, evict=evict)
        try:
            await reservation.settled
            yield reservation
        finally:
            self.release(reservation)

    def ask(
        self,
        footprint: Mapping[str, int],
        *,
        name: str | None = None,
        pid: int | None = None,
        evict: bool = True,
    ) -> Reservation:
        """Ask for memory; `settled` has the result. The caller has to `release` it."""
        called = name or f"{next(self._numbers)}"
        reservation = Reservation(
            called,
            {PoolId(pool): size for pool, size in footprint.items()},
            asyncio.get_running_loop().create_future(),
            pid=pid,
        )
        if reservation.preset in self._all:
            raise ApiError(
                "bad_request", f"there is a reservation {called!r} already", param="name"
            )
        self._all[reservation.preset] = reservation
        self._dispatch(ev.ReservationAsked(reservation.preset, reservation.footprint, evict))
        return reservation

    def release(self, reservation: Reservation) -> None:
        """Give the memory back; a second time does nothing."""
        if self._all.pop(reservation.preset, None) is None:
            return
        if reservation.expires is not None:
            reservation.expires.cancel()
        if not reservation.settled.done():
            reservation.settled.cancel()
        reservation.ended.set()
        self._dispatch(ev.ReservationReleased(reservation.preset))

    def find(self, name: str) -> Reservation:
        """Return the reservation of this name; raises ApiError `not_found`."""
        found = self._all.get(PresetId(_PREFIX + name))
        if found is None:
            raise ApiError(
                "not_found",
                f"there is no reservation {name!r} (any more)",
                remedy=f"without a sign of life it ends after {HEARTBEAT:g} s",
            )
        return found

    def keep_alive(self, reservation: Reservation) -> None:
        """Let it live for HEARTBEAT more seconds, from now."""
        if reservation.expires is not None:
            reservation.expires.cancel()
        loop = asyncio.get_running_loop()
        reservation.expires = loop.call_later(HEARTBEAT, self.release, reservation)

    def record_held(self, preset: str) -> None:
        """The scheduler holds it from now on."""
        reservation = self._all.get(PresetId(preset))
        if reservation is not None and not reservation.settled.done():
            reservation.held_at = time.time()
            reservation.settled.set_result(None)

    def record_refused(self, preset: str, message: str) -> None:
        """The scheduler says that it cannot be held."""
        reservation = self._all.get(PresetId(preset))
        if reservation is not None and not reservation.settled.done():
            reservation.settled.set_exception(
                ApiError("reservation_refused", f"the memory cannot be reserved: {message}")
            )

    def views(self) -> tuple[ReservationView, ...]:
        """Return all of them for people."""
        return tuple(
            ReservationView(
                name=one.name,
                memory={
                    str(pool): size for pool, size in one.footprint.items() if not is_counting(pool)
                },
                state="waiting" if one.held_at is None else "held",
                asked_at=one.asked_at,
                held_at=one.held_at,
                pid=one.pid,
            )
            for one in self._all.values()
        )
