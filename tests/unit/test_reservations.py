"""Reservations: waited for, held, kept alive, given back; and whose bytes count as whose."""

from __future__ import annotations

import asyncio

import pytest

from llamaswap_py.devices import Device, Measurement
from llamaswap_py.devices.reader import PoolReading
from llamaswap_py.errors import ApiError
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.types import PoolId
from llamaswap_py.supervisor.memory_pools import MemoryPools
from llamaswap_py.supervisor.reservations import Reservation, Reservations

pytestmark = pytest.mark.anyio
CARD = PoolId("CUDA0")


def made() -> tuple[Reservations, list[ev.Event]]:
    seen: list[ev.Event] = []
    return Reservations(seen.append), seen


async def test_one_is_held_until_its_context_ends() -> None:
    reservations, seen = made()
    entered = asyncio.Event()

    async def program() -> None:
        async with reservations.hold({"CUDA0": 5}, name="comfy"):
            entered.set()
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(program())
        await asyncio.sleep(0)
        assert seen == [ev.ReservationAsked("reservation:comfy", {CARD: 5})]
        assert [one.state for one in reservations.views()] == ["waiting"]
        reservations.record_held("reservation:comfy")
        await entered.wait()
        assert [one.state for one in reservations.views()] == ["held"]
        task.cancel()
    assert seen[1:] == [ev.ReservationReleased("reservation:comfy")]
    assert reservations.views() == ()


async def test_who_leaves_while_waiting_gives_up_its_claim() -> None:
    reservations, seen = made()

    async def program() -> None:
        async with reservations.hold({"CUDA0": 5}):
            raise AssertionError("it was never held")

    task = asyncio.create_task(program())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen[-1] == ev.ReservationReleased("reservation:1")
    reservations.record_held("reservation:1")
    reservations.record_refused("reservation:1", "late")


async def test_a_refusal_says_why() -> None:
    reservations, seen = made()
    reservation = reservations.ask({"CUDA0": 5}, name="big")
    reservations.record_refused("reservation:big", "can never fit")
    with pytest.raises(ApiError, match="cannot be reserved: can never fit"):
        await reservation.settled
    with pytest.raises(ApiError, match="is a reservation 'big' already"):
        reservations.ask({"CUDA0": 1}, name="big")
    reservations.release(reservation)
    reservations.release(reservation)
    assert len(seen) == 2
    with pytest.raises(ApiError, match="no reservation 'big'"):
        reservations.find("big")


async def test_without_a_sign_of_life_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamaswap_py.supervisor.reservations.HEARTBEAT", 0.01)
    reservations, seen = made()
    reservation = reservations.ask({"CUDA0": 5})
    reservations.record_held(reservation.preset)
    reservations.keep_alive(reservation)
    await asyncio.wait_for(reservation.ended.wait(), 60)
    assert seen[-1] == ev.ReservationReleased(reservation.preset)


def watched(strangers: int | None, used: int = 0) -> Measurement:
    ours = None if strangers is None else used - strangers
    return Measurement(0.0, {"CUDA0": PoolReading(100, used, ours, strangers)})


def reserved(size: int, pid: int | None) -> Reservation:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    return Reservation("x", {CARD: size}, future, held_at=1.0, pid=pid)


async def test_bytes_of_a_reservations_own_processes_count_once() -> None:
    pools = MemoryPools((Device("CUDA0", 100, 0, "nvml"),))
    one = reserved(30, pid=7)
    # Its tree was read as ours: 20 of its 30, and 5 are really strangers'.
    found = pools.update(watched(5, 25), {}, frozenset(), [one], {7: {"CUDA0": 20}})
    assert found[CARD].strangers == 5
    # It takes more than it reserved: what is beyond counts.
    found = pools.update(watched(5, 45), {}, frozenset(), [one], {7: {"CUDA0": 40}})
    assert found[CARD].strangers == 15


async def test_a_program_whose_processes_are_unknown_grows_into_its_reservation() -> None:
    pools = MemoryPools((Device("CUDA0", 100, 0, "nvml"),))
    one = reserved(30, pid=None)
    assert pools.update(watched(5, 5), {}, frozenset(), [one])[CARD].strangers == 5
    assert pools.update(watched(25, 25), {}, frozenset(), [one])[CARD].strangers == 5
    assert pools.update(watched(50, 50), {}, frozenset(), [one])[CARD].strangers == 20
    assert pools.update(watched(50, 50), {}, frozenset(), [])[CARD].strangers == 50


async def test_where_processes_cannot_be_told_apart_it_is_taken_for_a_load() -> None:
    pools = MemoryPools((Device("CUDA0", 100, 0, "nvml"),))
    one = reserved(30, pid=7)
    assert pools.update(watched(None, 25), {}, frozenset(), [one])[CARD].strangers == 0
    assert pools.update(watched(None, 45), {}, frozenset(), [one])[CARD].strangers == 15
