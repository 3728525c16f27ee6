"""Names that choose among presets, presets that exclude each other, and how a name is spelled."""

from __future__ import annotations

import posixpath
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Annotated, Final

from llamaswap_py.config.filters import SHARES
from llamaswap_py.config.forms import NAMES, Record, key, or_null, plain

if TYPE_CHECKING:
    from llamaswap_py.config.preset import Preset


class Alias(Record, frozen=True):
    """A name that chooses among presets: one of the two keys."""

    split: Annotated[
        dict[str, int] | None,
        key(
            "Each request goes to one of these models by chance, with these shares.",
            or_null(SHARES),
            {"qwen3-8b": 90, "gemma": 10},
        ),
    ] = None
    first: Annotated[
        tuple[str, ...] | None,
        key(
            "Each request goes to the first of these that is loaded. If none is, it goes to the "
            "first that fits without unloading another model; if none does, to the first.",
            or_null(NAMES),
            ["gpt-oss-120b", "qwen3-8b"],
        ),
    ] = None


class Group(Record, frozen=True):
    """Presets that have to do with each other."""

    exclusive: Annotated[
        tuple[str, ...],
        key(
            "Models of which only one may be loaded at a time, even if more would fit.",
            NAMES,
            ["gpt-oss-120b", "glm-4.7"],
        ),
    ]
    persistent: Annotated[
        bool,
        plain(
            "Unload a model of the group only for another model of the group.",
            True,
        ),
    ] = False


_LATEST: Final = ":latest"


def spelled(name: str, known: Container[str]) -> str | None:
    """Return how a name is spelled among those that are known, None if it is none of them.

    `NAME:latest` and `NAME` are one name, as for Ollama's clients, unless both are known.
    """
    if name in known:
        return name
    other = name.removesuffix(_LATEST) if name.endswith(_LATEST) else name + _LATEST
    return other if other in known else None


def file_found(place: str, models: Mapping[str, Preset], lines: Mapping[str, int]) -> str | None:
    """Return the name of the file of a place's preset, if it was only found in a folder."""
    name = place.removeprefix("models.")
    while name and name not in models:
        name = name.rpartition(".")[0]
    if not name or f"models.{name}" in lines:
        return None
    return posixpath.basename(models[name].model) or None
