"""Turns llama-swap's changes of requests and its model metadata into keys of a preset. Pure."""

from __future__ import annotations

from typing import Any, Final

from llamaswap_py.importing.draft import Draft

_KEPT: Final = ("model", "stream")
"""Members of a request that filters of lswap never change."""
_FILTERS: Final = ("setParams", "stripParams", "strip_params", "setParamsByID")


def take_filters(name: str, filters: dict[str, Any], preset: dict[str, Any], draft: Draft) -> None:
    """Carry over `filters`."""
    place = f"models.{name}.filters"
    request: dict[str, Any] = dict(preset.get("request", {}))
    if values := _free(filters.get("setParams"), f"{place}.setParams", draft):
        request["set"] = {**request.get("set", {}), **values}
    strip = filters.get("stripParams") or filters.get("strip_params")
    names = strip.split(",") if isinstance(strip, str) else strip or []
    wanted = {str(each).strip(): None for each in names if str(each).strip()}
    if stripped := list(_free(wanted, f"{place}.stripParams", draft)):
        request["strip"] = stripped
    for id, values in table_of(filters.get("setParamsByID")).items():
        if values := _free(values, f"{place}.setParamsByID", draft):
            request.setdefault("per_name", {})[str(id)] = {"set": values}
        elif str(id) not in (name, *preset.get("aliases", ())):
            preset["aliases"] = [*preset.get("aliases", ()), str(id)]
    for key in filters.keys() - {*_FILTERS}:
        draft.note(f"{place}.{key}", "no counterpart in lswap; see `request`")
    if request:
        preset["request"] = request


def _free(values: Any, place: str, draft: Draft) -> dict[str, Any]:
    """Return the members that may be changed; `stream` is named, `model` llama-swap keeps, too."""
    found = table_of(values)
    if "stream" in found:
        draft.note(place, "lswap leaves `stream` to the client")
    return {str(name): value for name, value in found.items() if name not in _KEPT}


def take_metadata(place: str, model: dict[str, Any], preset: dict[str, Any], draft: Draft) -> None:
    """Carry over `name`, `description` and `metadata`."""
    found: dict[str, Any] = {
        key: str(model[key]) for key in ("name", "description") if model.get(key)
    }
    for key, value in table_of(model.get("metadata")).items():
        if "${PORT}" in str(value):
            draft.note(f"{place}.metadata", "left out: the port of a model changes with every load")
        elif isinstance(value, str | int | float | bool):
            found[str(key)] = value
        else:
            draft.note(f"{place}.metadata", "only texts, numbers and booleans are kept")
    if found:
        preset["metadata"] = found


def table_of(value: Any) -> dict[str, Any]:
    """Return a mapping of the file, empty where it has something else."""
    return value if isinstance(value, dict) else {}
