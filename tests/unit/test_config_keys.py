"""Every key that is accepted does something, and its examples are good."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
import yaml
from msgspec import structs

from llamaswap_py.config.json_schema import Key, keys_of, spelled_default
from llamaswap_py.config.parse import load_config
from llamaswap_py.config.preset import variant_presets
from llamaswap_py.config.sections import Config, Record

Place = tuple[str, ...]


def leaves(record: type[Record], place: Place = ()) -> Iterator[tuple[Place, Key]]:
    for name, key in keys_of(record).items():
        if key.record is not None and key.many:
            inside = {"models": "a", "groups": "g", "aliases": "both", "variants": "0"}[name]
            yield from leaves(key.record, (*place, name, inside))
        elif key.record is not None:
            yield from leaves(key.record, (*place, name))
        else:
            yield (*place, name), key


LEAVES = list(leaves(Config))


def document(place: Place, value: Any) -> dict[str, Any]:
    root: dict[str, Any] = {"models": {"a": {"model": "x.gguf"}, "b": {"model": "y.gguf"}}}
    *parents, last = place
    if last in ("hf", "cmd"):
        root["models"]["a"] = {}
    elif last in ("ready", "stop_cmd", "served_by"):
        root["models"]["a"] = {"cmd": ["x", "{port}"]}
    elif place[:2] == ("groups", "g"):
        root["groups"] = {"g": {"exclusive": ["a", "b"]}}
    here = root
    for name in parents:
        if name == "0":
            here = here["variants"][0]
        elif name == "variants":
            here["variants"] = [{"name": "plain"}]
        else:
            here = here.setdefault(name, {})
    here[last] = value
    return root


def load(place: Place, value: Any) -> Config:
    text = yaml.safe_dump(document(place, value))
    config = load_config(text, path=None, base_dir="/etc", env={}, home="/home/me")
    return structs.replace(config, lines={})


NAMES_OF_PRESETS: dict[Place, Any] = {
    ("default_model",): "b",
    ("groups", "g", "exclusive"): ["b", "a"],
    ("aliases", "both", "first"): ["a", "b"],
    ("aliases", "both", "split"): {"a": 90, "b": 10},
}


def unchanged(place: Place) -> Config:
    """Return a file without the key at `place`, which has all around it that the key needs."""
    if "variants" in place:
        return load(("models", "a", "variants", "0", "name"), "plain")
    if place[-1] in ("ready", "stop_cmd", "served_by"):
        return load(("models", "a", "cmd"), ["x", "{port}"])
    if place[0] == "groups":
        return load(("groups", "g", "exclusive"), ["a", "b"])
    return load(("models", "b", "pin"), False)


def other_value(place: Place, key: Key) -> Any:
    """Return a value that is not the default: an example, or another of the allowed words."""
    if place in NAMES_OF_PRESETS:
        return NAMES_OF_PRESETS[place]
    default = None if key.required else spelled_default(key)
    words = key.form.schema.get("enum", [])
    return next(value for value in (*key.examples, *words) if value != default)


@pytest.mark.parametrize(("place", "key"), LEAVES, ids=[".".join(place) for place, _ in LEAVES])
def test_every_key_has_an_effect(place: Place, key: Key) -> None:
    plain = unchanged(place)
    changed = load(place, other_value(place, key))
    assert changed != plain
    if "variants" in place:
        assert variant_presets(changed.models["a"]) != variant_presets(plain.models["a"])
    if place[0] in ("defaults", "models", "engine", "env"):
        # What a preset is loaded with is what the preset says, nothing has to look elsewhere.
        assert changed.models != plain.models
    if place[0] == "models":
        assert changed.models["b"] == plain.models["b"]


@pytest.mark.parametrize(("place", "key"), LEAVES, ids=[".".join(place) for place, _ in LEAVES])
def test_examples_and_spelled_defaults_are_read(place: Place, key: Key) -> None:
    for example in key.examples if place not in NAMES_OF_PRESETS else ():
        load(place, example)
    if not key.required and place[-1] not in (
        "engine",
        "default_model",
        "split",
        "first",
        "hf",
        "cmd",
    ):
        default = load(place, spelled_default(key))
        assert default == unchanged(place)


def test_every_key_says_what_it_is() -> None:
    for place, key in LEAVES:
        assert key.description.endswith("."), place
        assert len(key.description) > 15, place


def test_preset_and_defaults_share_their_keys() -> None:
    defaults = {place[1:] for place, _ in LEAVES if place[0] == "defaults"}
    presets = {place[2:3] for place, _ in LEAVES if place[0] == "models"}
    own = ("model", "hf", "cmd", "ready", "stop_cmd", "served_by", "aliases", "variants")
    assert presets - defaults == {(name,) for name in own}
    assert not defaults - presets


def test_words_of_the_records_are_the_words_of_the_forms() -> None:
    """A word added to a field's type is accepted without a second change."""
    for record in {type(key.default) for _, key in LEAVES if isinstance(key.default, Record)}:
        for field in structs.fields(record):
            assert get_args(field.type)
