"""Presets whose entry has a mistake: to which preset a mistake belongs, and what stays usable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from typing import Any, Final

_OF_MODELS: Final = "models."


def owner_of(place: str, ids: Container[str]) -> str | None:
    """Return the preset that a place of the file is inside of; None where it is of the whole file.

    Names may have dots in them: of two that begin alike it is the longer one.
    """
    if not place.startswith(_OF_MODELS):
        return None
    rest = place.removeprefix(_OF_MODELS)
    ends = [at for at, letter in enumerate(rest) if letter in ".["]
    found = [rest[:end] for end in (*ends, len(rest)) if rest[:end] in ids]
    return found[-1] if found else None


def reduce_broken(broken: Iterable[str], presets: dict[str, dict[str, Any]]) -> None:
    """Leave of presets that cannot run the names that no other preset has, and what is shown."""
    uses = Counter(name for own in presets.values() for name in _names(own))
    for id in broken:
        own = presets[id]
        kept: dict[str, Any] = {"model": ""}
        free = {name for name in _names(own) if uses[name] == 1 and name not in presets}
        kept["aliases"] = tuple(name for name in own.get("aliases", ()) if name in free)
        keys = ("metadata", "request") if free >= _per_name(own).keys() else ("metadata",)
        presets[id] = kept | {name: own[name] for name in keys if name in own}


def _names(own: Mapping[str, Any]) -> set[str]:
    return {*own.get("aliases", ()), *_per_name(own)}


def _per_name(own: Mapping[str, Any]) -> Mapping[str, object]:
    found: Mapping[str, object] = getattr(own.get("request"), "per_name", {})
    return found
