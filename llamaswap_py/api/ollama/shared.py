"""Helpers for all routes of Ollama's API: read the body, find the model, make a child's request."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from llamaswap_py.api import json_steps
from llamaswap_py.api.body import bad_json, decode, filtered
from llamaswap_py.api.load_only import load_as_asked
from llamaswap_py.api.media_urls import looking, may_hold, refused
from llamaswap_py.api.ollama.answers import Clock
from llamaswap_py.api.read_body import (
    FREE,
    MARK,
    TEXTS,
    check_text,
    decode_large,
    few_decimals,
    read_control,
    read_skimmed,
)
from llamaswap_py.errors import ApiError
from llamaswap_py.proxy.messages import Body, UpstreamRequest

if TYPE_CHECKING:
    from llamaswap_py.api.body import Skim
    from llamaswap_py.api.json_steps import Steps
    from llamaswap_py.api.ollama.translate import Translated
    from llamaswap_py.api.request import Call

_T = TypeVar("_T")


async def read(call: Call) -> dict[str, Any]:
    """Read a request whose body is always small."""
    return _object(await read_control(call))


async def read_large(call: Call) -> tuple[dict[str, Any], Skim | None]:
    """Read a request that may have images; the parts that its skim has cut are not returned."""
    limit = call.supervisor.config.limits.body
    # Arguments of tools become texts within texts, so parts with escapes must not be cut.
    body, skim = await read_skimmed(call, b"application/json", limit, translated=True)
    text = body.join() if skim is None else skim.text
    check_text(text)
    await others_turn(text)
    ask = await _object_in_turns(text, skim)
    await others_turn(text)
    if not call.supervisor.config.allow_media_urls and may_hold(text):
        for found in looking(ask):
            if found:
                raise refused()
            await asyncio.sleep(0)
    return ask, skim


async def read_whole(call: Call) -> dict[str, Any]:
    """Read a request with all of its texts, which may be long."""
    limit = min(TEXTS, call.supervisor.config.limits.body)
    body, _ = await read_skimmed(call, b"application/json", limit)
    text = body.join()
    check_text(text)
    ask = await _object_in_turns(text)
    await others_turn(text)
    return ask


async def others_turn(text: bytes) -> None:
    """Let the event loop run other requests after a step with a large text."""
    if len(text) > FREE:
        await asyncio.sleep(0)


async def in_turns(steps: Steps[_T]) -> _T:
    """Return the result of steps; the event loop runs other requests in between."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _T = end.value
            return result
        await asyncio.sleep(0)


def _object(text: bytes) -> dict[str, Any]:
    try:
        ask = decode(text or b"{}") if len(text) <= FREE else decode_large(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_json(text, error) from None
    return _checked(ask)


async def _object_in_turns(text: bytes, skim: Skim | None = None) -> dict[str, Any]:
    if len(text) <= FREE:
        return _object(text)
    try:
        ask = await in_turns(json_steps.decoded(text, few_decimals(), MARK))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_json(text, error, skim) from None
    return _checked(ask)


def _checked(ask: Any) -> dict[str, Any]:
    if not isinstance(ask, dict):
        raise ApiError("bad_json", "the body must be a JSON object")
    return ask


def name_of(ask: dict[str, Any]) -> str:
    """Return the model that a request names; raises ApiError `model_missing`."""
    name = ask.get("model") or ask.get("name")
    if not isinstance(name, str) or not name:
        raise ApiError("model_missing", "the request names no model", param="model")
    return name


def preset_of(call: Call, ask: dict[str, Any]) -> str:
    """Return the preset of a request."""
    return call.find_preset(name_of(ask))


async def child_request(
    call: Call, preset: str, translated: Translated, skim: Skim | None
) -> UpstreamRequest:
    """Return the request for a child, after the filters of the preset's `request`."""
    filters = call.supervisor.config.models[preset].request
    asked = filtered(translated.body, filters, call.asked)
    try:
        body = bytes(await in_turns(json_steps.encoded({"model": preset, **asked})))
    except RecursionError as error:
        raise bad_json(b"", error) from None
    headers = [(b"content-type", b"application/json")]
    if forwarded := call.exchange.head.get(b"user-agent"):
        headers.append((b"user-agent", forwarded))
    whole = Body.of(body) if skim is None else skim.restore(body)
    return UpstreamRequest("POST", translated.path, headers, whole)


def decoded(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a child's answer, an empty one if it is not an object."""
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def stamp(seconds: float) -> str:
    """Return an RFC 3339 stamp, as Go writes them."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def clock_of(call: Call) -> Clock:
    """Return the times for the answer of a call."""
    began = call.began
    return Clock(
        now=lambda: stamp(time.time()),
        elapsed=lambda: round((time.monotonic() - began) * 1e9),
        load_ns=round(call.load_ms * 1e6),
    )


def keep_loaded(call: Call, preset: str, keep: float | None) -> None:
    """Keep a model loaded for `keep` seconds (-1: for ever; None: the request does not say).

    Without the right `ttl` this is ignored, which is logged once. It is not an error, because many
    clients send `keep_alive` with every request.
    """
    if keep is None:
        return
    if call.may("ttl"):
        call.supervisor.keep_alive(preset, None if keep < 0 else keep)
    elif call.key is not None:
        call.services.access.tell_ignored(call.key)


async def only_keep(call: Call, preset: str, keep: float | None) -> str:
    """Load the model of a request without a prompt, or unload it with `keep_alive: 0`.

    Return Ollama's `done_reason`.
    """
    if keep != 0:
        await load_as_asked(call, preset)
        keep_loaded(call, preset, keep)
        return "load"
    if not call.may("unload"):
        call.need("ttl")
    call.supervisor.unload(preset, force=False)
    return "unload"
