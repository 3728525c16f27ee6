"""A short run of `python -m bench.fuzz`; a long one is a command away."""

from __future__ import annotations

import random

import pytest

from bench.fuzz import HTTP, TARGETS, Target, broken, fuzz

INPUTS = {"config": 150}


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found(name: str) -> None:
    findings = fuzz(TARGETS[name], INPUTS.get(name, 2000), seed=7)
    assert findings.found == []
    assert findings.accepted
    assert findings.refused or not TARGETS[name].refusals


def test_what_is_wrong_is_found() -> None:
    """The fuzzer is worth as much as this: a reader that fails is noticed."""

    def fail(data: bytes, dice: random.Random) -> None:
        if b"\0" in data:
            raise KeyError("some bug")

    target = Target("some", HTTP.seeds, HTTP.words, fail, ())
    findings = fuzz(target, 500, seed=1)
    assert findings.found
    assert all(what == "KeyError: 'some bug'" and b"\0" in data for what, data in findings.found)


def test_the_same_seed_makes_the_same_inputs() -> None:
    first, second = ([broken(HTTP, random.Random(3)) for _ in range(5)] for _ in range(2))
    assert first == second
