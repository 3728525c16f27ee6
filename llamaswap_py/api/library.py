"""Add models of Hugging Face to the file while serving, and take them out again (server-models.cpp,
post_router_models and del_router_models)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from llamaswap_py.api.bounds import read_control
from llamaswap_py.api.extract import bad_json, decode
from llamaswap_py.api.router import refuse
from llamaswap_py.errors import ApiError, LswapError
from llamaswap_py.library import add_model, forget_files, request_files

if TYPE_CHECKING:
    from llamaswap_py.api.call import Call
    from llamaswap_py.reloading import Reloader

_INVALID = "invalid_request_error"


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
    request_files(call.supervisor, name)
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
    if call.app.reloader is None:
        raise ApiError(
            "not_implemented",
            "models can be added and removed where they come from a file only",
            remedy="start lswap with a configuration file",
        )
    return call.app.reloader
