"""The lists of models, with the fields of OpenAI and of llama.cpp's router mode in one object.

`listed` yields the names that are in every list, each with its model.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from llamaswap_py import __version__
from llamaswap_py.llamacpp.router_mode import router_status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamaswap_py.api.request import Call
    from llamaswap_py.snapshot import AliasView, InstanceView, ModelView, Snapshot
    from llamaswap_py.supervisor.model_facts import ModelFacts


STEP: Final = 1_000
"""Entries of a list that are made in one turn of the event loop: some 2 ms."""


async def list_models(call: Call) -> None:
    """GET /v1/models, /models: the list; ?reload=1 first reads the file again if it has changed."""
    if call.flag("reload") and call.services.reloader is not None:
        await call.services.reloader.catch_up()
    snapshot = await call.supervisor.snapshot_in_steps()
    running = {instance.preset: instance for instance in snapshot.instances}
    found = list(listed(call, snapshot))
    facts = await call.supervisor.facts.of_each({model.id for _, model in found})
    entries = []
    for at, (name, model) in enumerate(found, 1):
        entries.append(model_object(model, running.get(model.id), name, facts[model.id]))
        if not at % STEP:
            await asyncio.sleep(0)
    call.respond(200, {"object": "list", "data": entries})


async def show_model(call: Call) -> None:
    """GET /v1/models/{id}: one model, by any of its names, even if it is not listed."""
    preset = call.find_preset(unquote(call.captured))
    snapshot = await call.supervisor.snapshot_in_steps()
    running = {instance.preset: instance for instance in snapshot.instances}
    for model in snapshot.models:
        if model.id == preset:
            facts = await call.supervisor.facts.of(preset)
            call.respond(200, model_object(model, running.get(preset), call.asked, facts))


async def router_props(call: Call) -> None:
    """GET /props without a model: the properties that llama.cpp's router reports of itself."""
    snapshot = call.supervisor.snapshot()
    config = call.supervisor.config
    build = snapshot.engine.build
    call.respond(
        200,
        {
            "role": "router",
            "max_instances": config.policy.max_loaded,
            "models_autoload": config.autoload,
            "model_alias": "llama-server",
            "model_path": "none",
            "default_generation_settings": {"params": None, "n_ctx": 0},
            "ui_settings": {},
            "build_info": f"b{build}-lswap-{__version__}" if build else f"lswap-{__version__}",
            "cors_proxy_enabled": False,
        },
    )


def listed(call: Call, snapshot: Snapshot) -> Iterator[tuple[str, ModelView]]:
    """Yield every listed name that this request's key may use.

    Each preset is followed by its other names. Aliases that choose among presets come last, each
    with the model that stands for it now.
    """
    with_aliases = call.supervisor.config.list_aliases
    models = {model.id: model for model in snapshot.models if call.may_use(model.id)}
    for model in models.values():
        if model.unlisted:
            continue
        yield model.id, model
        for name in model.other_names if with_aliases else ():
            yield name, model
    for alias in snapshot.aliases if with_aliases else ():
        if all(preset in models for preset in alias.presets):
            yield alias.name, standing_for(alias, models)


def standing_for(alias: AliasView, models: dict[str, ModelView]) -> ModelView:
    """Return the model to show for an alias: the first that is not unloaded, else the first.

    The alias chooses a model for each request, so this one stands for all of them.
    """
    members = [models[preset] for preset in alias.presets]
    awake = (one for one in members if one.state not in ("unloaded", "failed"))
    return next(awake, members[0])


def names_of_model(call: Call, preset: str) -> list[str]:
    """Return the id of a model, followed by its other names that are listed."""
    snapshot = call.supervisor.snapshot()
    return [preset, *(name for name, model in listed(call, snapshot) if name != model.id == preset)]


def model_object(
    model: ModelView, instance: InstanceView | None, name: str, facts: ModelFacts
) -> dict[str, Any]:
    """Return the entry of `data` for one name of a model; it has `meta` while an instance runs.

    `chosen` says what lswap chose where the file leaves things open. If the name is not the model's
    id, `root` is the id.
    """
    status: dict[str, Any] = {
        "value": router_status(model.state),
        "args": list(model.args),
        "preset": preset_ini(model),
    }
    if model.failure is not None:
        status["failed"] = True
        status["exit_code"] = model.failure.exit_code if model.failure.exit_code is not None else 1
    if instance is not None and instance.progress is not None and model.state == "loading":
        status["progress"] = {
            "stages": [instance.stage] if instance.stage else [],
            "current": instance.stage,
            "value": instance.progress,
        }
    inputs = instance.inputs if instance is not None and instance.inputs else facts.inputs
    entry: dict[str, Any] = {
        "id": name,
        "aliases": list(model.aliases) if name == model.id else [],
        "tags": [],
        "object": "model",
        "owned_by": "llamacpp",
        "created": model.created,
        "status": status,
        "architecture": {"input_modalities": inputs, "output_modalities": facts.outputs},
        "source": "cache" if model.repository else "preset",
        "can_remove": model.repository is not None and name == model.id,
    }
    if name != model.id:
        entry["root"] = model.id
    if instance is not None and instance.n_ctx is not None:
        entry["meta"] = {"n_ctx": instance.n_ctx}
    if model.chosen:
        entry["chosen"] = model.chosen
    if model.metadata:
        entry["metadata"] = dict(model.metadata)
    return entry


def preset_ini(model: ModelView) -> str:
    """Return the preset as a section of llama.cpp's INI (common/preset.cpp)."""
    lines = [f"{name.lstrip('-')} = {value}" for name, value in _options(model.args)]
    return "\n".join([f"[{model.id}]", *lines, ""])


def _options(args: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the options as pairs of name and value; an option without a value is a flag."""
    at = 0
    while at < len(args):
        name = args[at]
        value = args[at + 1] if at + 1 < len(args) else "--"
        if value.startswith("-") and not _is_number(value):
            yield name, "true"
            at += 1
        else:
            yield name, value
            at += 2


def _is_number(text: str) -> bool:
    return text.lstrip("-").replace(".", "", 1).isdigit()
