"""lswap's own routes: health, state, decisions, load, unload, logs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from llamaswap_py.errors import ApiError, LswapError

if TYPE_CHECKING:
    from llamaswap_py.api.call import Call

_MOST_LINES = 100_000


async def health(call: Call) -> None:
    """GET /health, /livez: the process answers."""
    call.respond(200, {"status": "ok"})


async def readyz(call: Call) -> None:
    """GET /readyz: whether new requests are taken."""
    if call.supervisor.snapshot().state != "serving":
        raise ApiError("draining", "lswap is stopping and takes no new requests")
    call.respond(200, {"status": "ok"})


async def state(call: Call) -> None:
    """GET /lswap/v1/state: the snapshot."""
    call.respond(200, call.supervisor.snapshot())


async def decisions(call: Call) -> None:
    """GET /lswap/v1/decisions?model=&limit=: newest last."""
    name = call.query.get("model")
    preset = call.find_preset(name) if name else None
    limit = call.number("limit", 100, most=10_000)
    found = call.supervisor.decisions(model=preset, limit=limit)
    call.respond(200, {"decisions": found})


async def load(call: Call) -> None:
    """POST /lswap/v1/models/{id}/load?wait=: answers when it is ready, 202 at once without."""
    await _refuse_arguments(call)
    preset = call.find_preset(unquote(call.captured))
    if call.flag("wait") is False:
        call.supervisor.request_load(preset)
        call.respond(202, {"model": preset, "state": "loading"})
        return
    began = time.monotonic()
    await call.supervisor.load(preset)
    call.respond(200, {"model": preset, "state": "ready", "seconds": time.monotonic() - began})


async def unload(call: Call) -> None:
    """POST /lswap/v1/models/{id}/unload?force=&wait=: drains first, `force` does not."""
    preset = call.find_preset(unquote(call.captured))
    began = time.monotonic()
    found = call.supervisor.unload(preset, force=call.flag("force") or False)
    if found and call.flag("wait") is False:
        call.respond(202, {"model": preset, "state": "draining", "unloaded": True})
        return
    await call.supervisor.unloaded(preset)
    seconds = time.monotonic() - began
    state = "unloaded"
    if not found:  # nothing was there, or a load goes on because somebody waits for it
        models = call.supervisor.snapshot().models
        state = next(one.state for one in models if one.id == preset)
    call.respond(200, {"model": preset, "state": state, "unloaded": found, "seconds": seconds})


async def logs(call: Call) -> None:
    """GET /lswap/v1/logs/{model}?tail=&follow=: lines of text, then live ones."""
    preset = call.find_preset(unquote(call.captured))
    count = call.number("tail", 100, most=_MOST_LINES)
    log = call.supervisor.logs(preset)
    lines = log.tail(count) if log is not None else []
    text = "".join(f"{line}\n" for line in lines)
    if log is None or not call.flag("follow"):
        call.respond_text(200, text)
        return
    exchange = call.exchange
    call.status = 200
    await exchange.start(200, "text/plain; charset=utf-8")
    await exchange.write(text.encode())
    await call.app.follow(log, lines[-1].number if lines else None, exchange)
    await exchange.finish()


async def reload(call: Call) -> None:
    """POST /lswap/v1/reload: reads the file again; a wrong one changes nothing."""
    reloader = call.app.reloader
    if reloader is None:
        raise ApiError("not_implemented", "this lswap was not started from a file")
    try:
        report = await reloader.reload()
    except LswapError as error:
        raise ApiError("bad_config", error.message, remedy=error.remedy) from None
    call.respond(200, report)


async def later(call: Call) -> None:
    """Answer for a route that the contract names and this version does not have."""
    head = call.exchange.head
    raise ApiError(
        "not_implemented",
        f"{head.method} {head.path} is not in this version of lswap yet",
        remedy="/v1/models, /v1/chat/completions and /upstream/MODEL/ are",
    )


async def _refuse_arguments(call: Call) -> None:
    """`load` with arguments comes later; ignoring them would load something else than asked."""
    body = await call.exchange.read_body(call.supervisor.config.limits.body)
    text = body.join().strip()
    if not text:
        return
    try:
        asked = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError("bad_json", f"the body is not a JSON object: {error}") from None
    if "args" in asked:
        raise ApiError("not_implemented", "loading with arguments is not in this version yet")
