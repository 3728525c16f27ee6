"""llama.cpp's router mode (server-models.cpp) and its resumable streams (server-stream.cpp).

The router's routes load and unload models in its own shapes, and add models of Hugging Face to the
file while lswap serves, or take them out again. The streams are answers that can be read again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from llamaswap_py.api.body import bad_json, decode
from llamaswap_py.api.inference import resumed
from llamaswap_py.api.load_only import begin_load
from llamaswap_py.api.read_body import read_control
from llamaswap_py.errors import ApiError, LswapError
from llamaswap_py.supervisor.library import add_model, forget_files
from llamaswap_py.units import KIB

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call, Headers
    from llamaswap_py.supervisor.reload import Reloader
    from llamaswap_py.supervisor.resumable_streams import Conversation

_INVALID = "invalid_request_error"
_MOST_IDS = 10_000
_STEP = 256 * KIB


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


async def download(call: Call) -> None:
    """POST /models {"model": "user/repo[:QUANT]"}: adds a preset of that name, and fetches it."""
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
    """DELETE /models?model=: a model of a repository; unloads it, drops its entry and its files."""
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
    """Take a model of a repository out of the file, and delete its files; raises ApiError."""
    config = call.supervisor.config
    repository = config.models[preset].hf
    if repository is None:
        raise ApiError(
            "bad_request",
            f"{preset!r} is not from a repository: its files are left to you",
            remedy="take it out of the configuration by hand",
        )
    reloader = _reloader(call)
    others = [one for one in config.models.values() if one.id != preset]
    try:
        await asyncio.to_thread(reloader.remove, preset)
        await reloader.reload()
        await call.supervisor.unloaded(preset)
        call.supervisor.happenings.publish("removed", {"model": preset})
        await call.supervisor.downloads.ended(preset)
        await asyncio.to_thread(forget_files, repository, others)
    except LswapError as error:
        raise ApiError("bad_request", error.message, remedy=error.remedy) from None


def _reloader(call: Call) -> Reloader:
    if call.services.reloader is None:
        raise ApiError(
            "not_implemented",
            "models can be added and removed where they come from a file only",
            remedy="start lswap with a configuration file",
        )
    return call.services.reloader


async def look_up(call: Call) -> None:
    """POST /v1/streams/lookup {"conversation_ids"}: those that a child has, as it tells."""
    text = await read_control(call)
    try:
        asked = decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        asked = {}
    ids = asked.get("conversation_ids") if isinstance(asked, dict) else None
    known = [one for one in ids if isinstance(one, str) and one] if isinstance(ids, list) else []
    conversations = call.supervisor.conversations
    owner = None if call.sees_all else call.owner
    call.respond(200, await conversations.look_up(known[:_MOST_IDS], owner, call.may_use))


async def resume(call: Call) -> None:
    """GET /v1/stream?conv_id=&from=: the answer from that byte on, and what follows."""
    conversation = _find(call)
    if conversation is None:
        _not_found(call)
        return
    if not conversation.is_readable:
        message = "Stream owner model is loading, retry later"
        refuse(call, 503, message, "unavailable_error", [(b"retry-after", b"1")])
        return
    call.model = conversation.preset
    if conversation.whole:
        await _send_whole(call, conversation.whole)
        return
    try:
        await resumed(call, conversation)
    except ApiError as error:
        if error.code != "model_not_loaded":
            raise
        _not_found(call)


async def _send_whole(call: Call, whole: bytes) -> None:
    """Send an answer that its child need not have any more."""
    start = call.number("from", 0, most=len(whole))
    call.status = 200
    call.stamp()
    await call.exchange.start(200, "text/event-stream")
    for at in range(start, len(whole), _STEP):
        await call.exchange.write(whole[at : at + _STEP])
    await call.exchange.finish()


async def stop(call: Call) -> None:
    """DELETE /v1/stream?conv_id=: the generation ends, and nothing is kept of it."""
    conversation = _find(call)
    if conversation is not None:
        await call.supervisor.conversations.stop(conversation)
    call.status = 204
    call.exchange.respond(204)


def _find(call: Call) -> Conversation | None:
    """Return the conversation that is named, if it is this client's, or an admin asks."""
    name = call.query.get("conv_id")
    if not name:
        raise ApiError("bad_request", "the conversation is missing", param="conv_id")
    conversations = call.supervisor.conversations
    found: Conversation | None = conversations.find(call.owner, name, of_all=call.sees_all)
    return found if found is not None and call.may_use(found.preset) else None


def _not_found(call: Call) -> None:
    refuse(call, 404, "Stream not found or expired", "not_found_error")
