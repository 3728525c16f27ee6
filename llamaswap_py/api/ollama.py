"""Ollama's routes: its requests translated for llama-server, its lists made from ours."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llamaswap_py.api import inference
from llamaswap_py.api.call import model_not_found
from llamaswap_py.api.filters import filtered
from llamaswap_py.api.library import remove_model
from llamaswap_py.api.reading import read_skimmed
from llamaswap_py.errors import ApiError
from llamaswap_py.translate.ollama import (
    Translated,
    read_keep_alive,
    translate_chat,
    translate_embed,
    translate_generate,
)
from llamaswap_py.translate.ollama_answers import (
    Answer,
    Clock,
    LineStream,
    as_line,
    embed_answer,
    error_text,
)
from llamaswap_py.wire.messages import Body, UpstreamRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.api.call import Call
    from llamaswap_py.api.skim import Skim
    from llamaswap_py.model_facts import ModelFacts
    from llamaswap_py.snapshot import InstanceView, ModelView, Snapshot

VERSION: Final = "0.35.0"
"""Of Ollama's API: what clients ask for before they use its newer parts."""
_LATEST: Final = ":latest"
_NEVER: Final = "9999-12-31T23:59:59Z"


async def version(call: Call) -> None:
    """GET /api/version."""
    call.respond(200, {"version": VERSION})


# --- lists ---------------------------------------------------------------------------------------


async def tags(call: Call) -> None:
    """GET /api/tags: every model of the file."""
    found = []
    for model in call.supervisor.snapshot().models:
        if call.may_use(model.id):
            facts = await call.supervisor.facts.of(model.id)
            found.append(_listed(model, facts))
    call.respond(200, {"models": found})


async def ps(call: Call) -> None:
    """GET /api/ps: what is loaded."""
    snapshot = call.supervisor.snapshot()
    models = {model.id: model for model in snapshot.models}
    found = []
    for one in snapshot.instances:
        model = models.get(one.preset)
        if model is None or one.state not in ("ready", "sleeping") or not call.may_use(model.id):
            continue
        entry = _listed(model, await call.supervisor.facts.of(model.id))
        taken = model.footprint or {}
        entry["size"] = sum(taken.values()) or entry["size"]
        entry["size_vram"] = sum(size for device, size in taken.items() if device != "host")
        entry["expires_at"] = _expires(snapshot, one)
        entry["context_length"] = model.context_per_request or 0
        found.append(entry)
    call.respond(200, {"models": found})


def _expires(snapshot: Snapshot, one: InstanceView) -> str:
    if one.evict_at is not None:
        return _stamp(one.evict_at)
    return _NEVER if one.ttl is None else _stamp(snapshot.now + one.ttl)


def _listed(model: ModelView, facts: ModelFacts) -> dict[str, Any]:
    return {
        "name": model.id,
        "model": model.id,
        "modified_at": _stamp(facts.modified or model.created),
        "size": facts.size,
        "digest": facts.digest,
        "details": _details(facts),
    }


def _details(facts: ModelFacts) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": facts.family,
        "families": [facts.family] if facts.family else [],
        "parameter_size": facts.parameters,
        "quantization_level": facts.quantization,
    }


async def show(call: Call) -> None:
    """POST /api/show: read from the file's header, whether it was ever loaded or not."""
    ask = await _read(call)
    preset = _preset(call, ask)
    facts = await call.supervisor.facts.of(preset)
    model = next(one for one in call.supervisor.snapshot().models if one.id == preset)
    arguments = [*model.args]
    call.respond(
        200,
        {
            "modelfile": f"# lswap: {model.id}\nFROM {model.id}\n",
            "parameters": " ".join(arguments),
            "template": facts.template,
            "details": _details(facts),
            "model_info": {
                **facts.metadata,
                "general.architecture": facts.family,
                f"{facts.family}.context_length": facts.context_length,
            },
            "capabilities": list(facts.capabilities),
            "modified_at": _stamp(facts.modified or model.created),
        },
    )


# --- generation ----------------------------------------------------------------------------------


async def chat(call: Call) -> None:
    """POST /api/chat."""
    await _generate(call, translate_chat, empty="messages")


async def generate(call: Call) -> None:
    """POST /api/generate."""
    await _generate(call, translate_generate, empty="prompt")


async def _generate(
    call: Call, translate: Callable[[dict[str, Any]], Translated], *, empty: str
) -> None:
    ask, skim = await _read_large(call)
    preset = _preset(call, ask)
    keep = read_keep_alive(ask.get("keep_alive"))
    if not ask.get(empty) and not ask.get("suffix"):
        await _only_keep(call, preset, keep, empty)
        return
    translated = translate(ask)
    call.route = replace(call.route, slot=True, retry=True, talk=True)
    answer = partial(_whole, call, translated, _name(ask))
    stream = partial(_stream, call, translated, _name(ask)) if translated.stream else None
    request = _request(call, preset, _name(ask), translated, skim)
    await inference.translated(call, preset, request, translate=stream, answer=answer)
    _keep(call, preset, keep)


def _clock(call: Call) -> Clock:
    began = call.began
    return Clock(
        now=lambda: _stamp(time.time()),
        elapsed=lambda: round((time.monotonic() - began) * 1e9),
        load_ns=round(call.load_ms * 1e6),
    )


def _stream(call: Call, translated: Translated, name: str) -> LineStream:
    return LineStream(Answer(name, translated.shape, _clock(call)))


def _whole(call: Call, translated: Translated, name: str, status: int, body: bytes) -> None:
    """Answer with the translation of a whole answer, or of a child's refusal."""
    said = _decoded(body)
    if status != 200:
        text = error_text(said.get("error", body[:500].decode("utf-8", "replace")))
        call.respond(status, {"error": text})
        return
    call.respond(200, Answer(name, translated.shape, _clock(call)).whole(said))


