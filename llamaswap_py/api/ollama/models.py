"""Ollama's lists of models, and its routes that change models, most of which lswap refuses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llamaswap_py.api.llama_cpp import remove_model
from llamaswap_py.api.model_lists import STEP, listed
from llamaswap_py.api.ollama.answers import as_line
from llamaswap_py.api.ollama.members import OPTIONS, VERSION
from llamaswap_py.api.ollama.shared import name_of, preset_of, read, stamp
from llamaswap_py.errors import ApiError
from llamaswap_py.supervisor.hub_models import pull_hint
from llamaswap_py.units import HOST

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call
    from llamaswap_py.snapshot import InstanceView, ModelView, Snapshot
    from llamaswap_py.supervisor.model_facts import ModelFacts

_COPILOT: Final = b"GitHubCopilotChat/"
_NEVER: Final = "9999-12-31T23:59:59Z"


async def version(call: Call) -> None:
    """GET /api/version."""
    call.respond(200, {"version": VERSION})


# --- lists ---------------------------------------------------------------------------------------


async def tags(call: Call) -> None:
    """GET /api/tags: every name that a client may ask for."""
    snapshot = await call.supervisor.snapshot_in_steps()
    every = list(listed(call, snapshot))
    facts = await call.supervisor.facts.of_each({model.id for _, model in every})
    takes = {one.preset: one.inputs for one in snapshot.instances}
    found = []
    for at, (name, model) in enumerate(every, 1):
        if not at % STEP:
            await asyncio.sleep(0)
        entry = _listed(name, model, facts[model.id])
        capabilities = facts[model.id].capable_of(takes.get(model.id, ()))
        found.append({**entry, "capabilities": capabilities})
    call.respond(200, {"models": found})


async def ps(call: Call) -> None:
    """GET /api/ps: the loaded models."""
    snapshot = await call.supervisor.snapshot_in_steps()
    models = {model.id: model for model in snapshot.models}
    found = []
    for one in snapshot.instances:
        model = models.get(one.preset)
        if model is None or one.state not in ("ready", "sleeping") or not call.may_use(model.id):
            continue
        facts = await call.supervisor.facts.of(model.id)
        entry = _listed(model.id, model, facts)
        taken = model.footprint or {}
        entry["size"] = sum(taken.values()) or entry["size"]
        entry["size_vram"] = sum(size for device, size in taken.items() if device != HOST)
        entry["expires_at"] = _expires(snapshot, one)
        entry["context_length"] = model.context_per_request or facts.context_length
        found.append(entry)
    call.respond(200, {"models": found})


def _expires(snapshot: Snapshot, one: InstanceView) -> str:
    if one.evict_at is not None:
        return stamp(one.evict_at)
    return _NEVER if one.ttl is None else stamp(snapshot.now + one.ttl)


def _listed(name: str, model: ModelView, facts: ModelFacts) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "modified_at": stamp(facts.modified or model.created),
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
        "context_length": facts.context_length,
        "embedding_length": facts.metadata.get(f"{facts.family}.embedding_length", 0),
    }


async def show(call: Call) -> None:
    """POST /api/show: facts of a model from the header of its file, loaded or not."""
    ask = await read(call)
    preset = preset_of(call, ask)
    facts = await call.supervisor.facts.of(preset)
    snapshot = await call.supervisor.snapshot_in_steps()
    model = next(one for one in snapshot.models if one.id == preset)
    running = next((one for one in snapshot.instances if one.preset == preset), None)
    info: dict[str, Any] = {**facts.metadata, "general.architecture": facts.family}
    if facts.family:
        info[f"{facts.family}.context_length"] = facts.context_length
    if (call.exchange.head.get(b"user-agent") or b"").startswith(_COPILOT):
        info["general.basename"] = name_of(ask)  # clients show it as the name, as with Ollama
    license = facts.metadata.get("general.license")
    call.respond(
        200,
        {
            **({"license": license} if license else {}),
            "modelfile": _modelfile(model),
            "parameters": _parameters(call, model, facts),
            "template": facts.template,
            "details": _details(facts),
            "model_info": info,
            "capabilities": facts.capable_of(running.inputs if running is not None else ()),
            "modified_at": stamp(facts.modified or model.created),
        },
    )


def _modelfile(model: ModelView) -> str:
    chosen = f"# {model.chosen}\n" if model.chosen else ""
    return f"# lswap: {model.id}\n{chosen}FROM {model.id}\n"


def _parameters(call: Call, model: ModelView, facts: ModelFacts) -> str:
    """Return lines like those of a Modelfile: the context, and defaults of requests."""
    known = {option.becomes: option.name for option in OPTIONS if option.becomes}
    filters = call.supervisor.config.models[model.id].request
    defaults = {**filters.default, **filters.set}
    found: list[tuple[str, Any]] = [
        ("num_ctx", model.context_per_request or facts.context_length),
        *((known[name], value) for name, value in defaults.items() if name in known),
    ]
    each = ((name, one) for name, value in found for one in _as_list(value))
    return "\n".join(f"{name:<30} {msgspec.json.encode(one).decode()}" for name, one in each)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


# --- models of its own ---------------------------------------------------------------------------


async def pull(call: Call) -> None:
    """POST /api/pull: succeeds for a model of the configuration, and refuses any other."""
    ask = await read(call)
    name = name_of(ask)
    if call.supervisor.names.known(name) is None:
        raise ApiError(
            "not_implemented",
            f"model {name!r} is not in the configuration, and this route cannot add it",
            remedy=pull_hint(name),
        )
    preset_of(call, ask)
    if ask.get("stream") is False:
        call.respond(200, {"status": "success"})
        return
    call.status = 200
    await call.exchange.start(200, "application/x-ndjson")
    await call.exchange.write(as_line({"status": "pulling manifest"}))
    await call.exchange.write(as_line({"status": "success"}))
    await call.exchange.finish()


async def delete(call: Call) -> None:
    """DELETE /api/delete: deletes a model of a repository, with its files and its entry."""
    await remove_model(call, preset_of(call, await read(call)))
    call.status = 200
    call.exchange.respond(200)


async def unsupported(call: Call) -> None:
    """POST /api/create, /api/copy, /api/push, /api/blobs/…: refused, as the file has the models."""
    raise ApiError(
        "not_implemented",
        f"{call.exchange.head.path} is not supported: models are defined by the configuration",
        remedy="change the configuration file",
    )


async def elsewhere(call: Call) -> None:
    """Any path below /api/experimental/: refused, because these are services of ollama.com."""
    raise ApiError(
        "not_implemented",
        f"{call.exchange.head.path} is not supported: it is a service of ollama.com",
        remedy="ask ollama.com for it",
    )
