"""Names that stand for presets (ids, aliases, groups): which presets they mean, and mistakes."""

from __future__ import annotations

import posixpath
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import structs

from llamaswap_py.config.forms import CONTROL, NAMES, SUBSTITUTE, Record, key, or_null, plain
from llamaswap_py.config.request_filters import SHARES
from llamaswap_py.config.yaml_tree import Problem, Spot, nearest

if TYPE_CHECKING:
    from llamaswap_py.config.preset import Preset


class Alias(Record, frozen=True):
    """A name that chooses among presets, by one of the two keys."""

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


class PresetGroup(Record, frozen=True):
    """Presets with a rule for all of them together."""

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
    """Return a name as it is spelled among the known ones, None if it is unknown.

    `NAME:latest` and `NAME` are the same name, as for Ollama's clients, unless both are known.
    """
    if name in known:
        return name
    other = name.removesuffix(_LATEST) if name.endswith(_LATEST) else name + _LATEST
    return other if other in known else None


def file_found(place: str, models: Mapping[str, Preset], lines: Mapping[str, int]) -> str | None:
    """Return the file name of the preset at a place, if it comes only from a folder of models."""
    name = place.removeprefix("models.")
    while name and name not in models:
        name = name.rpartition(".")[0]
    if not name or f"models.{name}" in lines:
        return None
    return posixpath.basename(models[name].model) or None


# With more unknown names, none gets a suggestion: one among ten thousand names takes 0.1 s.
_MOST_SUGGESTIONS: Final = 20
_LOADED: Final = "loaded"  # any preset that is loaded may be the substitute


def resolve_names(
    values: dict[str, Any],
    presets: dict[str, dict[str, Any]],
    lines: Mapping[str, int],
    problem: Problem,
    spot: Spot,
) -> None:
    """Replace names of presets with their ids, in `values` of the file and in its `presets`.

    `default_model` stays as it is written. Mistakes are reported to `problem`.
    """
    names = _Names(presets, lines, problem, spot)
    names.check_variants(presets)
    if not presets:
        return
    if (default := values.get("default_model")) is not None:
        names.find(default, "default_model")
    for place in ("policy", "defaults"):
        if place in values and values[place].when_full is not None:
            when_full = names.when_full(values[place].when_full, f"{place}.when_full")
            values[place] = structs.replace(values[place], when_full=when_full)
    for id, own in presets.items():
        if own.get("when_full") is not None:
            own["when_full"] = names.when_full(own["when_full"], f"models.{id}.when_full", id)
    for name, alias in values.get("aliases", {}).items():
        values["aliases"][name] = names.alias(name, alias)
    for name, group in values.get("groups", {}).items():
        values["groups"][name] = names.group(group, f"groups.{name}.exclusive")


class _Names:
    """All ids and aliases. An id wins over an alias; two presets with one name are a mistake."""

    def __init__(
        self,
        presets: dict[str, dict[str, Any]],
        lines: Mapping[str, int],
        problem: Problem,
        spot: Spot,
    ) -> None:
        self._spot = spot
        self._lines = lines
        self._problem = problem
        self._suggestions = 0
        self._ids = {id: id for id in presets}
        for id, values in presets.items():
            if id in values.get("aliases", ()):  # llama.cpp's preset files repeat the id there
                values["aliases"] = tuple(each for each in values["aliases"] if each != id)
            for alias in values.get("aliases", ()):
                self._add(alias, id, presets)
            for alias in getattr(values.get("request"), "per_name", ()):
                if self._ids.get(alias) != id:
                    self._add(alias, id, presets, key="request")

    def _add(
        self, alias: str, id: str, presets: Mapping[str, object], key: str = "aliases"
    ) -> None:
        if (other := self._ids.setdefault(alias, id)) is id and alias not in presets:
            return
        there = f"models.{other}" if alias in presets else f"models.{other}.aliases"
        here = f"models.{id}.{key}"
        line = self._lines.get(there, self._lines.get(f"models.{other}", 0))
        message = f"{alias!r} already names models.{other} ({self._spot(line)})"
        self._problem(self._lines[here], here, message, "a name can mean only one preset")

    def find(self, name: str, here: str) -> str:
        """Return the id of the preset called `name`, which stands at `here`; else the name."""
        if (known := spelled(name, self._ids)) is not None:
            return self._ids[known]
        remedy = f"known are {', '.join(list(self._ids)[:20])}"
        self._suggestions += 1
        if self._suggestions <= _MOST_SUGGESTIONS:
            remedy = nearest(name, self._ids) or remedy
        self._problem(self._lines[here], here, f"there is no preset {name!r}", remedy)
        return name

    def when_full(self, text: str, here: str, own: str | None = None) -> str:
        """Return `wait`, `refuse`, `substitute:ID` or `substitute:loaded`."""
        name = text.removeprefix(SUBSTITUTE)
        if name in (text, _LOADED):
            return text
        id = self.find(name, here)
        if id == own:
            remedy = f"name another preset, or {_LOADED} for any that is loaded"
            self._problem(self._lines[here], here, f"{name!r} is the preset itself", remedy)
        return SUBSTITUTE + id

    def alias(self, name: str, alias: Alias) -> Alias:
        """Return the alias with the ids of its presets."""
        here = f"aliases.{name}"
        if name in self._ids:
            message = f"{name!r} already names models.{self._ids[name]}"
            self._problem(self._lines[here], here, message, "a name can mean only one thing")
        if (alias.split is None) == (alias.first is None):
            remedy = "write {first: [a, b]} or {split: {a: 90, b: 10}}"
            self._problem(self._lines[here], here, "an alias needs either split or first", remedy)
        split = None
        if alias.split is not None:
            split = {self.find(each, f"{here}.split"): n for each, n in alias.split.items()}
        first = None
        if alias.first is not None:
            first = tuple(self.find(each, f"{here}.first") for each in alias.first)
            if not first:
                self._problem(self._lines[here], here, "it names no preset", "add one")
        return structs.replace(alias, split=split, first=first)

    def group(self, group: PresetGroup, here: str) -> PresetGroup:
        """Return the group with the ids of its presets, of which there must be two."""
        ids = tuple(self.find(name, here) for name in group.exclusive)
        line = self._lines[here]
        if len(ids) < 2:
            remedy = "add one, or remove the group"
            self._problem(line, here, "a group needs at least two presets", remedy)
        for place, id in enumerate(ids):
            if id in ids[:place]:
                message = f"{group.exclusive[place]!r} is the same preset as another name here"
                self._problem(line, here, message, "keep one of them")
        return structs.replace(group, exclusive=tuple(dict.fromkeys(ids)))

    def check_variants(self, presets: dict[str, dict[str, Any]]) -> None:
        """Report the variants of a preset that have the same name."""
        for id, own in presets.items():
            names = [variant.name for variant in own.get("variants", ())]
            twice = [name for place, name in enumerate(names) if name in names[:place]]
            for name in dict.fromkeys(twice):
                here = f"models.{id}.variants"
                message = f"two variants are called {name!r}"
                self._problem(self._lines[here], here, message, "give each its own name")


def bad_name(name: str) -> tuple[str, str] | None:
    """Return message and remedy if a preset or group cannot have this name."""
    if not name or name != name.strip() or len(name) > 255 or CONTROL.search(name):
        remedy = "use 1 to 255 characters, without line breaks, and without blanks around them"
        return "this is not a name", remedy
    if "," in name:
        return "a name cannot contain a comma: llama-server reads it as two names", "remove it"
    return None
