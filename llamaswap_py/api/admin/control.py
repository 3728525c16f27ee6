"""lswap's own routes: health, state, decisions, load, unload, pin, logs, open requests, reload."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import msgspec

from llamaswap_py.api.admin.openapi import BOOLEAN, COUNT, TEXT, Parameter, described
from llamaswap_py.api.admin.types import (
    CancelAnswer,
    Decisions,
    Health,
    LoadAnswer,
    LoadRequest,
    PinAnswer,
    Requests,
    RequestView,
    TokensView,
    UnloadAnswer,
)
from llamaswap_py.api.errors import draining
from llamaswap_py.api.read_body import read_control
from llamaswap_py.errors import ApiError, LswapError
from llamaswap_py.snapshot import ReloadReport, Snapshot
from llamaswap_py.supervisor.overrides import read_args

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call
    from llamaswap_py.children import ChildLog
    from llamaswap_py.llamacpp.options import Argument

_MOST_LINES = 100_000
_MOST_DECISIONS = 10_000
_PLAIN: Final = "text/plain"
_MODEL: Final = Parameter("id", "path", TEXT, "A model or an alias of it; `/` written as `%2F`.")
_WAIT: Final = Parameter("wait", "query", BOOLEAN, "false: answer at once.")
_LINES: Final = (
    Parameter("tail", "query", COUNT, "Only so many of the last lines."),
    Parameter("follow", "query", BOOLEAN, "Continue with new lines as they come."),
)
_OWN: Final = "/lswap/"
"""Paths of requests to lswap itself, even if they name a model: its log, a load."""


@described({200: Health})
async def health(call: Call) -> None:
    """GET /livez, /health, /v1/health: Whether lswap runs."""
    call.respond(200, Health("ok"))


@described({200: Health}, errors=(503,))
async def readyz(call: Call) -> None:
    """GET /readyz: Whether lswap accepts new requests."""
    if call.supervisor.snapshot().state != "serving":
        raise draining()
    call.respond(200, Health("ok"))


@described({200: Snapshot})
async def state(call: Call) -> None:
    """GET /lswap/v1/state: The present state of models, devices and queues."""
    call.respond(200, await call.snapshot())


@described(
    {200: Decisions},
    Parameter("model", "query", TEXT, "Only decisions about this model."),
    Parameter("limit", "query", COUNT, "The most decisions to return; the default is 100."),
    errors=(404,),
)
async def decisions(call: Call) -> None:
    """GET /lswap/v1/decisions: The scheduler's decisions with their reasons, the newest last."""
    name = call.query.get("model")
    preset = call.find_preset(name) if name else None
    limit = call.number("limit", 100, most=_MOST_DECISIONS)
    if preset is None and call.key is not None and call.key.models is not None:
        every = call.supervisor.decisions(model=None, limit=_MOST_DECISIONS)
        found = [one for one in every if call.may_use(one.preset)]
        found = found[-limit:] if limit else []
    else:
        found = call.supervisor.decisions(model=preset, limit=limit)
    call.respond(200, Decisions(tuple(found)))


@described({200: Requests})
async def list_requests(call: Call) -> None:
    """GET /lswap/v1/requests: The open requests.

    It lists requests for models, the oldest first, and the tokens of each model.
    """
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
    tokens = {
        model: TokensView(counts.tokens_in, counts.tokens_out)
        for model, counts in call.services.counters.models.items()
        if (counts.tokens_in or counts.tokens_out) and call.may_use(model)
    }
    found += _detached(call, now)
    found.sort(key=lambda one: -one.age)
    call.respond(200, Requests(tuple(found), tokens))


def _detached(call: Call, now: float) -> list[RequestView]:
    """Return the answers that continue without their clients."""
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
        for one in call.supervisor.streams.detached
        if call.may_use(one.preset)
    ]


@described({200: CancelAnswer}, Parameter("id", "path", TEXT, "Its x-request-id."))
async def cancel(call: Call) -> None:
    """POST /lswap/v1/requests/{id}/cancel: End a request with an error, waiting or running."""
    id = unquote(call.captured)
    conversations = call.supervisor.streams
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


@described({200: LoadAnswer, 202: LoadAnswer}, _MODEL, _WAIT, body=LoadRequest, errors=(409, 503))
async def load(call: Call) -> None:
    """POST /lswap/v1/models/{id}/load: Load a model; answers when it is ready."""
    args = await _read_args(call)
    preset = call.find_preset(unquote(call.captured))
    began = time.monotonic()
    waits = call.flag("wait") is not False
    if args is not None:
        if not waits:
            message = "?wait=false does not go together with args"
            raise ApiError("bad_request", message, param="wait", remedy="leave one of them out")
        await call.supervisor.overrides.load(preset, args)
    elif not waits:
        call.supervisor.request_load(preset)
        call.respond(202, LoadAnswer(preset, "loading"))
        return
    else:
        await call.supervisor.load(preset)
    call.respond(200, LoadAnswer(preset, "ready", time.monotonic() - began))


