"""Places in a JSON text: which brackets are open, and what leads from one place to another."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llamaswap_py.api.large_body import Place, last_place, leads, place_after, stand_in

IN_LIST = Place(b"{[", b",")
IN_MESSAGE = Place(b"{[{", b":")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", 0),
        (b"12", 0),
        (b'{"a": [1, 2', 9),
        (b'{"a": [1, 2]}', 9),
        (b'["a,b", ', 7),
        (b'["a", "b"', 5),  # not within a string, not behind one
        (b'["a", "b,"]', 5),
        (rb'["a", ",\"b\\\"[\\"', 5),
        (rb'["a", ",\\"', 5),
        (b'["a" "b"', 0),  # no JSON
        (b'"', 0),
    ],
)
def test_the_last_place_of_a_text(text: bytes, expected: int) -> None:
    assert last_place(text) == expected


@pytest.mark.parametrize(
    ("text", "before", "expected"),
    [
        (b'{"a": [', Place(b"", b""), Place(b"{[", b"[")),
        (b'{"]": "}[", "b\\"]": {"c":', Place(b"", b""), Place(b"{{", b":")),
        (b'1, {}, [[], {"a": 1}],', IN_LIST, IN_LIST),
        (b'"x"}, {"a": [{"b":', IN_MESSAGE, Place(b"{[{[{", b":")),
        (b'"x"}], "model":', IN_MESSAGE, Place(b"{", b":")),
        (b"1]}]},", IN_LIST, None),
        (b"1}, 2,", IN_LIST, None),
        (b"{], 2,", IN_LIST, None),
        (b'"a,', IN_LIST, None),
        (b"[" * 100 + b"1,", IN_LIST, None),
        ((b"[" * 50 + b"]" * 50 + b",") * 3, IN_LIST, None),
    ],
)
def test_the_place_after_a_text(text: bytes, before: Place, expected: Place | None) -> None:
    assert place_after(text, before) == expected


@pytest.mark.parametrize(
    ("text", "before", "after", "expected"),
    [
        (b'1, "a", {"b": []},', IN_LIST, IN_LIST, True),
        (b'"x"}, {"role":', IN_MESSAGE, IN_MESSAGE, True),
        (b'"x"}, {"role":', IN_MESSAGE, IN_LIST, False),
        (b'"x"}], "m": [{"a":', IN_MESSAGE, IN_MESSAGE, False),  # another member's value
        (b'1, "model":', Place(b"{", b":"), Place(b"{", b":"), False),  # the top level itself
        (b"1, 2, ]", IN_LIST, Place(b"{", b"]"), False),
        (b"01,", IN_LIST, IN_LIST, False),
        (b"'a',", IN_LIST, IN_LIST, False),
        (b'"a": 1,', IN_LIST, IN_LIST, False),
        (b"1, 2,", IN_MESSAGE, Place(b"{[{", b","), False),
        (b"[" * 10_000 + b"]" * 10_000 + b",", IN_LIST, IN_LIST, False),
    ],
)
def test_a_text_leads_from_place_to_place_or_it_is_not_json(
    text: bytes, before: Place, after: Place, expected: bool
) -> None:
    assert leads(text, before, after) is expected


VALUES = st.recursive(
    st.just(0) | st.text(st.sampled_from('a"\\[]{},:'), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("a]", max_size=2), inner),
    max_leaves=20,
)


def places_of(text: bytes) -> list[tuple[int, Place]]:
    """Return every place of a JSON text, found token by token."""
    found: list[tuple[int, Place]] = []
    opened, at = b"", 0
    while at < len(text):
        token = text[at : at + 1]
        if token == b'"':
            decoded = json.JSONDecoder().raw_decode(text[at:].decode())
            at += decoded[1]
            continue
        at += 1
        if token in (b"[", b"{"):
            opened += token
        elif token in (b"]", b"}"):
            opened = opened[:-1]
        if token in (b"[", b"{", b",", b":"):
            found.append((at, Place(opened, token)))
    return found


@given(VALUES, st.integers(0), st.integers(0))
def test_a_stand_in_leads_where_the_text_leads(value: object, first: int, second: int) -> None:
    text = json.dumps({"m": value, "model": "a"}).encode()
    places = places_of(text)
    (begin, before), (end, after) = sorted(
        places[number % len(places)] for number in (first, second)
    )
    assume(begin < end)
    piece = text[begin:end]
    assert last_place(piece) == len(piece)
    assert place_after(piece, before) == after
    inside = text.rindex(b",") >= end > begin > len(b'{"m":')
    assert leads(piece, before, after) is inside
    if inside:
        short = stand_in(before, after, b'"x"')
        assert leads(short, before, after)
        read = json.loads(text[:begin] + short + text[end:])
        assert read.keys() == {"m", "model"}
        assert read["model"] == "a"
