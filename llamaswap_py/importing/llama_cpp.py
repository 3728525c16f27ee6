"""Turns llama.cpp's preset files (--models-preset, common/preset.cpp) into a draft. Pure.

If there is an engine, its own options tell which keys are switches, and what their words mean.
Without an engine, a list of common switches does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from llamaswap_py.errors import ConfigError
from llamaswap_py.importing.command import OF_FIT, read_command
from llamaswap_py.importing.draft import Draft
from llamaswap_py.llamacpp.env_variables import OPTION_PREFIX, option_of
from llamaswap_py.llamacpp.options import (
    ONLY_NEGATED,
    SWITCHES,
    Option,
    OptionTable,
    is_negation,
    long_name,
    plain_name,
    table_of,
)
from llamaswap_py.llamacpp.router_mode import OF_ROUTER, PRESET_ONLY

_HEADER: Final = re.compile(r"\[[ \t]*([^\]]+?)[ \t]*\][ \t]*(?:[;#].*)?")
_ENTRY: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*(.*?)[ \t]*")
_COMMENT: Final = re.compile(r"[ \t]*[;#].*")  # wherever it stands, also in a value
_HUB: Final = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")
_TAG: Final = re.compile(r"[-.]([A-Za-z0-9_]+)$")
_TRUE: Final = frozenset({"on", "enabled", "true", "1"})
_FALSE: Final = frozenset({"off", "disabled", "false", "0"})
_SECONDS: Final = re.compile(r"[ \t]*\+?([0-9]+)")


def read_ini(
    text: str,
    source: str,
    options: Mapping[str, Option] | None = None,
    *,
    model_dirs: Iterable[str] = (),
) -> Draft:
    """Return the draft of an INI file; `source` names it in errors.

    `options` are those of the engine in use, `model_dirs` the folders that the router was given
    with --models-dir. Raises ConfigError naming the line.
    """
    draft = Draft()
    if folders := list(model_dirs):
        draft.settings["model_dirs"] = folders
    reader = _Reader(draft, table_of(options))
    sections = _sections(text, source, draft)
    reader.take_defaults(sections.pop("*", {}))
    for section, entries in sections.items():
        if section not in ("", "default") or reader.names_file(entries):
            reader.take_preset(section or "default", entries)
        elif entries.keys() - OF_ROUTER:
            given = ", ".join(entries.keys() - OF_ROUTER)
            draft.note("[default]", f"names no model file, and is left out: {given}")
    if reader.unnamed and not folders:
        names = ", ".join(reader.unnamed)
        draft.note(
            "model_dirs",
            f"{names}: no model file is named. If the router had --models-dir DIR, import with"
            " --models-dir DIR; else add `model:`",
        )
    return draft


class _Reader:
    """Turns sections into presets, by the rules of one engine."""

    def __init__(self, draft: Draft, table: OptionTable) -> None:
        self.draft = draft
        self.table = table
        self.unnamed: list[str] = []
        """Sections that do not name a file."""
        self._inherited: dict[str, Any] = {}
        self._fit: dict[str, str] = {}
        """What all sections inherit of the options that make the key `fit`."""

    def names_file(self, entries: Iterable[str]) -> bool:
        """Return whether a section names the file that it runs."""
        names = (self._name(key) for key in entries)
        return any(long_name(name) in ("model", "hf-repo") for name in names)

    def take_defaults(self, entries: Mapping[str, str]) -> None:
        """Read the section that all others inherit from."""
        named = ((long_name(self._name(key)), value) for key, value in entries.items())
        self._fit = {name: value for name, value in named if name in OF_FIT}
        if preset := self._preset("[*]", entries):
            for key in ("model", "hf", "aliases"):
                if (said := preset.pop(key, None)) is not None:
                    self.draft.note("[*]", f"{key} {said}: it is of one model, not of all")
        if preset:
            self.draft.settings["defaults"] = self._inherited = preset

    def take_preset(self, name: str, entries: Mapping[str, str]) -> None:
        """Read the section of one model."""
        if not self.names_file(entries):
            if _HUB.fullmatch(name) and "model_dirs" not in self.draft.settings:
                entries = {"hf-repo": name, **entries}
            else:
                self.unnamed.append(name)
        own = {key: long_name(self._name(key)) for key in entries}
        if not set(OF_FIT).isdisjoint(own.values()):  # they make one key, which is inherited whole
            rest = {key: said for key, said in self._fit.items() if key not in own.values()}
            entries = {**rest, **entries}
        preset = self._preset(f"[{name}]", entries)
        preset["aliases"] = [each for each in preset.get("aliases", []) if each != name]
        if not preset["aliases"]:
            del preset["aliases"]
        if not preset.get("preload", True) and not self._inherited.get("preload"):
            del preset["preload"]
        self.draft.models[name] = preset

    def _preset(self, place: str, entries: Mapping[str, str]) -> dict[str, Any]:
        words = ["llama-server"]
        keys: dict[str, Any] = {}
        off: list[str] = []
        for key, value in sorted(entries.items()):  # of two names of one option the last counts
            name = self._name(key)
            if name in OF_ROUTER:
                continue
            if name == "load-on-startup":
                keys["preload"] = value in _TRUE
            elif name == "stop-timeout":
                if seconds := _SECONDS.match(value):
                    keys["stop_timeout"] = f"{seconds[1]}s"
                else:
                    self.draft.note(place, f"{key} = {value}: no number of seconds, left out")
            elif (switch := self._switch(name, value)) is None:
                words.append(f"--{name}={value}")
            elif switch:
                words.append(f"--{name}")
            else:
                off.append(name)
        quiet = Draft()
        preset = read_command(words, {}, quiet, place)
        self.draft.notes += [each for each in quiet.notes if "names no model" not in each.text]
        self.draft.margins |= quiet.margins
        for name in off:
            if self.table.owned_word(f"--{name}") is None:
                preset.setdefault("args", {})[name] = False
        return preset | keys

    def _name(self, key: str) -> str:
        """Return the option that a key means, without dashes; keys may be variables."""
        if key in PRESET_ONLY:
            return PRESET_ONLY[key]
        if key.startswith(OPTION_PREFIX) or self.table.find_env(key) is not None:
            name, _ = option_of(key, self.table)
            return name
        name = plain_name(key)
        option = self.table.find(name)
        if option is None:
            return name if self.table.is_known else long_name(name)
        spellings = (*option.names, *option.negated)
        return name if f"--{name}" in spellings else _long(option, name)

    def _switch(self, name: str, value: str) -> bool | None:
        """Return whether a switch is given, None where the option takes a value.

        The rules are those of common/preset.cpp: a negated name means the opposite. For an option
        that is not a switch with two forms, every word except those for `off` means on.
        """
        option = self.table.find(name)
        if option is None and self.table.is_known:
            found = self.table.usable(name)
            option = found[0] if found is not None else None
        if option is not None:
            if option.values:
                return None
            return value in _TRUE if is_negation(option, name) else value not in _FALSE
        bare = name.removeprefix("no-")
        if value.lower() not in _TRUE | _FALSE or bare not in SWITCHES:
            return None
        if bare in ONLY_NEGATED and bare == name:
            return None
        return value.lower() in _TRUE


def _long(option: Option, name: str) -> str:
    negated = is_negation(option, name)
    return plain_name(option.negated[-1] if negated else option.name)


def _sections(text: str, source: str, draft: Draft) -> dict[str, dict[str, str]]:
    """Return the entries of each section; of two with one name the last counts, as there."""
    found: dict[str, dict[str, str]] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped[0] in ";#":
            continue
        if match := _HEADER.fullmatch(stripped):
            section = _canonical(match[1])
            if found.get(section):
                draft.note(f"[{section}]", "stands twice: the last one counts, as in llama.cpp")
            found[section] = {}
        elif match := _ENTRY.fullmatch(_COMMENT.sub("", stripped)):
            found.setdefault(section, {})[match[1]] = match[2]
        else:
            where = f"{source}:{number}"
            raise ConfigError("not a line of a preset file", where=where, remedy="[NAME] or a = b")
    return found


def _canonical(section: str) -> str:
    """Return a section's name with its tag as llama.cpp calls it: `q4_k_m` is `Q4_K_M`."""
    name, colon, tag = section.rpartition(":")
    if not colon:
        return section
    match = _TAG.search(tag)
    return f"{name}:{(match[1] if match else tag).upper()}"
