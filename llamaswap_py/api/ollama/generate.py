"""Ollama's /api/chat and /api/generate: translates requests for a child, and its answers back."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from llamaswap_py.api import inference
from llamaswap_py.api.following import follow_alias
from llamaswap_py.api.ollama.answers import LineStream, OllamaAnswer, error_text
from llamaswap_py.api.ollama.shared import (
    child_request,
    clock_of,
    decoded,
    in_turns,
    keep_loaded,
    name_of,
    only_keep,
    preset_of,
    read_large,
    stamp,
)
from llamaswap_py.api.ollama.translate import (
    Translated,
    chat_in_steps,
    generate_in_steps,
    read_keep_alive,
    read_switch,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.api.body import Skim
    from llamaswap_py.api.json_steps import Steps
    from llamaswap_py.api.request import Call


async def chat(call: Call) -> None:
    """POST /api/chat."""
    await _generate(call, chat_in_steps, empty="messages")


async def generate(call: Call) -> None:
    """POST /api/generate."""
    await _generate(call, generate_in_steps, empty="prompt")


async def _generate(
    call: Call, translate: Callable[[dict[str, Any]], Steps[Translated]], *, empty: str
) -> None:
    ask, skim = await read_large(call)
    preset = preset_of(call, ask)
    keep = read_keep_alive(ask.get("keep_alive"))
    if not ask.get(empty) and not ask.get("suffix"):
        await _only_keep(call, preset, name_of(ask), keep, empty)
        return
    translated = await in_turns(translate(ask))
    if read_switch(ask, "_debug_render_only", default=False):
        await _render_only(call, preset, translated, name_of(ask), skim)
        return
    if skim is not None and any(skim.mark.decode() in one.content for one in translated.talk or ()):
        translated = replace(translated, talk=None)  # parts of the text were cut
    call.route = replace(call.route, slot=True, retry=True, talk=True)
    answer = partial(_whole, call, translated, name_of(ask))
    stream = partial(_stream, call, translated, name_of(ask)) if translated.stream else None
    await asyncio.sleep(0)  # the request may be large, and encoding it comes next

    async def attempt(preset: str) -> None:
        request = await child_request(call, preset, translated, skim)
        await inference.translated(call, preset, request, translate=stream, answer=answer)

    preset = await follow_alias(call, name_of(ask), attempt)
    keep_loaded(call, preset, keep)


def _answer(call: Call, translated: Translated, name: str) -> OllamaAnswer:
    others, talk = translated.top_logprobs, translated.talk
    return OllamaAnswer(name, translated.shape, clock_of(call), others, talk)


def _stream(call: Call, translated: Translated, name: str) -> LineStream:
    return LineStream(_answer(call, translated, name))


def _whole(call: Call, translated: Translated, name: str, status: int, body: bytes) -> None:
    """Answer with the translation of a whole answer, or of a child's error."""
    said = decoded(body)
    if status != 200:
        text = error_text(said.get("error", body[:500].decode("utf-8", "replace")))
        call.respond(status, {"error": text})
        return
    call.respond(200, _answer(call, translated, name).whole(said))


async def _render_only(
    call: Call, preset: str, translated: Translated, name: str, skim: Skim | None
) -> None:
    """Answer with the prompt that the model would get."""
    head = {"model": name, "created_at": stamp(time.time())}
    contents = [message["content"] for message in translated.body.get("messages", ())]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    images = sum(part["type"] == "image_url" for part in parts)

    def answer(status: int, body: bytes) -> None:
        said = decoded(body)
        if status != 200:
            call.respond(status, {"error": error_text(said.get("error", "the model refused"))})
            return
        shown = {"rendered_template": said.get("prompt", ""), "image_count": images}
        call.respond(200, {**head, "done": False, "_debug_info": shown})

    if translated.shape == "native":
        answer(200, msgspec.json.encode({"prompt": translated.body.get("prompt", "")}))
        return
    call.route = replace(call.route, retry=True)
    asked = replace(translated, path="/apply-template")
    request = await child_request(call, preset, asked, skim)
    await inference.translated(call, preset, request, translate=None, answer=answer)


async def _only_keep(call: Call, preset: str, name: str, keep: float | None, empty: str) -> None:
    """Answer an empty prompt, which loads the model, or unloads it with `keep_alive: 0`."""
    reason = await only_keep(call, preset, keep)
    said: dict[str, Any] = {"response": ""}
    if empty == "messages":
        said = {"message": {"role": "assistant", "content": ""}}
    head = {"model": name, "created_at": stamp(time.time())}
    call.respond(200, {**head, **said, "done": True, "done_reason": reason})
