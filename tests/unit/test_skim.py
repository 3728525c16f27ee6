"""Large bodies in pieces: the skim says what the whole says, and gives back what it cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswap_py.api.extract import read_ask
from llamaswap_py.api.filters import filter_body
from llamaswap_py.api.forms import multipart_field
from llamaswap_py.api.skim import FormSkimmer, JsonSkimmer, Skim
from llamaswap_py.config.values import Filters
from llamaswap_py.errors import ApiError
from llamaswap_py.wire.messages import Body

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


def skim_of(body: bytes, cuts: Sequence[float] = (), *, unescaped: bool = False) -> Skim:
    skimmer = JsonSkimmer(MARK, unescaped=unescaped)
    pieces = pieces_of(body, cuts)
    for piece in pieces:
        skimmer.feed(piece)
    return skimmer.finish(Body([*pieces], len(body)))


def said_of(body: bytes, skim: Skim | None = None) -> tuple[object, ...]:
    """Return what a body asks for, or how it is refused."""
    try:
        ask = read_ask(JSON, body, skim)
    except ApiError as error:
        return error.code, str(error)
    return ask.model, ask.stream


@given(BODIES, CUTS, st.booleans())
def test_a_skim_says_what_the_whole_says(body: bytes, cuts: list[float], unescaped: bool) -> None:
    skim = skim_of(body, cuts, unescaped=unescaped)
    assert said_of(skim.text, skim) == said_of(body)
    assert skim.restore(skim.text).join() == body
    json.loads(skim.text)  # no escape, no character is cut in two


@given(BODIES, CUTS, st.floats(0, 1))
def test_a_body_that_ends_too_early_is_refused_alike(
    body: bytes, cuts: list[float], end: float
) -> None:
    body = body[: int(end * len(body))]
    skim = skim_of(body, cuts)
    assert said_of(skim.text, skim) == said_of(body)


@given(VALUES, VALUES, CUTS, st.sampled_from([b"?", b",", b"]", b"}", b"tru", b":", b"\n["]))
def test_bad_json_is_told_with_its_place_in_the_body(
    before: Any, after: Any, cuts: list[float], bad: bytes
) -> None:
    parts = (json.dumps(each, indent=1).encode() for each in (before, after))
    body = b'{"a":%b, "b": %b 7, "c":%b}' % (next(parts), bad, next(parts))
    skim = skim_of(body, cuts)
    assert said_of(body)[0] == "bad_json"
    assert said_of(skim.text, skim) == said_of(body)


@given(BODIES, CUTS)
def test_filters_work_on_a_skim(body: bytes, cuts: list[float]) -> None:
    filters = Filters(set={"seed": 1}, default={"top_p": 0.5}, strip=("", "a"))
    skim = skim_of(body, cuts)
    restored = skim.restore(filter_body(skim.text, filters, "x")).join()
    assert json.loads(restored) == json.loads(filter_body(body, filters, "x"))


@given(LONG_TEXT, st.binary(max_size=30), CUTS)
def test_soup(text: str, noise: bytes, cuts: list[float]) -> None:
    body = noise + text.encode(errors="surrogatepass") + noise
    skim = skim_of(body, cuts)
    assert skim.restore(skim.text).join() == body
    assert skim.place(len(skim.text)) == len(body)


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
    skim = skim_of(body, unescaped=True)
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
