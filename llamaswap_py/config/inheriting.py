"""Completes a preset: adds `defaults` and top-level keys, and expands `keep: always`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from llamaswap_py.config.forms import SUBSTITUTE
from llamaswap_py.config.json_schema import keys_of
from llamaswap_py.config.model_forms import as_program
from llamaswap_py.config.records import Defaults, Policy, Preset, Record

ALWAYS: Final[dict[str, Any]] = {"preload": True, "pin": True, "ttl": None}
"""What `keep: always` stands for."""


def inherited_of(values: dict[str, Any]) -> dict[str, Any]:
    """Return what a preset says that says nothing: the defaults, with the top level's keys."""
    defaults: Defaults = values.get("defaults", Defaults())
    policy: Policy = values.get("policy", Policy())
    found = {name: getattr(defaults, name) for name in keys_of(Defaults)}
    found["env"] = values.get("env", {}) | defaults.env
    found["engine"] = defaults.engine or values.get("engine", "auto")
    found["when_full"] = defaults.when_full or policy.when_full
    return found


def preset_from(id: str, own: dict[str, Any], inherited: dict[str, Any]) -> Preset:
    """Return a preset that needs nothing else: the defaults, the engine and env are in it."""
    values = inherited | own
    args = own.get("args", {})
    # What the preset says comes last: of two names that turn out to be one option the last wins.
    kept = {name: value for name, value in inherited["args"].items() if name not in args}
    values["args"] = kept | args
    values["env"] = inherited["env"] | own.get("env", {})
    if values["when_full"] == f"{SUBSTITUTE}{id}":
        values["when_full"] = "wait"  # inherited: nothing can stand in for itself
    if values["keep"] == "always":
        values |= {name: value for name, value in ALWAYS.items() if name not in own}
    if own.get("cmd") is not None:
        values = as_program(values)
    return Preset(id=id, **values)


def against_keep(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys that say otherwise than the `keep: always` beside them."""
    if values.get("keep") == "always":
        for name, value in ALWAYS.items():
            if name in values and values[name] != value:
                yield name


def said_of(record: Record | None, lines: Mapping[str, int], place: str) -> dict[str, Any]:
    """Return the keys of a record that the file sets itself."""
    names = [] if record is None else keys_of(type(record))
    return {name: getattr(record, name) for name in names if f"{place}.{name}" in lines}