async def _only_keep(call: Call, preset: str, keep: float | None, empty: str) -> None:
    """An empty prompt loads a model; with keep_alive 0 it unloads it."""
    reason = "load"
    if keep == 0:
        call.supervisor.unload(preset, force=False)
        reason = "unload"
    else:
        await call.supervisor.load(preset)
        _keep(call, preset, keep)
    said: dict[str, Any] = {"response": ""}
    if empty == "messages":
        said = {"message": {"role": "assistant", "content": ""}}
    head = {"model": preset, "created_at": _stamp(time.time())}
    call.respond(200, {**head, **said, "done": True, "done_reason": reason})


def _keep(call: Call, preset: str, keep: float | None) -> None:
    if keep is not None:
        call.supervisor.keep_alive(preset, None if keep < 0 else keep)


async def embed(call: Call) -> None:
    """POST /api/embed."""
    ask, skim = await _read_large(call)
    size = ask.get("dimensions")

    def answer(said: dict[str, Any]) -> Any:
        return embed_answer(said, _clock(call), _name(ask), _whole_number(size))

    await _embed(call, ask, skim, answer)


async def embeddings(call: Call) -> None:
    """POST /api/embeddings, the older form: one text, one vector."""
    ask, skim = await _read_large(call)

    def answer(said: dict[str, Any]) -> Any:
        vectors = embed_answer(said, _clock(call), "", None)["embeddings"]
        return {"embedding": vectors[0] if vectors else []}

    await _embed(call, ask, skim, answer)


async def _embed(
    call: Call,
    ask: dict[str, Any],
    skim: Skim | None,
    shape: Callable[[dict[str, Any]], Any],
) -> None:
    preset = _preset(call, ask)
    translated = translate_embed(ask)
    call.route = replace(call.route, slot=True, retry=True)

    def answer(status: int, body: bytes) -> None:
        said = _decoded(body)
        if status == 200:
            call.respond(200, shape(said))
        else:
            call.respond(status, {"error": error_text(said.get("error", "the model refused"))})

    request = _request(call, preset, _name(ask), translated, skim)
    await inference.translated(call, preset, request, translate=None, answer=answer)
    _keep(call, preset, read_keep_alive(ask.get("keep_alive")))


# --- models of its own ---------------------------------------------------------------------------


async def pull(call: Call) -> None:
    """POST /api/pull: a model of the file is there already."""
    ask = await _read(call)
    name = _name(ask)
    if call.supervisor.names.resolve(name.removesuffix(_LATEST)) is None:
        raise ApiError(
            "not_implemented",
            f"model {name!r} is not in the configuration, and clients do not add any",
            remedy="add it to the file",
        )
    _preset(call, ask)
    if ask.get("stream") is False:
        call.respond(200, {"status": "success"})
        return
    call.status = 200
    await call.exchange.start(200, "application/x-ndjson")
    await call.exchange.write(as_line({"status": "pulling manifest"}))
    await call.exchange.write(as_line({"status": "success"}))
    await call.exchange.finish()


async def delete(call: Call) -> None:
    """DELETE /api/delete: a model of a repository, its files and its entry."""
    await remove_model(call, _preset(call, await _read(call)))
    call.status = 200
    call.exchange.respond(200)


async def unsupported(call: Call) -> None:
    """POST /api/create, /api/copy, /api/push: models are in the file."""
    raise ApiError(
        "not_implemented",
        f"{call.exchange.head.path} is not supported: the models are those of the configuration",
        remedy="change the file",
    )


# --- reading -------------------------------------------------------------------------------------


async def _read(call: Call) -> dict[str, Any]:
    return (await _read_large(call))[0]


async def _read_large(call: Call) -> tuple[dict[str, Any], Skim | None]:
    """Read a request that may hold images: what its skim has cut is not in what is returned."""
    limit = call.supervisor.config.limits.body
    # Arguments of tools become texts within texts, so nothing with escapes may be cut.
    body, skim = await read_skimmed(call, b"application/json", limit, translated=True)
    try:
        ask = msgspec.json.decode((body.join() if skim is None else skim.text) or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError("bad_json", f"the body is not valid JSON: {error}") from None
    if not isinstance(ask, dict):
        raise ApiError("bad_json", "the body must be a JSON object")
    return ask, skim


def _name(ask: dict[str, Any]) -> str:
    name = ask.get("model") or ask.get("name")
    if not isinstance(name, str) or not name:
        raise ApiError("model_missing", "the request names no model", param="model")
    return name


def _preset(call: Call, ask: dict[str, Any]) -> str:
    """Return the preset of a request; `:latest` may be there where the file has no tag."""
    name = _name(ask)
    names = call.supervisor.names
    if names.resolve(name) is None and names.resolve(name.removesuffix(_LATEST)) is None:
        raise model_not_found(name, names.nearest(name.removesuffix(_LATEST)))
    known = name if names.resolve(name) is not None else name.removesuffix(_LATEST)
    return call.find_preset(known)


def _request(
    call: Call, preset: str, name: str, translated: Translated, skim: Skim | None
) -> UpstreamRequest:
    filters = call.supervisor.config.models[preset].request
    asked = filtered(translated.body, filters, name)
    body = msgspec.json.encode({"model": preset, **asked})
    headers = [(b"content-type", b"application/json")]
    if forwarded := call.exchange.head.get(b"user-agent"):
        headers.append((b"user-agent", forwarded))
    whole = Body.of(body) if skim is None else skim.restore(body)
    return UpstreamRequest("POST", translated.path, headers, whole)


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _whole_number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _stamp(seconds: float) -> str:
    """Return an RFC 3339 stamp, as Go writes them."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
