"""The names that clients find in lists of models, each with the model it means."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamaswap_py.api.request import Call
    from llamaswap_py.snapshot import AliasView, ModelView, Snapshot


def listed(call: Call, snapshot: Snapshot) -> Iterator[tuple[str, ModelView]]:
    """Yield every name that this request's key may use and that is to be listed.

    A preset comes first, then its other names; names that choose among presets come last, each with
    the model that stands for it now.
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
    """Return the model that an alias is shown with: the first that is not unloaded, else the first.

    It chooses anew for each request.
    """
    members = [models[preset] for preset in alias.presets]
    awake = (one for one in members if one.state not in ("unloaded", "failed"))
    return next(awake, members[0])


def names_of_model(call: Call, preset: str) -> list[str]:
    """Return the names under which a model is listed, its id first, also where that is not."""
    snapshot = call.supervisor.snapshot()
    return [preset, *(name for name, model in listed(call, snapshot) if name != model.id == preset)]
