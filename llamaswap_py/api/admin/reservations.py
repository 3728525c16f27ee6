"""Routes for reservations; one lasts as long as its connection, or while heartbeats come."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import unquote

import msgspec

from llamaswap_py.api.admin.openapi import TEXT, Parameter, described
from llamaswap_py.api.admin.types import (
    HeartbeatRequest,
    ReservationAnswer,
    ReservationRequest,
    Reservations,
)
from llamaswap_py.api.read_body import read_control
from llamaswap_py.errors import ApiError
from llamaswap_py.units import parse_size

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call

HEARTBEAT: Final = 30.0
_NAME: Final = Parameter("name", "path", TEXT, "The name of the reservation.")
_T = TypeVar("_T", bound=msgspec.Struct)
_SIGN: Final = 10.0
"""Seconds between two lines on an open connection, by which a dead connection is noticed."""


@described({200: Reservations})
async def list_reservations(call: Call) -> None:
    """GET /lswap/v1/reservations: The memory that is held for other programs."""
    call.respond(200, Reservations(call.supervisor.reservations.views()))


@described(
    {200: "application/x-ndjson", 201: ReservationAnswer},
    body=ReservationRequest,
    body_is_required=True,
    errors=(409, 413, 503),
)
async def reserve(call: Call) -> None:
    """POST /lswap/v1/reservations: Hold memory for another program; answers when it is free.

    Models are drained and unloaded for it.
    """
    asked = await _read(call, ReservationRequest)
    footprint = _footprint(call, asked.memory)
    if asked.name is not None and not (0 < len(asked.name) <= 100 and asked.name.isprintable()):
        raise ApiError("bad_request", "name must be 1 to 100 printable characters", param="name")
    if asked.stream:
        await _hold_open(call, asked, footprint)
        return
    held = call.supervisor.reservations
    reservation = held.ask(footprint, name=asked.name, pid=asked.pid)
    try:
        await reservation.settled
    except BaseException:
        held.release(reservation)
        raise
    held.keep_alive(reservation)
    call.respond(201, ReservationAnswer(reservation.name, "held", footprint, HEARTBEAT))


@described({200: ReservationAnswer}, _NAME, body=HeartbeatRequest, errors=(413,))
async def heartbeat(call: Call) -> None:
    """POST /lswap/v1/reservations/{name}/heartbeat: Keep a reservation for another 30 s."""
    asked = await _read(call, HeartbeatRequest)
    reservation = call.supervisor.reservations.find(unquote(call.captured))
    if asked.pid is not None:
        reservation.pid = asked.pid
    if reservation.expires is not None:
        call.supervisor.reservations.keep_alive(reservation)
    call.respond(200, ReservationAnswer(reservation.name, "held"))


@described({200: ReservationAnswer}, _NAME)
async def release(call: Call) -> None:
    """DELETE /lswap/v1/reservations/{name}: Release the memory of a reservation."""
    reservation = call.supervisor.reservations.find(unquote(call.captured))
    call.supervisor.reservations.release(reservation)
    call.respond(200, ReservationAnswer(reservation.name, "released"))


async def _hold_open(call: Call, asked: ReservationRequest, footprint: dict[str, int]) -> None:
    """Answer in lines of JSON: `waiting`, `held`, and then a line at intervals."""
    exchange, held = call.exchange, call.supervisor.reservations
    reservation = held.ask(footprint, name=asked.name, pid=asked.pid)
    try:
        if reservation.settled.done():
            await reservation.settled  # if it is refused at once, the answer is a normal error
        call.status = 200
        await exchange.start(200, "application/x-ndjson")
        first = {"name": reservation.name, "state": "waiting", "memory": footprint}
        await exchange.write(msgspec.json.encode(first) + b"\n")
        while not (await asyncio.wait([reservation.settled], timeout=_SIGN))[0]:
            await exchange.write(b'{"state":"waiting"}\n')
        if error := reservation.settled.exception():
            line = {"state": "refused", "message": str(error)}
            await exchange.write(msgspec.json.encode(line) + b"\n")
        else:
            await exchange.write(b'{"state":"held"}\n')
            await _say_held(call, reservation.ended)
        await exchange.finish()
    finally:
        held.release(reservation)


async def _say_held(call: Call, ended: asyncio.Event) -> None:
    """Write a line at intervals, until the reservation is released or lswap stops."""
    closing = call.services.closing
    async with asyncio.TaskGroup() as group:
        ends = {group.create_task(ended.wait()), group.create_task(closing.wait())}
        while not (await asyncio.wait(ends, timeout=_SIGN, return_when="FIRST_COMPLETED"))[0]:
            await call.exchange.write(b'{"state":"held"}\n')
        for task in ends:
            task.cancel()
    await call.exchange.write(b'{"state":"released"}\n')


def _footprint(call: Call, memory: dict[str, int | str]) -> dict[str, int]:
    known = [one.id for one in call.supervisor.devices]
    if not memory:
        raise ApiError("bad_request", "memory names no device", param="memory")
    found: dict[str, int] = {}
    for device, size in memory.items():
        if device not in known:
            message = f"this machine has no device {device!r}"
            raise ApiError(
                "bad_request", message, param="memory", remedy=f"known: {', '.join(known)}"
            )
        try:
            found[device] = size if isinstance(size, int) else parse_size(size)
        except ValueError as error:
            raise ApiError("bad_request", f"memory.{device}: {error}", param="memory") from None
        if found[device] <= 0:
            raise ApiError("bad_request", f"memory.{device} must be above 0", param="memory")
    return found


async def _read(call: Call, kind: type[_T]) -> _T:
    text = (await read_control(call)).strip() or b"{}"
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        place = re.search(r"at `\$\.(\w+)", str(error))
        param = place[1] if place else None
        raise ApiError("bad_json", f"the body cannot be read: {error}", param=param) from None
