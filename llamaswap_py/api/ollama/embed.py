"""Ollama's /api/embed and /api/embeddings; inputs that are too long are cut, as in Ollama."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llamaswap_py.api import inference
from llamaswap_py.api.following import follow_alias
from llamaswap_py.api.ollama.answers import embed_answer, error_text
from llamaswap_py.api.ollama.shared import (
    child_request,
    clock_of,
    decoded,
    keep_loaded,
    name_of,
    only_keep,
    read_whole,
)
from llamaswap_py.api.ollama.translate import (
    Translated,
    read_dimensions,
    read_keep_alive,
    read_switch,
    texts_to_embed,
)
from llamaswap_py.errors import ApiError
from llamaswap_py.llamacpp.embedding_models import most_tokens, read_trained
from llamaswap_py.llamacpp.props import context_in
from llamaswap_py.proxy.messages import Body, UpstreamRequest
from llamaswap_py.scheduler.types import PresetId

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.api.request import Call

_SPECIAL: Final = 16
"""The most tokens that are added to those of a text: begin, end, and a blank before it."""
_USUAL: Final = 2
"""Characters per token in a cautious guess: most languages have more than twice as many."""
_STEP: Final = 10_000
"""The number of texts that are processed in one turn of the event loop."""
_TOO_LONG: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.INTERNAL_SERVER_ERROR)
_HINT: Final = "write args: {embeddings: true} for this model, which then only makes embeddings"


async def embed(call: Call) -> None:
    """POST /api/embed."""
    ask = await read_whole(call)
    size = read_dimensions(ask)
    await _embed(call, ask, lambda said: embed_answer(said, clock_of(call), name_of(ask), size))


async def embeddings(call: Call) -> None:
    """POST /api/embeddings, the older form: one text, one vector."""
    ask = await read_whole(call)

    def answer(said: dict[str, Any]) -> Any:
        vectors = embed_answer(said, clock_of(call), "", None)["embeddings"]
        return {"embedding": vectors[0] if vectors else []}

    await _embed(call, ask, answer)


async def _embed(
    call: Call, ask: dict[str, Any], shape: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    await follow_alias(call, name_of(ask), partial(_embed_with, call, ask, shape))


async def _embed_with(
    call: Call, ask: dict[str, Any], shape: Callable[[dict[str, Any]], dict[str, Any]], preset: str
) -> None:
    keep = read_keep_alive(ask.get("keep_alive"))
    texts = texts_to_embed(ask)
    cuts = read_switch(ask, "truncate", default=True)
    if not texts:
        await only_keep(call, preset, keep)
        call.respond(HTTPStatus.OK, shape({}))
        return
    limit = await _most_tokens(call, preset)
    inputs = await _fitted(call, preset, texts, limit, cuts=cuts, guess=cuts)
    status, said = await _vectors(call, preset, inputs)
    if cuts and status in _TOO_LONG:  # the guess was wrong, or `fit` has shortened the context
        real = await _context_of_child(call, preset)
        limit = limit if not real or 0 < limit <= real else real - 1
        shorter = await _fitted(call, preset, texts, limit, cuts=True, guess=False)
        if shorter != inputs:
            status, said = await _vectors(call, preset, shorter)
    if status == HTTPStatus.OK:
        call.respond(status, shape(said))
    else:
        text = error_text(said.get("error", "the model refused"))
        text = f"{text} - {_HINT}" if status == HTTPStatus.NOT_IMPLEMENTED else text
        call.respond(status, {"error": text})
    keep_loaded(call, preset, keep)


async def _vectors(
    call: Call, preset: str, inputs: list[str | list[int]]
) -> tuple[int, dict[str, Any]]:
    call.route = replace(call.route, slot=True, retry=True)
    translated = Translated("/v1/embeddings", {"input": inputs}, "embed", stream=False)
    request = await child_request(call, preset, translated, None)
    return await _answer(call, preset, request)


async def _answer(call: Call, preset: str, request: UpstreamRequest) -> tuple[int, dict[str, Any]]:
    found: list[tuple[int, dict[str, Any]]] = []

    def answer(status: int, body: bytes) -> None:
        found.append((status, decoded(body)))

    load_ms = call.load_ms
    await inference.translated(call, preset, request, translate=None, answer=answer)
    call.load_ms = max(load_ms, call.load_ms)  # the first of several requests waited for the load
    call.stamp()
    return found[-1] if found else (HTTPStatus.BAD_GATEWAY, {})


# --- cutting -------------------------------------------------------------------------------------


async def _most_tokens(call: Call, preset: str) -> int:
    """Return the most tokens that a child of a preset takes as one input, 0 if unknown."""
    facts = await call.supervisor.facts.of(preset)
    trained = read_trained(facts.family, facts.metadata)
    ways = call.supervisor.prepared[preset].ways
    known = call.supervisor.scheduler.state.presets[PresetId(preset)]
    choices = [known.serving.choice] if known.serving is not None else known.plan.choices
    given = [ways[one.variant].chosen(one.words) for one in choices if one.variant in ways]
    return min((most_tokens(way.preset, trained) for way in given), default=0)


async def _fitted(
    call: Call, preset: str, texts: list[str], limit: int, *, cuts: bool, guess: bool
) -> list[str | list[int]]:
    """Return the inputs; one that is too long is replaced by a list of its first tokens.

    Without `cuts` such an input raises ApiError `bad_request`. To count tokens, the child is asked.
    With `guess` it is not asked about a text that is short enough to fit in most languages.
    """
    inputs: list[str | list[int]] = [*texts]
    end: list[int] | None = None
    for number, text in enumerate(texts):
        if not number % _STEP:
            await asyncio.sleep(0)
        if not limit or (guess and len(text) <= _USUAL * limit) or _at_most(text) <= limit:
            continue
        tokens = await _tokens(call, preset, text)
        if len(tokens) <= limit:
            continue
        if not cuts:
            message = (
                f"the input length exceeds the context length: input {number} has {len(tokens)} "
                f"tokens, and {preset} takes {limit}"
            )
            remedy = (
                "leave `truncate` out, or raise ctx-size (and ubatch-size, where the file has it)"
            )
            raise ApiError("bad_request", message, remedy=remedy, param="input")
        if end is None:
            end = closing(tokens, await _tokens(call, preset, ""))
        inputs[number] = [*tokens[: limit - len(end)], *end]
    return inputs


def _at_most(text: str) -> int:
    """Return an upper bound of a text's tokens; one blank may be three of them."""
    return len(text.encode("utf-8", "replace")) + 2 * text.count(" ") + _SPECIAL


def closing(tokens: list[int], none: list[int]) -> list[int]:
    """Return the tokens that end every input; `none` are those of an empty input."""
    begin = 1 if none and tokens[:1] == none[:1] else 0
    end = none[begin:]
    return end if end and tokens[-len(end) :] == end else []


async def _tokens(call: Call, preset: str, text: str) -> list[int]:
    call.route = replace(call.route, slot=False, retry=True)
    body = msgspec.json.encode({"model": preset, "content": text, "add_special": True})
    headers = [(b"content-type", b"application/json")]
    request = UpstreamRequest("POST", "/tokenize", headers, Body.of(body))
    status, said = await _answer(call, preset, request)
    tokens = said.get("tokens")
    if status != HTTPStatus.OK or not isinstance(tokens, list):
        reason = error_text(said.get("error", f"status {status}"))
        raise ApiError("upstream_failed", f"{preset} could not count the input's tokens: {reason}")
    return tokens


async def _context_of_child(call: Call, preset: str) -> int:
    """Return the context of one request in the running child, 0 if the child does not report it."""
    call.route = replace(call.route, slot=False, retry=True)
    _, said = await _answer(call, preset, UpstreamRequest("GET", "/props", [], Body.of(b"")))
    return context_in(said) or 0
