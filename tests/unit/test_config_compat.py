"""`compat: 0.1`: the defaults of an earlier release, for every key that the file does not set."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamaswap_py.config.compat import OLD_DEFAULTS, PROGRAMS, with_old_defaults
from llamaswap_py.config.json_schema import json_schema, keys_of
from llamaswap_py.config.parse import load_config
from llamaswap_py.config.sections import Config, Preset
from llamaswap_py.config.yaml_tree import plain_value, read_yaml
from llamaswap_py.errors import ConfigError
from tests.releases import RELEASES, unpack_release

TABLE: dict[str, dict[tuple[str, ...], Any]] = {
    "0.1": {("memory", "margin"): "3GiB", ("defaults", "pin"): True, ("cors", "origins"): ["*"]}
}
MODELS = "models: {a: {model: a.gguf}, p: {cmd: [x, '{port}']}}\n"
HARMLESS = {
    *("defaults.keep", "models.*.keep"),  # auto is ttl, pin and preload, as before
    *("defaults.tasks_max", "models.*.tasks_max"),  # no limit
    *("defaults.memory_max", "models.*.memory_max"),
    *("defaults.unlisted", "models.*.unlisted"),  # the models are listed
    "models.*.stop_cmd",  # a signal stops the program
    "groups.*.persistent",  # any model evicts one of the group
    "limits.connections",  # as many as lswap may open files for
}
"""Keys that came later, and whose default leaves things as they were."""
CHANGELOG = Path(__file__).resolve().parents[2] / "CHANGELOG.md"


def tree(text: str) -> Any:
    root = read_yaml(text, "config")
    assert root is not None
    return plain_value(with_old_defaults(root, TABLE))  # type: ignore[arg-type]


def load(text: str) -> Config:
    return load_config(text, path=None, base_dir="/etc", env={}, home="/home/me")


def test_what_the_file_does_not_set_is_as_it_was() -> None:
    read = tree("compat: 0.1\nmemory: {settle: 1s}\ndefaults:\n")
    assert read["memory"] == {"settle": "1s", "margin": "3GiB"}
    assert read["defaults"] == {"pin": True}
    assert read["cors"] == {"origins": ["*"]}


@pytest.mark.parametrize("written", ['"0.1"', "0.1"])
def test_what_the_file_sets_is_left_alone(written: str) -> None:
    read = tree(f"compat: {written}\nmemory: {{margin: 1GiB}}\ndefaults: {{pin: false}}\n")
    assert read["memory"] == {"margin": "1GiB"}
    assert read["defaults"] == {"pin": False}


@pytest.mark.parametrize("text", ["memory: {settle: 1s}\n", "compat: 9.9\n", "compat: [1]\n"])
def test_without_a_known_release_nothing_is_written(text: str) -> None:
    assert tree(text) == plain_value(read_yaml(text, "config"))  # type: ignore[arg-type]


def test_a_section_of_the_wrong_kind_is_still_reported() -> None:
    with pytest.raises(ConfigError, match="memory"):
        load(f"compat: 0.1\nmemory: 3GiB\n{MODELS}")


def test_an_unknown_release_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"config:1: compat: .*\n?.*0\.1"):
        load(f"compat: 7\n{MODELS}")


def test_null_is_the_defaults_of_this_release() -> None:
    assert load(f"compat: null\n{MODELS}").compat is None


@pytest.mark.parametrize("version", OLD_DEFAULTS)
def test_every_old_default_is_a_key_and_differs_from_todays(version: str) -> None:
    today, then = load(MODELS), load(f"compat: {version}\n{MODELS}")
    assert then.compat == version
    for place in OLD_DEFAULTS[version]:
        record: Any = Config
        old: Any = then
        new: Any = today
        if place[0] == PROGRAMS:
            record, old, new = Preset, then.models["p"], today.models["p"]
            place = place[1:]  # noqa: PLW2901
            assert getattr(then.models["a"], place[0]) == getattr(today.models["a"], place[0])
        for name in place:
            if isinstance(old, Mapping):  # an option of llama-server
                old, new = old.get(name), new.get(name)
                continue
            key = keys_of(record)[name]
            record, old, new = key.record, getattr(old, name), getattr(new, name)
        assert old != new, place


@pytest.mark.parametrize("version", OLD_DEFAULTS)
def test_the_changelog_names_each_old_default_and_the_key_which_restores_it(version: str) -> None:
    """Those that changed with the next release, and those that changed later."""
    named: dict[tuple[str, ...], Any] = {}
    for since in list(OLD_DEFAULTS)[list(OLD_DEFAULTS).index(version) :]:
        for place, value in in_the_changelog(since).items():
            named.setdefault(place, value)
    assert named == OLD_DEFAULTS[version]


def in_the_changelog(version: str) -> dict[tuple[str, ...], Any]:
    """Return the defaults of a release that the next one changed, by their places."""
    table = CHANGELOG.read_text().partition(f"\n| what | {version} | ")[2].partition("\n\n")[0]
    rows = re.findall(r"^\|.*\| `([\w.-]+: .+)`(| in its entry) \|$", table, re.MULTILINE)
    assert len(rows) == len(table.splitlines()) - 2 > 0  # all but the table's head
    named = {}
    for key, of_program in rows:
        ((place, value),) = yaml.safe_load(key).items()
        named[(PROGRAMS, place) if of_program else tuple(place.split("."))] = value
    return named


@pytest.mark.parametrize("release", RELEASES)
def test_compat_restores_each_default_that_a_release_had_otherwise(
    release: str, tmp_path: Path
) -> None:
    """The release itself says what its defaults were."""
    command = [sys.executable, "-m", "llamaswap_py", "schema"]
    env = {**os.environ, "PYTHONPATH": str(unpack_release(release, tmp_path))}
    said = subprocess.run(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, check=True)
    old, new = defaults_of(json.loads(said.stdout)), defaults_of(json_schema())
    assert old.keys() <= new.keys(), "a key that has a default is still one"
    changed = {place for place, value in new.items() if old.get(place) != value} - HARMLESS
    restored = OLD_DEFAULTS[release.rpartition(".")[0]]
    for place in restored:
        names = ("models", "*", *place[1:]) if place[0] == PROGRAMS else place
        changed.discard(".".join(names))
        if names[0] == "defaults":  # which a preset takes where it says nothing
            changed.discard(".".join(("models", "*", *names[1:])))
    assert changed == set()


def defaults_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the defaults in a JSON Schema, by the places of their keys."""
    found: dict[str, Any] = {}

    def walk(part: dict[str, Any], place: tuple[str, ...]) -> None:
        if "$ref" in part:
            part = {**schema["$defs"][part["$ref"].rpartition("/")[2]], **part}
        if "default" in part:
            found[".".join(place)] = part["default"]
        for name, inner in part.get("properties", {}).items():
            walk(inner, (*place, name))
        if isinstance(inner := part.get("additionalProperties"), dict):
            walk(inner, (*place, "*"))
        for one in part.get("anyOf", ()):
            walk(one, place)

    walk(schema, ())
    return found