async def _read_args(call: Call) -> dict[str, Argument] | None:
    """Return the options in the body of a load, None if it has none."""
    text = (await read_control(call)).strip()
    if not text:
        return None
    try:
        asked = msgspec.json.decode(text, type=LoadRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError("bad_json", f"the body is not a load request: {error}") from None
    if asked.args is None:
        return None
    if not call.supervisor.config.allow_args:
        raise ApiError(
            "forbidden",
            "this server loads models only with the arguments of its file",
            remedy="the line `allow_args: true` in the file allows other arguments",
        )
    return read_args(asked.args)


@described(
    {200: UnloadAnswer, 202: UnloadAnswer},
    _MODEL,
    _WAIT,
    Parameter("force", "query", BOOLEAN, "End its open requests at once; takes an admin key."),
)
async def unload(call: Call) -> None:
    """POST /lswap/v1/models/{id}/unload: Unload a model once its requests have ended."""
    preset = call.find_preset(unquote(call.captured))
    began = time.monotonic()
    force, waits = call.flag("force") or False, call.flag("wait") is not False
    if force:  # this ends requests of other clients
        call.services.access.check(call.exchange.head, admin=True)
    found = call.supervisor.unload(preset, force=force)
    if found and not waits:
        call.respond(202, UnloadAnswer(preset, "draining", unloaded=True))
        return
    problem = await call.supervisor.unloaded(preset)
    seconds = time.monotonic() - began
    state = "unloaded"
    if not found or problem:
        models = call.supervisor.snapshot().models
        now = next(one.state for one in models if one.id == preset)
        # It was not loaded, a waiting request needs its load, or what it started still runs.
        state = now if not found or now == "stopping" else state
    call.respond(200, UnloadAnswer(preset, state, found, seconds, problem))


@described({200: PinAnswer}, _MODEL)
async def pin(call: Call) -> None:
    """POST /lswap/v1/models/{id}/pin: Never unload this model for another one."""
    _set_pin(call, pinned=True)


@described({200: PinAnswer}, _MODEL)
async def unpin(call: Call) -> None:
    """POST /lswap/v1/models/{id}/unpin: Allow to unload this model for another one."""
    _set_pin(call, pinned=False)


def _set_pin(call: Call, *, pinned: bool) -> None:
    preset = call.find_preset(unquote(call.captured))
    call.respond(200, PinAnswer(preset, pinned, call.supervisor.pin(preset, pinned)))


@described({200: _PLAIN}, _MODEL, *_LINES)
async def logs(call: Call) -> None:
    """GET /lswap/v1/logs/{id}: The output of the model's process."""
    await _answer_log(call, call.supervisor.logs(call.find_preset(unquote(call.captured))))


@described({200: _PLAIN}, *_LINES)
async def own_log(call: Call) -> None:
    """GET /lswap/v1/logs: The last lines of lswap's own log."""
    await _answer_log(call, call.services.own_log)


async def _answer_log(call: Call, log: ChildLog | None) -> None:
    count = call.number("tail", 100, most=_MOST_LINES)
    lines = log.tail(count) if log is not None else []
    text = "".join(f"{line}\n" for line in lines)
    if log is None or not call.flag("follow"):
        call.respond_text(200, text)
        return
    exchange = call.exchange
    call.status = 200
    await exchange.start(200, "text/plain; charset=utf-8")
    await exchange.write(text.encode())
    await call.follow(_write_lines(call, log, lines[-1].number if lines else None))
    await exchange.finish()


async def _write_lines(call: Call, log: ChildLog, after: int | None) -> None:
    async for line in log.follow(after):
        await call.exchange.write(f"{line}\n".encode())


@described({200: ReloadReport}, errors=(400, 501))
async def reload(call: Call) -> None:
    """POST /lswap/v1/reload: Read the file again; if it has a mistake, nothing changes."""
    reloader = call.services.reloader
    if reloader is None:
        message = "this lswap was not started from a file"
        raise ApiError("not_implemented", message, remedy="start it with a configuration file")
    try:
        report = await reloader.reload()
    except LswapError as error:
        raise ApiError("bad_config", error.message, remedy=error.remedy) from None
    call.respond(200, report)
