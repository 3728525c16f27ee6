"""The file of simulated models: what it means, and what is said of a wrong one."""

from __future__ import annotations

import pytest

from llamaswap_py.errors import ConfigError
from llamaswap_py.scheduler.types import PoolId
from llamaswap_py.simulator.models_file import parse_models
from llamaswap_py.units import GIB

TEXT = """
devices: {GPU0: 24GiB, GPU1: 12GiB}
margin: 512MiB
models:
  chat: {memory: 12GiB, load: 8s, slots: 2, pin: true, priority: 3}
  big: {memory: [22GiB, 12GiB], load: [12s, 7s], prefer: first}
"""


def test_each_size_is_a_variant_and_may_be_on_each_device() -> None:
    found = parse_models(TEXT)
    assert {name: one.total for name, one in found.pools.items()} == {
        "GPU0": 24 * GIB,
        "GPU1": 12 * GIB,
    }
    assert {one.margin for one in found.pools.values()} == {GIB // 2}
    (chat, served), (big, slow) = found.plans
    assert (chat.pin, chat.priority, chat.prefer_fit, served.slots) == (True, 3, True, 2)
    assert [(one.variant, dict(one.footprint or {})) for one in big.choices] == [
        ("", {PoolId("GPU0"): 22 * GIB}),
        ("", {PoolId("GPU1"): 22 * GIB}),
        ("1", {PoolId("GPU0"): 12 * GIB}),
        ("1", {PoolId("GPU1"): 12 * GIB}),
    ]
    assert not big.prefer_fit
    assert (slow.seconds, slow.slots, dict(slow.by_variant)) == (12.0, 4, {"": 12.0, "1": 7.0})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "docs/scheduling.md"),
        ("[1]", "Expected `object`"),
        ("devices: {GPU0: 1GiB}", "missing required field `models`"),
        ("{devices: {}, models: {}}", "needs devices and models"),
        ("{devices: {G: 1GiB}, models: {a: {memory: 1GiB, load: 1s, slotz: 2}}}", "'slots'"),
        ("{devices: {G: 1GiB}, models: {a: {memory: lots, load: 1s}}}", "models.a.memory"),
        ("{devices: {G: 1GiB}, models: {a: {memory: 1GiB, load: 0s}}}", "must be more than 0"),
        ("{devices: {G: 1GiB}, models: {a: {memory: 1GiB, load: 1s, slots: 0}}}", "1 or more"),
        ("{devices: {G: 1GiB}, models: {a: {memory: [], load: 1s}}}", "0 variants"),
        ("{devices: {G: 1GiB}, models: {a: {memory: [1GiB], load: [1s, 2s]}}}", "one for each"),
        ("{devices: {G: 1GiB}, margin: much, models: {a: {memory: 1GiB, load: 1s}}}", "margin"),
        ("{devices: {G: 1GiB", "models:1"),
    ],
)
def test_a_wrong_one_is_told(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_models(text)
    assert words in str(raised.value)
