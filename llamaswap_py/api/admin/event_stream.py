"""Server-sent events: lswap's own stream, and one in the form of llama.cpp's router."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llamaswap_py.api.admin.openapi import BOOLEAN, COUNT, Parameter, described
from llamaswap_py.api.model_lists import names_of_model
from llamaswap_py.errors import ApiError
from llamaswap_py.llamacpp.router_mode import router_status

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.api.request import Call
    from llamaswap_py.snapshot import InstanceView
    from llamaswap_py.supervisor.event_log import EventRecord

HEARTBEAT: Final = 10.0
"""Seconds of silence after which a comment line is sent, to show that the connection works."""
_OF_ROUTER: Final = frozenset({"downloading", "loading", "ready", "sleeping", "unloaded", "failed"})
"""States that llama.cpp's router also has."""


@described(
    {200: "text/event-stream"},
    Parameter("after", "query", COUNT, "Replay the events after this id."),
    Parameter("Last-Event-ID", "header", COUNT, "The same as `after`."),
    Parameter("follow", "query", BOOLEAN, "Continue with new events, which is the default."),
)
async def events(call: Call) -> None:
    """GET /lswap/v1/events: A stream of events: decision, state, progress, request, reload.

    It replays the events after `Last-Event-ID` (or `?after=`), then continues with new ones. With
    `?follow=false` it ends after the replay, which then has all stored events if no id is given.
    """
    after = _after(call)
    feed = call.supervisor.event_log
    first: list[bytes] = []
    if after is not None and after + 1 < feed.first:
        lost = {"from": after + 1, "to": feed.first - 1}
        first.append(b"event: lost\ndata: " + msgspec.json.encode(lost) + b"\n\n")

    def render(record: EventRecord) -> bytes:
        data = _as_dict(record.data)
        model = data.get("model", data.get("preset"))
        if model is not None and not call.may_use(model):
            return b""
        for key in ("added", "removed", "changed") if record.event == "reload" else ():
            data[key] = list(filter(call.may_use, data[key]))
        head = f"id: {record.id}\nevent: {record.event}\ndata: ".encode()
        return head + msgspec.json.encode({"at": record.at, **data}) + b"\n\n"

    if call.flag("follow") is False:
        call.status = 200
        replayed = [*first, *map(render, feed.since(after or 0))]
        call.exchange.respond(200, b"".join(replayed), "text/event-stream")
        return
    await _stream(call, after, render, first)


async def router_events(call: Call) -> None:
    """GET /models/sse: status changes in the shape of llama.cpp's router (server-models.cpp)."""

    def render(record: EventRecord) -> bytes:
        said = _router_event(call, record)
        if said is None:
            return b""
        # Each other name has its own entry in the list, which must be updated too.
        names = [said["model"]]
        if said["event"] != "models_reload":
            names = names_of_model(call, said["model"])
        events = [said | {"model": name} for name in names]
        return b"".join(b"data: " + msgspec.json.encode(one) + b"\n\n" for one in events)

    await _stream(call, None, render, [])


def _router_event(call: Call, record: EventRecord) -> dict[str, Any] | None:
    data = record.data
    if record.event == "reload":
        return {"model": "*", "event": "models_reload"}
    if record.event not in ("state", "progress", "download", "removed"):
        return None
    model = data["model"]
    if not call.may_use(model):
        return None
    if record.event == "removed":
        return {"model": model, "event": "model_remove", "data": {}}
    if record.event == "download":
        event = "download_finished" if data["ok"] else "download_failed"
        return {"model": model, "event": event, "data": {}}
    if record.event == "progress" and "epoch" not in data:
        done = {"done": round(data["fraction"] * data["total"]), "total": data["total"]}
        return {"model": model, "event": "download_progress", "data": {"progress": {model: done}}}
    if record.event == "progress":
        told = {"stages": ["text_model"], "current": "text_model", "value": data["fraction"]}
        return {
            "model": model,
            "event": "status_change",
            "data": {"status": "loading", "progress": told},
        }
    if data["state"] not in _OF_ROUTER:
        return None
    status = router_status(data["state"])
    said: dict[str, Any] = {"status": status}
    if status == "unloaded":
        said["exit_code"] = 1 if data["state"] == "failed" else 0
    if status == "loaded" and (info := _loaded_info(call, model)):
        said["info"] = info
    # In the router, the begin of a load is a different event.
    event = "model_status" if data["state"] == "loading" else "status_change"
    return {"model": model, "event": event, "data": said}


def _loaded_info(call: Call, model: str) -> dict[str, Any]:
    found: InstanceView | None = next(
        (one for one in call.supervisor.snapshot().instances if one.preset == model), None
    )
    return {} if found is None or found.n_ctx is None else {"meta": {"n_ctx": found.n_ctx}}


def _as_dict(data: Any) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(data)
    return {("decided_at" if name == "at" else name): value for name, value in plain.items()}


def _after(call: Call) -> int | None:
    given = call.exchange.head.get(b"last-event-id") or call.query.get("after", "").encode()
    if not given:
        return None
    if not given.isdigit() or len(given) > 18:
        raise ApiError("bad_request", "Last-Event-ID must be a number", param="Last-Event-ID")
    return int(given)


async def _stream(
    call: Call, after: int | None, render: Callable[[EventRecord], bytes], first: list[bytes]
) -> None:
    exchange = call.exchange
    call.status = 200
    await exchange.start(200, "text/event-stream")
    for piece in first:
        await exchange.write(piece)
    await exchange.write(b": lswap\n\n")
    await call.follow(_write(call, after, render))
    await exchange.finish()


async def _write(call: Call, after: int | None, render: Callable[[EventRecord], bytes]) -> None:
    records = call.supervisor.event_log.follow(after)
    coming = asyncio.ensure_future(anext(records))
    try:
        while True:
            if not (await asyncio.wait({coming}, timeout=HEARTBEAT))[0]:
                await call.exchange.write(b": still here\n\n")
                continue
            try:
                record = coming.result()
            except StopAsyncIteration:
                return
            await call.exchange.write(render(record))
            coming = asyncio.ensure_future(anext(records))
    finally:
        coming.cancel()
        await asyncio.wait({coming})
        await records.aclose()
