"""llama.cpp's router mode: load and unload by hand, in its own shapes (server-models.cpp)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from llamaswap_py.api.asking import begin_load
from llamaswap_py.api.bounds import read_control
from llamaswap_py.api.extract import bad_json, decode

if TYPE_CHECKING:
    from llamaswap_py.api.call import Call, Headers


async def load(call: Call) -> None:
    """POST /models/load {"model"}: begins, and answers at once."""
    preset = await _preset(call, status=404, kind="not_found_error")
    if preset is None:
        return
    if _is_running(call, preset):
        refuse(call, 400, "model is already running", "invalid_request_error")
        return
    await begin_load(call, preset)
    call.respond(200, {"success": True})


async def unload(call: Call) -> None:
    """POST /models/unload {"model"}: drains first, and answers at once."""
    preset = await _preset(call, status=400, kind="invalid_request_error")
    if preset is None:
        return
    if not _is_running(call, preset):
        refuse(call, 400, "model is not running", "invalid_request_error")
        return
    call.supervisor.unload(preset, force=False)
    call.respond(200, {"success": True})


async def tools(call: Call) -> None:
    """GET, POST /tools: none are offered."""
    refuse(call, 403, "tools are not enabled", "permission_error")


async def cors_proxy(call: Call) -> None:
    """GET, POST /cors-proxy: nothing is fetched for pages."""
    refuse(call, 403, "the CORS proxy is not enabled", "permission_error")


async def _preset(call: Call, *, status: int, kind: str) -> str | None:
    text = await read_control(call)
    try:
        ask = decode(text or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        refuse(call, 400, bad_json(text, error).message, "invalid_request_error")
        return None
    name = ask.get("model") if isinstance(ask, dict) else None
    preset = call.supervisor.names.resolve(name) if isinstance(name, str) else None
    if preset is None:
        refuse(call, status, "model is not found", kind)
        return None
    call.model = preset
    if not call.may_use(preset):
        refuse(call, 403, "this key may not use the model", "permission_error")
        return None
    return str(preset)


def _is_running(call: Call, preset: str) -> bool:
    models = call.supervisor.snapshot().models
    state = next((one.state for one in models if one.id == preset), "unloaded")
    return state in ("loading", "ready", "sleeping", "draining")


def refuse(call: Call, status: int, message: str, kind: str, headers: Headers = ()) -> None:
    """Answer as format_error_response does (server-common.cpp): `code` is the status."""
    error: dict[str, Any] = {"code": status, "message": message, "type": kind}
    call.outcome = kind
    call.stamp()
    call.status = status
    call.exchange.respond(status, msgspec.json.encode({"error": error}), headers=[*headers])
