"""Ollama's /api/embed and /api/embeddings."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llamaswap_py.api import inference
from llamaswap_py.api.ollama_requests import (
    child_request,
    clock_of,
    decoded,
    keep_loaded,
    name_of,
    preset_of,
    read_large,
    whole_number,
)
from llamaswap_py.translate.ollama import read_keep_alive, translate_embed
from llamaswap_py.translate.ollama_answers import embed_answer, error_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.api.call import Call
    from llamaswap_py.api.skim import Skim


async def embed(call: Call) -> None:
    """POST /api/embed."""
    ask, skim = await read_large(call)
    size = ask.get("dimensions")

    def answer(said: dict[str, Any]) -> Any:
        return embed_answer(said, clock_of(call), name_of(ask), whole_number(size))

    await _embed(call, ask, skim, answer)


async def embeddings(call: Call) -> None:
    """POST /api/embeddings, the older form: one text, one vector."""
    ask, skim = await read_large(call)

    def answer(said: dict[str, Any]) -> Any:
        vectors = embed_answer(said, clock_of(call), "", None)["embeddings"]
        return {"embedding": vectors[0] if vectors else []}

    await _embed(call, ask, skim, answer)


async def _embed(
    call: Call,
    ask: dict[str, Any],
    skim: Skim | None,
    shape: Callable[[dict[str, Any]], Any],
) -> None:
    preset = preset_of(call, ask)
    translated = translate_embed(ask)
    call.route = replace(call.route, slot=True, retry=True)

    def answer(status: int, body: bytes) -> None:
        said = decoded(body)
        if status == 200:
            call.respond(200, shape(said))
        else:
            call.respond(status, {"error": error_text(said.get("error", "the model refused"))})

    request = child_request(call, preset, name_of(ask), translated, skim)
    await inference.translated(call, preset, request, translate=None, answer=answer)
    keep_loaded(call, preset, read_keep_alive(ask.get("keep_alive")))
