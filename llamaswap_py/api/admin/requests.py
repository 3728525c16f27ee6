"""The requests that are open: a list, and a way to end one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import msgspec

from llamaswap_py.api.admin.types import CancelAnswer, PinAnswer
from llamaswap_py.errors import ApiError

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call


_OWN: Final = "/lswap/"
"""Operators' own requests are for lswap, also where they name a model: its log, a load."""


class RequestView(msgspec.Struct, frozen=True):
    """One open request; `age` in seconds, `bytes` what its client got.

    `state` is `running`, `waiting`, or `detached`: its client has left and may come back.
    `tokens` are those its stream brought so far, about: llama-server writes an event for each.
    """

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
    tokens: int = 0


class TokensView(msgspec.Struct, frozen=True):
    """The tokens of a model's finished answers since the start, as the answers told."""

    prompt: int
    answer: int


class Requests(msgspec.Struct, frozen=True):
    """The open requests for models, the oldest first, and the tokens of each model."""

    requests: tuple[RequestView, ...]
    tokens: dict[str, TokensView]


async def list_requests(call: Call) -> None:
    """GET /lswap/v1/requests: those for models, the oldest first, and tokens per model."""
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
            tokens=one.exchange.events_relayed,
        )
        for one in call.services.calls.values()
        if one.model and call.may_use(one.model) and not one.exchange.head.path.startswith(_OWN)
    ]
    counts = call.services.traffic
    tokens = {
        model: TokensView(counts.tokens_in.get(model, 0), counts.tokens_out.get(model, 0))
        for model in counts.tokens_in.keys() | counts.tokens_out.keys()
        if call.may_use(model)
    }
    found += _detached(call, now)
    found.sort(key=lambda one: -one.age)
    call.respond(200, Requests(tuple(found), tokens))


def _detached(call: Call, now: float) -> list[RequestView]:
    """Return the answers that go on without their clients."""
    return [
        RequestView(
            id=one.request_id,
            method="POST",
            path="",
            model=one.preset,
            client="",
            state="waiting" if one.waiting is not None else "detached",
            age=now - one.began,
            bytes=0,
            queue_ms=0.0,
            load_ms=0.0,
        )
        for one in call.supervisor.conversations.detached
        if call.may_use(one.preset)
    ]


async def cancel(call: Call) -> None:
    """POST /lswap/v1/requests/{id}/cancel: ends it with an error, wherever it is."""
    id = unquote(call.captured)
    conversations = call.supervisor.conversations
    for left in conversations.detached:
        if left.request_id == id:
            await conversations.stop(left)
            call.respond(200, CancelAnswer(id, "cancelled"))
            return
    one = call.services.calls.get(id)
    if one is None or not one.model or one is call:
        raise ApiError(
            "not_found",
            f"there is no open request {id[:100]!r}",
            remedy="GET /lswap/v1/requests lists them",
        )
    one.cancel()
    call.respond(200, CancelAnswer(id, "cancelled"))


async def pin(call: Call) -> None:
    """POST /lswap/v1/models/{id}/pin: never evict it for another."""
    _set_pin(call, pinned=True)


async def unpin(call: Call) -> None:
    """POST /lswap/v1/models/{id}/unpin."""
    _set_pin(call, pinned=False)


def _set_pin(call: Call, *, pinned: bool) -> None:
    preset = call.find_preset(unquote(call.captured))
    call.supervisor.pin(preset, pinned)
    call.respond(200, PinAnswer(preset, pinned))
