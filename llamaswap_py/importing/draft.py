"""A draft, the result of an import: settings, presets, and notes on the rest. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from llamaswap_py.importing.notes import ImportNote, merged
from llamaswap_py.llamacpp.options import OptionTable, long_name, table_of
from llamaswap_py.llamacpp.path_options import PATH_LISTS, PATH_OPTIONS

_WIDTH: Final = 1_000
_TOP: Final = ("policy", "log", "memory", "defaults", "aliases", "groups")


@dataclass(slots=True)
class Draft:
    """An unfinished configuration: plain values, as the YAML file will have them."""

    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[ImportNote] = field(default_factory=list)
    failing: dict[str, None] = field(default_factory=dict)
    """Models that cannot run as written; each has a note (an ordered set)."""
    margins: dict[str, str] = field(default_factory=dict)
    """Memory that stays free on each device (`--fit-target`), by place, as the source has it."""
    table_for: Callable[[str], OptionTable] = lambda _: table_of(None)
    """The options of a llama-server by its path, "" for the one in use."""

    def lines(self) -> list[str]:
        """Return the notes of what was not carried over, a line for each kind."""
        return merged(self.notes, self.models)

    def note(self, place: str, text: str, detail: str = "") -> None:
        """Note something that was not carried over."""
        self.notes.append(ImportNote(place, text, detail))

    def model_named(self, name: str) -> str | None:
        """Return the model with the name or alias `name`; None if there is none."""
        if name in self.models:
            return name
        for model, preset in self.models.items():
            per_name = preset.get("request", {}).get("per_name", {})
            if name in preset.get("aliases", ()) or name in per_name:
                return model
        return None

    def setting(self, section: str, name: str, value: Any) -> None:
        """Set `section.name` of the file."""
        self.settings.setdefault(section, {})[name] = value


def render(draft: Draft, source: str) -> str:
    """Return the YAML text of a draft, with its notes as comments on top.

    `source` says where it came from: `llama-swap's config.yaml`.
    """
    lines = [f"# From {source}, by `lswap import`."]
    if draft.notes:
        lines += ["#", "# What could not be carried over, or differs:"]
        lines += [f"# * {line}" for line in draft.lines()]
    lines.append("")
    for section in (*_TOP, *(name for name in draft.settings if name not in _TOP)):
        if section in draft.settings:
            lines += [_dump({section: draft.settings[section]}), ""]
    if not draft.models:
        lines += [] if "model_dirs" in draft.settings else ["models: {}"]
        return "\n".join(lines).rstrip("\n") + "\n"
    lines.append("models:")
    for name, preset in draft.models.items():
        lines += ["  " + line for line in _dump({name: preset}).splitlines()]
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def note_relative(draft: Draft) -> None:
    """Say that relative paths now start at another folder."""
    if any(_is_relative(preset) for preset in draft.models.values()):
        text = "relative paths start at the new file's folder, not where the command was run"
        draft.note("paths", text)


def _is_relative(preset: dict[str, Any]) -> bool:
    program = str(preset.get("cmd", [""])[0])
    paths = [preset.get("model", ""), preset.get("engine", ""), program if "/" in program else ""]
    for name, value in preset.get("args", {}).items():
        if long_name(name) in PATH_OPTIONS | PATH_LISTS and not isinstance(value, bool):
            paths += value if isinstance(value, list) else [value]
    return any(path and not str(path).startswith(("/", "~", "$")) for path in paths)


class _Dumper(yaml.SafeDumper):
    """Block style, with lists of words on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _mapping(dumper: yaml.SafeDumper, data: dict[str, Any]) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=not data)


def _sequence(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    flat = all(_is_scalar(value) for value in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)


def _text(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    """Return a text unchanged, with anything that looks like a variable of lswap escaped."""
    return dumper.represent_str(data.replace("${", "$${"))


_Dumper.add_representer(str, _text)
_Dumper.add_representer(dict, _mapping)
_Dumper.add_representer(list, _sequence)


def _dump(value: dict[str, Any]) -> str:
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=_WIDTH, allow_unicode=True)
    return str(text).rstrip("\n")


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, dict | list)
