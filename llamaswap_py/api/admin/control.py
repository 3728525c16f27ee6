"""lswap's own routes: health, state, decisions, load, unload, logs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from llamaswap_py.api.admin.openapi import document
from llamaswap_py.api.admin.types import Decisions, Health, LoadAnswer, LoadRequest, UnloadAnswer
from llamaswap_py.api.bounds import read_control
from llamaswap_py.api.request import draining
from llamaswap_py.errors import ApiError, LswapError
from llamaswap_py.supervisor.overrides import read_args

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call
    from llamaswap_py.children import ChildLog
    from llamaswap_py.llamacpp.options import Argument

_MOST_LINES = 100_000
_MOST_DECISIONS = 10_000


async def health(call: Call) -> None:
    """GET /health, /livez: the process answers."""
    call.respond(200, Health("ok"))


async def readyz(call: Call) -> None:
    """GET /readyz: whether new requests are taken."""
    if call.supervisor.snapshot().state != "serving":
        raise draining()
    call.respond(200, Health("ok"))


async def state(call: Call) -> None:
    """GET /lswap/v1/state: the snapshot."""
    call.respond(200, call.snapshot())


async def decisions(call: Call) -> None:
    """GET /lswap/v1/decisions?model=&limit=: newest last."""
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


async def load(call: Call) -> None:
    """POST /lswap/v1/models/{id}/load?wait=: answers when it is ready, 202 at once without."""
    args = await _read_args(call)
    preset = call.find_preset(unquote(call.captured))
    began = time.monotonic()
    waits = call.flag("wait") is not False
    if args is not None:
        if not waits:
            raise ApiError("bad_request", "loading with args waits for the load", param="wait")
        await call.supervisor.overrides.load(preset, args)
    elif not waits:
        call.supervisor.request_load(preset)
        call.respond(202, LoadAnswer(preset, "loading"))
        return
    else:
        await call.supervisor.load(preset)
    call.respond(200, LoadAnswer(preset, "ready", time.monotonic() - began))


async def unload(call: Call) -> None:
    """POST /lswap/v1/models/{id}/unload?force=&wait=: drains first, `force` does not."""
    preset = call.find_preset(unquote(call.captured))
    began = time.monotonic()
    force, waits = call.flag("force") or False, call.flag("wait") is not False
    if force:  # which ends the requests of others
        call.services.access.check(call.exchange.head, admin=True)
    found = call.supervisor.unload(preset, force=force)
    if found and not waits:
        call.respond(202, UnloadAnswer(preset, "draining", unloaded=True))
        return
    await call.supervisor.unloaded(preset)
    seconds = time.monotonic() - began
    state = "unloaded"
    if not found:  # nothing was there, or a load goes on because somebody waits for it
        models = call.supervisor.snapshot().models
        state = next(one.state for one in models if one.id == preset)
    call.respond(200, UnloadAnswer(preset, state, found, seconds))


async def logs(call: Call) -> None:
    """GET /lswap/v1/logs/{model}?tail=&follow=: lines of text, then live ones."""
    await _answer_log(call, call.supervisor.logs(call.find_preset(unquote(call.captured))))


async def own_log(call: Call) -> None:
    """GET /lswap/v1/logs?tail=&follow=: the same of lswap's own log."""
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


async def reload(call: Call) -> None:
    """POST /lswap/v1/reload: reads the file again; a wrong one changes nothing."""
    reloader = call.services.reloader
    if reloader is None:
        raise ApiError("not_implemented", "this lswap was not started from a file")
    try:
        report = await reloader.reload()
    except LswapError as error:
        raise ApiError("bad_config", error.message, remedy=error.remedy) from None
    call.respond(200, report)


async def openapi(call: Call) -> None:
    """GET /openapi.json: this API, for tools."""
    call.status = 200
    call.exchange.respond(200, document(), "application/json")


async def _read_args(call: Call) -> dict[str, Argument] | None:
    """Return the options of a load, None where it gives none."""
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
            "models are loaded with the arguments of the file only",
            remedy="the line `allow_args: true` in the file allows others",
        )
    return read_args(asked.args)
