"""Large bodies in pieces: the skim says what the whole says, and gives back what it cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswap_py.api import large_body
from llamaswap_py.api import large_body as skimming
from llamaswap_py.api.body import Skim, filter_body, read_ask
from llamaswap_py.api.large_body import STEP, FormSkimmer, JsonSkimmer
from llamaswap_py.api.multipart import multipart_field
from llamaswap_py.config.forms import Filters
from llamaswap_py.errors import ApiError
from llamaswap_py.proxy.messages import Body
from llamaswap_py.units import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

MARK = "mark-of-a-test-"
JSON = b"application/json"
IMAGE = "data:image/png;base64," + "iVBORw0KGgo" * 30_000

LONG_TEXT = st.builds(
    lambda text, times: (text * times)[:20_000],
    st.text(min_size=1, max_size=40) | st.sampled_from(['"', "\\", "😀", "\n", "ab/", "é\\n"]),
    st.sampled_from([1, 100, 1200, 5000]),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | LONG_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(LONG_TEXT, inner, max_size=4),
    max_leaves=8,
)
BODIES = st.builds(
    lambda members, model, stream, ascii: json.dumps(
        {**members, "model": model, "stream": stream}, ensure_ascii=ascii
    ).encode(errors="surrogatepass"),
    st.dictionaries(LONG_TEXT, VALUES, max_size=4),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.booleans(),
    st.booleans(),
)
CUTS = st.lists(st.floats(0, 1, exclude_max=True), max_size=6)


def pieces_of(body: bytes, cuts: Sequence[float]) -> list[bytes]:
    places = [0, *sorted(int(cut * len(body)) for cut in cuts), len(body)]
    return [body[a:b] for a, b in pairwise(places)]


class Mode(NamedTuple):
    """How a skim is made: `step` and `much` are the sizes from which anything is cut deep down."""

    unescaped: bool = False
    top_level_only: bool = False
    step: int = STEP
    much: int = MIB


USUAL = Mode(top_level_only=True)
TRANSLATED = Mode(unescaped=True)
EAGER = [
    Mode(top_level_only=True, step=step, much=much)
    for step, much in [(16, 1), (64, 64), (500, 1), (5000, 200)]
]
MODES = st.sampled_from([USUAL, TRANSLATED, *EAGER])


def skim_of(body: bytes, cuts: Sequence[float] = (), mode: Mode = USUAL) -> Skim:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skimming, "STEP", mode.step)
        patch.setattr(large_body, "_MUCH", mode.much)
        patch.setattr(large_body, "_MORE", mode.much)
        skimmer = JsonSkimmer(MARK, unescaped=mode.unescaped, top_level_only=mode.top_level_only)
        pieces = pieces_of(body, cuts)
        size = 0
        for piece in pieces:
            size = skimmer.feed(piece)
        skim = skimmer.finish(Body([*pieces], len(body)))
        assert size <= len(skim.text) <= size + 8 * KIB
        return skim


def said_of(body: bytes, skim: Skim | None = None) -> tuple[object, ...]:
    """Return what a body asks for, or how it is refused."""
    try:
        ask = read_ask(JSON, body, skim)
    except ApiError as error:
        return error.code, str(error)
    return ask.model, ask.stream


@given(BODIES, CUTS, MODES)
def test_a_skim_says_what_the_whole_says(body: bytes, cuts: list[float], mode: Mode) -> None:
    skim = skim_of(body, cuts, mode)
    assert said_of(skim.text, skim) == said_of(body)
    assert skim.restore(skim.text).join() == body
    json.loads(skim.text)  # no escape, no character is cut in two


@given(BODIES, CUTS, st.floats(0, 1), MODES)
def test_a_body_that_ends_too_early_is_refused_alike(
    body: bytes, cuts: list[float], end: float, mode: Mode
) -> None:
    body = body[: int(end * len(body))]
    skim = skim_of(body, cuts, mode)
    assert said_of(skim.text, skim) == said_of(body)


@given(VALUES, VALUES, CUTS, st.sampled_from([b"?", b",", b"]", b"}", b"tru", b":", b"\n["]), MODES)
def test_bad_json_is_told_with_its_place_in_the_body(
    before: Any, after: Any, cuts: list[float], bad: bytes, mode: Mode
) -> None:
    parts = (json.dumps(each, indent=1).encode() for each in (before, after))
    body = b'{"a":%b, "b": %b 7, "c":%b}' % (next(parts), bad, next(parts))
    skim = skim_of(body, cuts, mode)
    assert said_of(body)[0] == "bad_json"
    assert said_of(skim.text, skim) == said_of(body)


@given(BODIES, CUTS, MODES)
def test_filters_work_on_a_skim(body: bytes, cuts: list[float], mode: Mode) -> None:
    filters = Filters(set={"seed": 1}, default={"top_p": 0.5}, strip=("", "a"))
    skim = skim_of(body, cuts, mode)
    restored = skim.restore(filter_body(skim.text, filters, "x")).join()
    assert json.loads(restored) == json.loads(filter_body(body, filters, "x"))


@given(LONG_TEXT, st.binary(max_size=30), CUTS, MODES)
def test_soup(text: str, noise: bytes, cuts: list[float], mode: Mode) -> None:
    body = noise + text.encode(errors="surrogatepass") + noise
    skim = skim_of(body, cuts, mode)
    assert skim.restore(skim.text).join() == body
    assert skim.place(len(skim.text)) == len(body)


TOKENS = st.sampled_from(
    [
        *(b'"', b"\\", b"[", b"]", b"{", b"}", b",", b":", b"\n", b" ", b"0", b"-1.5e3", b"tru"),
        *(b"true", b'"a"', b'"\\""', b'"["', b'"],"', b'":"', b'"x":', b'{"x":', b"[]", b"{}"),
        *(b"[1,2],", b"\0", b'"a",', b'"\\u00e9",', b'{"a":[{"b":{"c":"..."}}]},'),
    ]
)


@given(st.lists(TOKENS, max_size=30), st.integers(0, 40), CUTS, st.sampled_from(EAGER))
def test_what_is_cut_deep_down_is_json_and_nothing_else(
    tokens: list[bytes], times: int, cuts: list[float], mode: Mode
) -> None:
    """Tokens that may be JSON and most often are not, before and after what is cut for sure."""
    soup = b"".join(tokens)
    many = b'{"a": [1, "b"]}, ' * times
    for body in (
        b'{"messages": [%b%b], "stream": true, "model": "m"}' % (many, soup),
        b'{"messages": [%b{"c":%b %b 0],\n"model": "m"}' % (many, soup, many),
        b'{"model": "m", "x": {"y": [%b%b%b],\n"stream": true}' % (soup, many, soup),
    ):
        skim = skim_of(body, cuts, mode)
        assert said_of(skim.text, skim) == said_of(body)
        assert skim.restore(skim.text).join() == body


SHORT_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=30,
)


@given(SHORT_VALUES, st.floats(0, 1), st.binary(max_size=2), CUTS, st.sampled_from(EAGER))
def test_one_wrong_byte_is_found(
    value: object, place: float, bad: bytes, cuts: list[float], mode: Mode
) -> None:
    body = json.dumps({"a": value, "model": "a", "b": [value]}, ensure_ascii=False).encode(
        errors="surrogatepass"
    )
    at = int(place * len(body))
    body = body[:at] + bad + body[at + 1 :]
    skim = skim_of(body, cuts, mode)
    assert said_of(skim.text, skim) == said_of(body)


SHORT = [{"role": "user", "content": f"a line, number {number}\n" * 8} for number in range(20_000)]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "many",
    [
        SHORT,
        [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in SHORT],
        [*range(600_000)],
        ["a"] * 600_000,
        [[[number], {}] for number in range(200_000)],
        {str(number): number for number in range(200_000)},
    ],
    ids=["messages", "parts", "tokens", "texts", "lists", "an object"],
)
def test_very_many_short_values_become_short(many: object, indent: int | None) -> None:
    body = json.dumps({"model": "a", "m": many, "image": IMAGE, "stream": True}, indent=indent)
    skimmer = JsonSkimmer(MARK, top_level_only=True)
    pieces = [body.encode()[at : at + 100_000] for at in range(0, len(body), 100_000)]
    for piece in pieces:
        skimmer.feed(piece)
    skim = skimmer.finish(Body([*pieces], len(body)))
    assert len(body) > 1_800_000 > 2 * len(skim.text)
    assert len(skim.cuts) == 2  # they grow: one for them, one for the image
    assert said_of(skim.text, skim) == ("a", True)
    assert skim.restore(skim.text).join() == body.encode()


def test_the_line_of_a_mistake_behind_very_many_short_values() -> None:
    text = json.dumps({"m": SHORT, "model": "a"}, indent=1)
    body = text[:-1].encode() + b"?}"
    skim = skim_of(body)
    assert len(skim.text) < len(body) // 2
    assert f"at byte {len(text) - 1} (line {text.count(chr(10)) + 1}, column 1)" in str(
        said_of(body)[1]
    )
    assert said_of(skim.text, skim) == said_of(body)
    there = skim.text.index(b'"model"')
    assert skim.place(there) == body.index(b'"model"')
    assert skim.lines(there) == (body.count(b"\n", 0, skim.place(there)), skim.place(there) - 2)
    inside = skim.cuts[0].where + skim.cuts[0].size
    lines, last = skim.lines(inside)
    assert lines == body.count(b"\n", 0, skim.cuts[0].end)
    assert last == body.rfind(b"\n", 0, skim.cuts[0].end)


def test_a_long_string_in_what_is_not_settled_yet_keeps_its_mark() -> None:
    head, more = b'{"m": [' + b"1, " * 30, b"2, 3, %b ]" % json.dumps(IMAGE).encode()
    body = head + more + b', "model": "a"}'
    cuts = [(len(head) + 0.5) / len(body), (len(head + more) + 0.5) / len(body)]
    skim = skim_of(body, cuts, Mode(top_level_only=True, much=64))
    assert skim.restore(skim.text).join() == body
    assert said_of(skim.text, skim) == ("a", False)


def test_brackets_are_not_followed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bytes] = []

    def spy(text: bytes, before: large_body.Place) -> large_body.Place | None:
        looked.append(text)
        return place_after(text, before)

    place_after = large_body.place_after
    monkeypatch.setattr(large_body, "place_after", spy)
    body = b"[" * 100 + b'"a", ' * 500_000 + b"]" * 100
    skim = skim_of(body, [number / 30 for number in range(30)], USUAL._replace(much=MIB // 2))
    assert len(looked) == 1
    assert skim.text == body


def test_nothing_short_is_cut_of_what_will_be_translated() -> None:
    body = json.dumps({"model": "a", "messages": SHORT}).encode()
    assert skim_of(body, [0.3], TRANSLATED).text == body


def test_the_top_level_stays() -> None:
    members = {str(number): number for number in range(200_000)}
    body = json.dumps({**members, "model": "a"}).encode()
    assert skim_of(body, [0.3]).text == body
    many = json.dumps({"model": "a", **{f"{at}": ["b"] * 30_000 for at in range(20)}}).encode()
    skim = skim_of(many)
    assert set(json.loads(skim.text)) == set(json.loads(many))


@pytest.mark.parametrize("size", [1, 3, 4095, 4096, 4097, 256 * 1024])
def test_an_image_is_cut_however_it_comes(size: int) -> None:
    body = json.dumps({"model": "a", "images": [IMAGE, "short"], "stream": True}).encode()
    skimmer = JsonSkimmer(MARK, unescaped=True)
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    for piece in pieces:
        skimmer.feed(piece)
    skim = skimmer.finish(Body([*pieces], len(body)))
    assert len(skim.text) < 400
    shown = json.loads(skim.text)["images"][0]
    assert shown.startswith(IMAGE[:64])  # what tells its kind
    assert said_of(skim.text, skim) == ("a", True)
    again = skim.restore(skim.text)
    assert (again.join(), again.size) == (body, len(body))


def test_only_what_has_no_escapes_is_cut_where_that_is_asked() -> None:
    text = "line\n" * 5000
    body = json.dumps({"plain": IMAGE, "lines": text, "late": IMAGE + '"' + "x" * 9000}).encode()
    skim = skim_of(body, mode=TRANSLATED)
    shown = json.loads(skim.text)
    assert shown["lines"] == text
    assert len(shown["plain"]) < 200
    nested = json.dumps({"arguments": json.dumps(shown)}).encode()
    again = json.loads(skim.restore(nested).join())
    assert json.loads(again["arguments"]) == json.loads(body)


def test_what_was_restored_comes_in_few_pieces() -> None:
    body = json.dumps({"model": "a", "images": [IMAGE] * 10}).encode()
    cuts = [number / 20 for number in range(20)]
    skim = skim_of(body, cuts)
    again = skim.restore(skim.text)
    assert len(again.pieces) <= 40
    assert again.join() == body


PARTS = st.lists(
    st.tuples(
        st.sampled_from(["model", "file", "prompt"]),
        st.builds(
            lambda part, times: part * times,
            st.sampled_from([b"x", b"--XyZ", b"\r\n--Xy", b"\r\n", b"-", b"\r\n--XyZx"])
            | st.binary(max_size=5),
            st.sampled_from([0, 1, 7, 3000, 9000]),
        ),
    ),
    max_size=4,
)


@given(PARTS, CUTS)
def test_forms(parts: list[tuple[str, bytes]], cuts: list[float]) -> None:
    body = b""
    for name, content in parts:
        head = f'--XyZ\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    body += b"--XyZ--\r\n"
    skimmer = FormSkimmer(b"XyZ")
    pieces = pieces_of(body, cuts)
    for piece in pieces:
        skimmer.feed(piece)
    skim = skimmer.finish(Body([*pieces], len(body)))
    assert _field(skim.text) == _field(body)


def _field(body: bytes) -> bytes | str | None:
    try:
        return multipart_field(body, b"XyZ", b"model")
    except ValueError as error:
        return str(error)


def test_a_large_upload_leaves_little_to_read() -> None:
    skimmer = FormSkimmer(b"XyZ")
    head = b'--XyZ\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
    tail = b'\r\n--XyZ\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n--XyZ--\r\n'
    pieces = [head, *[b"\0" * 100_000] * 30, tail]
    for piece in pieces:
        skimmer.feed(piece)
    skim = skimmer.finish(Body([*pieces], sum(map(len, pieces))))
    assert len(skim.text) < 40_000
    assert _field(skim.text) == b"a"
