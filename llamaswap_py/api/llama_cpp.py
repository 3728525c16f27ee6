"""llama.cpp's router mode (server-models.cpp): routes that load, unload, add and remove models.

Models from Hugging Face are added to the configuration file, and removed from it, while lswap runs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from llamaswap_py.api.body import bad_json, decode
from llamaswap_py.api.load_only import begin_load
from llamaswap_py.api.read_body import read_control
from llamaswap_py.errors import ApiError, LswapError
from llamaswap_py.supervisor.hub_models import add_model, delete_files

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call, Headers
    from llamaswap_py.supervisor.reload import Reloader

_INVALID = "invalid_request_error"


async def load(call: Call) -> None:
    """POST /models/load {"model"}: begins a load, and answers at once."""
    preset = await _preset(call, status=404, kind="not_found_error")
    if preset is None:
        return
    if _is_running(call, preset):
        refuse(call, 400, "model is already running", "invalid_request_error")
        return
    await begin_load(call, preset)
    call.respond(200, {"success": True})


async def unload(call: Call) -> None:
    """POST /models/unload {"model"}: begins an unload, which drains first, and answers at once."""
    preset = await _preset(call, status=400, kind="invalid_request_error")
    if preset is None:
        return
    if not _is_running(call, preset):
        refuse(call, 400, "model is not running", "invalid_request_error")
        return
    call.supervisor.unload(preset, force=False)
    call.respond(200, {"success": True})


async def tools(call: Call) -> None:
    """GET, POST /tools: refused, because lswap has no tools of its own."""
    refuse(call, 403, "tools are not enabled", "permission_error")


async def cors_proxy(call: Call) -> None:
    """GET, POST /cors-proxy: refused, because lswap does not fetch URLs for pages."""
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


async def download(call: Call) -> None:
    """POST /models {"model": "user/repo[:QUANT]"}: adds a preset, and downloads its model."""
    text = await read_control(call)
    try:
        asked = decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        refuse(call, 400, bad_json(text, error).message, _INVALID)
        return
    name = asked.get("model") if isinstance(asked, dict) else None
    if not isinstance(name, str) or not name:
        refuse(call, 400, "model must be a non-empty string", _INVALID)
        return
    if call.supervisor.names.resolve(name) is not None:
        refuse(call, 400, f"model '{name}' already exists", _INVALID)
        return
    reloader = _reloader(call)
    try:
        await reloader.check()
        await asyncio.to_thread(add_model, reloader.file, name)
        await reloader.reload()
    except LswapError as error:
        refuse(call, 400, str(error), _INVALID)
        return
    call.supervisor.request_files(name)
    call.respond(200, {"success": True})


async def remove(call: Call) -> None:
    """DELETE /models?model=: unloads a model of a repository, deletes its entry and its files."""
    name = call.query.get("model", "")
    if not name:
        refuse(call, 400, "model must be a non-empty string", _INVALID)
        return
    preset = call.supervisor.names.resolve(name)
    if preset is None:
        refuse(call, 400, f"model '{name}' not found", _INVALID)
        return
    call.model = preset
    try:
        await remove_model(call, preset)
    except ApiError as error:
        refuse(call, error.status, str(error), error.type)
        return
    call.respond(200, {"success": True})


async def remove_model(call: Call, preset: str) -> None:
    """Remove a model of a repository from the file, and delete its files; raises ApiError."""
    config = call.supervisor.config
    repository = config.models[preset].hf
    if repository is None:
        raise ApiError(
            "bad_request",
            f"{preset!r} is not from a repository, so lswap does not delete its files",
            remedy="remove it from the configuration by hand",
        )
    reloader = _reloader(call)
    others = [one for one in config.models.values() if one.id != preset]
    try:
        await asyncio.to_thread(reloader.remove, preset)
        await reloader.reload()
        await call.supervisor.unloaded(preset)
        call.supervisor.event_log.publish("removed", {"model": preset})
        await call.supervisor.downloads.ended(preset)
        await asyncio.to_thread(delete_files, repository, others)
    except LswapError as error:
        raise ApiError("bad_request", error.message, remedy=error.remedy) from None


def _reloader(call: Call) -> Reloader:
    if call.services.reloader is None:
        raise ApiError(
            "not_implemented",
            "models can be added and removed only if lswap has a configuration file",
            remedy="start lswap with a configuration file",
        )
    return call.services.reloader
