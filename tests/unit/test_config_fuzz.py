"""Whatever the file says, the answer is a Config or a ConfigError."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaswap_py.config import yaml_tree
from llamaswap_py.config.argv import build_args, check_preset
from llamaswap_py.config.json_schema import keys_of
from llamaswap_py.config.parse import load_config
from llamaswap_py.config.preset import Variant, variant_presets
from llamaswap_py.config.sections import Config, Preset, PresetGroup, Record, groups_of
from llamaswap_py.config.warnings import warnings
from llamaswap_py.errors import ConfigError
from llamaswap_py.llamacpp.context_size import context_per_request

SAMPLE = """
listen: 127.0.0.1:8080
memory: {margin: 1GiB, devices: {CUDA0: 24GiB}}
defaults: &d {args: {c: 1, lora: [a, b]}, ttl: 30m}
models:
  a: {model: ~/a.gguf, aliases: [x], extra: [-c, 3]}
  b: {<<: *d, model: b, device: host, when_full: {substitute: x}, variants: [{name: v}]}
groups: {g: {exclusive: [x, b]}}
"""


def survives(text: str) -> None:
    try:
        config = load_config(text, path=None, base_dir="/etc", env={}, home="/home/me")
    except ConfigError:
        return
    assert all(isinstance(line, str) for line in warnings(config))
    for preset in config.models.values():
        assert check_preset(preset, config, {}) is not None
        for way in variant_presets(preset):
            assert all(isinstance(word, str) for word in build_args(way, config, None))
            context_per_request(way)
        assert set(groups_of(config, preset.id)) <= config.groups.keys()


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text(text: str) -> None:
    survives(text)


@given(
    st.integers(0, len(SAMPLE)),
    st.integers(0, 12),
    st.text(alphabet="\n\t {}[]:,-&*!|>'\"%@~a0", max_size=4),
)
@settings(max_examples=200, deadline=None)
def test_any_slip_of_the_hand(at: int, removed: int, added: str) -> None:
    survives(SAMPLE[:at] + added + SAMPLE[at + removed :])


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["auto", "1GiB", "30s", "never", "host", "unix:x", ":1", "~", "a", "b", "no"])
)


def names(record: type[Record]) -> st.SearchStrategy[str]:
    return st.sampled_from([*keys_of(record), "ctx-size", "c", "CUDA0"]) | st.text(max_size=4)


VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.one_of(names(Config), names(Variant), names(PresetGroup))
            | st.sampled_from(["c", "host", "build", "substitute"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
PRESETS = st.dictionaries(names(Preset), VALUES, max_size=4).map(lambda p: {"model": "x", **p})
FILES = st.fixed_dictionaries(
    {"models": VALUES | st.dictionaries(st.sampled_from("ab"), PRESETS | VALUES, max_size=2)},
    optional={name: VALUES for name in keys_of(Config) if name != "models"},
)


@given(FILES | VALUES)
@settings(max_examples=200, deadline=None)
def test_any_values(value: Any) -> None:
    survives(yaml.safe_dump(value, allow_unicode=True))


@given(VALUES)
@settings(max_examples=100, deadline=None)
def test_both_parsers_give_the_same_tree(value: Any) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    with pytest.MonkeyPatch.context() as patch:
        found = [outcome(text)]
        patch.setattr(yaml_tree, "_libyaml", None)
        found.append(outcome(text))
    assert found[0] == found[1]


def outcome(text: str) -> object:
    try:
        return yaml_tree.read_yaml(text, "c.yaml")
    except ConfigError as error:
        return str(error)
