"""The requests that are open: a list, and a way to end one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from llamaswap_py.errors import ApiError

if TYPE_CHECKING:
    from llamaswap_py.api.call import Call


class RequestView(msgspec.Struct, frozen=True):
    """One open request; `state` is `running` or `waiting`, `age` seconds, `bytes` what it got."""

    id: str
    method: str
    path: str
    model: str
    client: str
    state: str
    age: float
    bytes: int
    queue_ms: float
    load_ms: float


async def list_requests(call: Call) -> None:
    """GET /lswap/v1/requests: those for models, the oldest first."""
    now = time.monotonic()
    found = [
        RequestView(
            id=one.id,
            method=one.exchange.head.method,
            path=one.exchange.head.path[:200],
            model=one.model,
            client=one.client,
            state="running" if one.leased else "waiting",
            age=now - one.began,
            bytes=one.exchange.bytes_sent,
            queue_ms=one.queue_ms,
            load_ms=one.load_ms,
        )
        for one in call.app.calls.values()
        if one.model and one is not call
    ]
    found.sort(key=lambda one: -one.age)
    call.respond(200, {"requests": found})


async def cancel(call: Call) -> None:
    """POST /lswap/v1/requests/{id}/cancel: ends it with an error, wherever it is."""
    id = unquote(call.captured)
    one = call.app.calls.get(id)
    if one is None or not one.model or one is call:
        raise ApiError(
            "not_found",
            f"there is no open request {id[:100]!r}",
            remedy="GET /lswap/v1/requests lists them",
        )
    one.cancel()
    call.respond(200, {"id": id, "state": "cancelled"})


async def pin(call: Call) -> None:
    """POST /lswap/v1/models/{id}/pin: never evict it for another."""
    _set_pin(call, pinned=True)


async def unpin(call: Call) -> None:
    """POST /lswap/v1/models/{id}/unpin."""
    _set_pin(call, pinned=False)


def _set_pin(call: Call, *, pinned: bool) -> None:
    preset = call.find_preset(unquote(call.captured))
    call.supervisor.pin(preset, pinned)
    call.respond(200, {"model": preset, "pinned": pinned})
