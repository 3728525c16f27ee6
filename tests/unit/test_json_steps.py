"""JSON in steps means what it means at once, and no step is long: counted, not timed."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest

from llamaswap_py.api import json_steps
from llamaswap_py.api.json_steps import LIGHT, STEP, Steps, at_once, decoded, encoded, weight
from llamaswap_py.errors import ApiError
from llamaswap_py.units import MIB
from tests.unit.api_fakes import FakeExchange, FakeSupervisor, answer

pytestmark = pytest.mark.anyio
MARK = "mark-"
PLAIN = msgspec.json.Decoder()


class Spy:
    """A decoder that notes how many bytes it gets at once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def decode(self, text: bytes) -> Any:
        self.sizes.append(len(text))
        return PLAIN.decode(text)


def count(steps: Steps[Any]) -> tuple[int, Any]:
    """Return how many steps there are, and the result."""
    number = 0
    while True:
        number += 1
        try:
            next(steps)
        except StopIteration as end:
            return number, end.value


def some_json(chance: random.Random, depth: int) -> Any:
    kind = chance.random() if depth else 0
    if kind < 0.45:
        texts = ["", "a", 'q"\\,[{', "é😀" * chance.randint(0, 9), "x" * chance.randint(0, 60)]
        return chance.choice([1, -2.5, True, None, *texts, "\n\t" * chance.randint(0, 20)])
    members = [some_json(chance, depth - 1) for _ in range(chance.randint(0, 6))]
    if kind < 0.72:
        return members
    names = ["", "a", "b", "c", "é", '"k', "x" * chance.randint(0, 12)]
    return {chance.choice(names): one for one in members}


def spoiled(text: bytes, chance: random.Random) -> bytes:
    changed, at = bytearray(text), chance.randrange(len(text))
    how = chance.random()
    if how < 0.4:
        del changed[at]
    elif how < 0.7:
        changed.insert(at, chance.choice(b',]}[{:"\\01ud'))
    else:
        changed[at] = chance.choice(b',]}[{:"\\01ud\xc3')
    return bytes(changed)


def result(decode: Any) -> str | None:
    """Return what was decoded, with the order of members; None if it is not JSON."""
    try:
        return json.dumps(decode())
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def test_any_text_in_any_pieces_means_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    chance, refused, errors = random.Random(3), 0, 0
    for _ in range(2_000):
        monkeypatch.setattr(json_steps, "STEP", chance.choice([16, 17, 19, 23, 30, 60, 100]))
        value = some_json(chance, chance.randint(1, 5))
        indent = chance.choice([None, None, 1])
        said = json.dumps(value, ensure_ascii=chance.random() < 0.5, indent=indent)
        text = (said.replace('"b"', '"a"') if chance.random() < 0.5 else said).encode()
        if chance.random() < 0.3:
            text = spoiled(text, chance)
        expected = result(lambda text=text: PLAIN.decode(text))
        try:
            found = result(lambda text=text: at_once(decoded(text, PLAIN, MARK)))
        except ApiError:  # a name that is longer than a piece
            refused += 1
            continue
        assert found == expected, text
        errors += expected is None
    assert errors > 150
    assert refused < 200


def test_any_value_in_any_steps_is_encoded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(4)
    for _ in range(2_000):
        light = chance.choice([3, 5, 20])
        monkeypatch.setattr(json_steps, "LIGHT", light)
        monkeypatch.setattr(json_steps.weight, "__defaults__", (light,))
        monkeypatch.setattr(json_steps, "_SLICE", chance.choice([1, 3, 10]))
        value = some_json(chance, chance.randint(1, 5))
        assert at_once(encoded(value)) == msgspec.json.encode(value)


HEAD = b'{"model":"alpha","messages":['
LARGE = {
    "names": b'{"a":{' + b",".join(b'"key%d":1' % one for one in range(60_000)) + b"}}",
    "a name that comes twice": b'{"a":1,"b":[' + b"1," * 200_000 + b'1],"a":{"c":[1,2]}}',
    "long numbers": HEAD + b",".join([b"1" * 639] * 3_000) + b"]}",
    "empty objects": HEAD + b",".join([b"{}"] * 100_000) + b"]}",
    "a text of escapes": HEAD + b'"' + b"\\n" * MIB + b'"]}',
    "a text of pairs": HEAD + b'"x' + b"\\ud83d\\ude00" * 100_000 + b'",1]}',
    "a text of many bytes": HEAD + b'"x' + "😀".encode() * 300_000 + b'",1]}',
    "long texts": HEAD + b",".join([b'"' + b"\\t" * 100_000 + b'"'] * 5) + b"]}",
    "nested": b"[" * 300 + b'{"a":1},' * 50_000 + b"1" + b"]" * 300,
    "messages": HEAD + b",".join([b'{"role":"user","content":"xyz"}'] * 20_000) + b"]}",
    "indented": json.dumps({"a": [{"b": [one]} for one in range(30_000)]}, indent=4).encode(),
}


@pytest.mark.parametrize("name", LARGE)
def test_no_step_gets_more_than_a_piece(name: str) -> None:
    text, spy = LARGE[name], Spy()
    assert len(text) > 2 * STEP
    number, value = count(decoded(text, spy, MARK))  # type: ignore[arg-type]
    assert json.dumps(value) == json.dumps(PLAIN.decode(text))
    assert number >= len(text) // STEP
    assert max(spy.sizes) < STEP + 20_000  # with the brackets that are open
    number, written = count(encoded(value))
    assert written == msgspec.json.encode(value)
    assert number >= len(written) // (LIGHT * 64)


def test_what_is_expensive_is_heavy() -> None:
    for one in ([1] * LIGHT, "x" * 64 * LIGHT, {"x" * 64 * LIGHT: 1}, [10**600] * 200):
        assert weight(one) == LIGHT
    assert weight([{"role": "user", "content": "x" * 640}]) == 14


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (HEAD + b" " * 3 * MIB + b"]}", "without a comma"),
        (HEAD + b"1" * 3 * MIB + b"]}", "without a comma"),
        (HEAD + b'{"' + b"\\n" * MIB + b'":1}]}', "name of a member"),
    ],
    ids=["blanks", "number", "name"],
)
async def test_what_cannot_be_divided_is_refused(text: bytes, what: str) -> None:
    exchange = FakeExchange("POST", "/api/chat", text)
    exchange.head.content_length = None
    await answer(exchange, FakeSupervisor())
    assert exchange.status == 413
    assert what in exchange.error


@pytest.mark.parametrize("at", [10, STEP, 300_000, 399_000])
@pytest.mark.parametrize("wrong", [b"tru", b'"\\x"', b"}"])
def test_a_mistake_is_told_by_its_place_in_the_whole_text(at: int, wrong: bytes) -> None:
    members = [b"12345"] * 70_000
    members[at // 6] = wrong
    text = b'{"a":[' + b",".join(members) + b"]}"
    with pytest.raises(msgspec.DecodeError) as plain:
        PLAIN.decode(text)
    with pytest.raises(msgspec.DecodeError) as found:
        at_once(decoded(text, PLAIN, MARK))
    assert str(found.value) == str(plain.value)
