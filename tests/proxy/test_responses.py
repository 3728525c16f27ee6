"""The watch over a child's framing."""

from __future__ import annotations

from itertools import pairwise

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswap_py.proxy.parsers import BadResponse, DecodingWatch, Framing, ResponseWatch

from .harness import JSON_ANSWER, SSE_HEAD, sse


def watch_of(*pieces: bytes) -> ResponseWatch:
    """Feed a head and a body, in pieces."""
    watch = ResponseWatch()
    feed(watch, *pieces)
    return watch


def feed(watch: ResponseWatch, *pieces: bytes) -> None:
    for piece in pieces:
        data: bytes | None = piece
        if not watch.head_complete:
            data = watch.feed_head(piece)
        if data:
            watch.feed(data)


def test_keep_alive_is_read_where_the_parser_still_knows() -> None:
    watch = watch_of(JSON_ANSWER)
    assert watch.complete
    assert watch.keeps_alive


def test_keep_alive_is_refused_by_the_upstream() -> None:
    watch = watch_of(JSON_ANSWER.replace(b"Keep-Alive: timeout=5, max=100", b"Connection: close"))
    assert watch.complete
    assert not watch.keeps_alive


def test_a_head_that_ends_like_a_last_chunk_is_no_end() -> None:
    assert SSE_HEAD.endswith(b"0\r\n\r\n")
    watch = watch_of(SSE_HEAD)
    assert watch.head_complete
    assert not watch.complete
    feed(watch, sse("x"), b"0\r\n")
    assert not watch.complete
    feed(watch, b"\r\n")
    assert watch.complete


def test_the_streaming_watch_defines_no_on_body() -> None:
    assert not hasattr(ResponseWatch, "on_body")


def test_chunk_edges() -> None:
    watch = watch_of(SSE_HEAD)
    states = []
    for piece in (b"5\r", b"\n", b"hel", b"lo", b"\r", b"\n", b"0\r\n", b"\r\n"):
        feed(watch, piece)
        states.append(watch.in_chunk)
    assert states == [False, True, True, True, True, False, True, False]


@pytest.mark.parametrize(
    ("head", "framing"),
    [
        (b"Content-Length: 3", Framing.LENGTH),
        (b"Transfer-Encoding: Chunked", Framing.CHUNKED),
        (b"X: y", Framing.CLOSE),
    ],
)
def test_framing(head: bytes, framing: Framing) -> None:
    assert watch_of(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n").framing is framing


def test_headers_for_the_client() -> None:
    watch = watch_of(
        b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n"
        b"Keep-Alive: timeout=5\r\nTransfer-Encoding: chunked\r\nX-End: 2\r\n\r\n"
    )
    assert watch.end_to_end_headers() == [(b"Server", b"llama.cpp"), (b"X-End", b"2")]


@pytest.mark.parametrize(
    "data",
    [
        b"garbage",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000,
        b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
    ],
)
def test_bad_heads(data: bytes) -> None:
    with pytest.raises(BadResponse) as caught:
        watch_of(data)
    assert "callback" not in str(caught.value)


def test_garbage_is_noticed_before_a_head_is_complete() -> None:
    with pytest.raises(BadResponse):
        ResponseWatch().feed_head(b"SSH-2.0-x")


def test_bytes_after_the_answer_are_noticed() -> None:
    watch = watch_of(SSE_HEAD)
    watch.feed(b"0\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert watch.complete
    assert watch.surplus
    with pytest.raises(httptools.HttpParserError):
        watch_of(SSE_HEAD, b"0\r\n\r\nextra")


BODY = sse("one") + sse("two") + b"0\r\nT: v\r\n\r\n"


@given(cuts=st.lists(st.integers(0, len(SSE_HEAD + BODY)), max_size=10))
def test_splits_never_matter(cuts: list[int]) -> None:
    data = SSE_HEAD + BODY
    edges = [0, *sorted(cuts), len(data)]
    watch = DecodingWatch()
    feed(watch, *(data[a:b] for a, b in pairwise(edges)))
    assert watch.complete
    assert not watch.surplus
    assert b"".join(watch.take()) == b"data: one\n\ndata: two\n\n"
    assert watch.head_size == len(SSE_HEAD)
