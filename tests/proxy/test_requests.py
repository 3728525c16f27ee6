"""The strict request parser: what it refuses, and that splits never matter."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswap_py.proxy.messages import RequestHead, WireError, WireLimits
from llamaswap_py.proxy.parsers import RequestParser

HOST = b"Host: a\r\n"
POST = b"POST /x HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass
class Sink:
    """Collects what a parser finds."""

    heads: list[RequestHead] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    complete: int = 0

    def on_request(self, head: RequestHead) -> None:
        self.heads.append(head)
        self.bodies.append(b"")

    def on_piece(self, piece: bytes) -> None:
        self.bodies[-1] += piece

    def on_request_complete(self) -> None:
        self.complete += 1


def parse(*pieces: bytes, limits: WireLimits | None = None) -> tuple[Sink, bytes | None]:
    sink = Sink()
    parser = RequestParser(sink, limits or WireLimits())
    rest = None
    for piece in pieces:
        rest = parser.feed(piece)
    return sink, rest


def refused(*pieces: bytes, limits: WireLimits | None = None) -> tuple[int, str]:
    with pytest.raises(WireError) as caught:
        parse(*pieces, limits=limits)
    return caught.value.status, caught.value.message


def test_a_request_is_described_in_full() -> None:
    sink, _ = parse(
        b"POST /v1/a%20b?x=1&y HTTP/1.1\r\nHost: me:1\r\nX-Two:  b \r\nX-two: c\r\n"
        b"Expect: 100-Continue\r\nContent-Length: 3\r\n\r\nabc"
    )
    head = sink.heads[0]
    assert (head.method, head.target) == ("POST", "/v1/a%20b?x=1&y")
    assert (head.path, head.query, head.version) == ("/v1/a%20b", "x=1&y", "1.1")
    assert head.headers[:3] == [(b"host", b"me:1"), (b"x-two", b"b"), (b"x-two", b"c")]
    assert head.get(b"x-two") == b"b"
    assert head.get(b"x-none") is None
    assert head.keep_alive
    assert head.expects_continue
    assert head.content_length == 3
    assert sink.bodies == [b"abc"]
    assert sink.complete == 1


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("//a?b?c", "//a", "b?c"),
        ("http://host:8080/p/q?r", "/p/q", "r"),
        ("HTTP://host", "/", ""),
        ("http://host?q", "/", "q"),
        ("/a:b/../c%2f", "/a:b/../c%2f", ""),
    ],
)
def test_targets_become_origin_form(target: str, path: str, query: str) -> None:
    head = parse(b"GET %b HTTP/1.1\r\n" % target.encode() + HOST + b"\r\n")[0].heads[0]
    assert (head.target, head.path, head.query) == (target, path, query)


def test_the_host_of_an_absolute_target_counts() -> None:
    data = b"GET http://evil.example:1/p HTTP/1.1\r\nX: y\r\n" + HOST + b"\r\n"
    head = parse(data)[0].heads[0]
    assert head.get(b"host") == b"evil.example:1"
    assert [value for name, value in head.headers if name == b"host"] == [b"evil.example:1"]
    data = b"OPTIONS http://b HTTP/1.1\r\n" + HOST + b"\r\n"
    assert parse(data)[0].heads[0].path == "*"


def test_an_unknown_method_is_known_as_one_after_other_requests() -> None:
    parser = RequestParser(Sink(), WireLimits())
    for _ in range(3):
        parser.feed(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    with pytest.raises(WireError) as caught:
        parser.feed(b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert caught.value.status == 501


def test_options_may_ask_for_the_whole_server() -> None:
    assert parse(b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n")[0].heads[0].path == "*"


@pytest.mark.parametrize(
    ("version", "connection", "keeps"),
    [
        ("1.1", "", True),
        ("1.1", "close", False),
        ("1.1", "Keep-Alive, Close", False),
        ("1.0", "", False),
        ("1.0", "Keep-Alive", True),
    ],
)
def test_keep_alive(version: str, connection: str, keeps: bool) -> None:
    line = f"Connection: {connection}\r\n" if connection else ""
    data = f"GET / HTTP/{version}\r\nHost: a\r\n{line}\r\n".encode()
    assert parse(data)[0].heads[0].keep_alive is keeps


BAD = {
    "length and chunked": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunked and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
    "two equal lengths": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "list of lengths": POST + b"Content-Length: 5, 5\r\n\r\nhello",
    "signed length": POST + b"Content-Length: +5\r\n\r\nhello",
    "negative length": POST + b"Content-Length: -5\r\n\r\nhello",
    "empty length": POST + b"Content-Length:\r\n\r\n",
    "overflowing length": POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "obs-fold": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n",
    "obs-fold with tab": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n\tb\r\n\r\n",
    "folded first line": b"GET / HTTP/1.1\r\n X: a\r\n" + HOST + b"\r\n",
    "folded empty value": b"POST / HTTP/1.1\r\nTransfer-Encoding:\r\n chunked\r\n" + HOST + b"\r\n",
    "bare LF after request line": b"GET / HTTP/1.1\n" + HOST + b"\r\n",
    "bare LF after header": b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    "bare LF at the end": b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    "bare CR": b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
    "double CR": b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
    "NUL in value": b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n",
    "NUL in name": b"GET / HTTP/1.1\r\nHo\0st: a\r\n\r\n",
    "NUL in target": b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    "control in value": b"GET / HTTP/1.1\r\nHost: a\x01b\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "empty name": b"GET / HTTP/1.1\r\n: a\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost\r\n\r\n",
    "leading space": b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "tab for space": b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "lower-case method": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01",
    "raw bytes in target": b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "no host in the target": b"GET http:///p HTTP/1.1\r\nHost: a\r\n\r\n",
    "a user in the target": b"GET http://me@a/p HTTP/1.1\r\nHost: a\r\n\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "target without slash": b"GET foo HTTP/1.1\r\nHost: a\r\n\r\n",
    "foreign scheme": b"GET ftp://a/b HTTP/1.1\r\nHost: a\r\n\r\n",
    "star for GET": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "two origins": b"GET / HTTP/1.1\r\nHost: a\r\nOrigin: http://a\r\norigin: http://a\r\n\r\n",
    "chunked, identity": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "xchunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunked in 1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunk size not hex": CHUNKED + b"xyz\r\n",
    "negative chunk": CHUNKED + b"-5\r\nhello\r\n",
    "0x chunk": CHUNKED + b"0x5\r\nhello\r\n",
    "space in chunk size": CHUNKED + b"5 \r\nhello\r\n",
    "huge chunk": CHUNKED + b"fffffffffffffffff\r\n",
    "LF after chunk size": CHUNKED + b"5\nhello\r\n",
    "LF after chunk": CHUNKED + b"5\r\nhello\n0\r\n\r\n",
    "chunk too long": CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n",
    "LF in chunk extension": CHUNKED + b"5;a\nb\r\nhello\r\n",
    "framing in trailer": CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_ambiguous_requests_are_refused(data: bytes) -> None:
    status, message = refused(data)
    assert status == 400
    assert message
    assert "callback" not in message


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
        (b"GET /\r\n\r\n", 505),
        (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"FROB / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"VERSION-CONTROL2 / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"GETX / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"\r\nBREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"ANNOUNCE / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (POST + b"Expect: cookies\r\n\r\n", 417),
        (POST + b"Content-Length: 9223372036854775808\r\n\r\n", 413),
    ],
)
def test_what_is_understood_but_not_supported(data: bytes, status: int) -> None:
    assert refused(data)[0] == status


class TestSizes:
    """Limits on the head, and on bytes that lead nowhere."""

    limits = WireLimits(header=1000, header_count=10)

    def test_a_head_at_the_limit_passes(self) -> None:
        filler = b"x" * (1000 - len(b"/") - 4 - len(b"X") - 4 - len(b"Hosta"))
        data = b"GET / HTTP/1.1\r\n" + HOST + b"X: " + filler
        assert parse(data + b"\r\n\r\n", limits=self.limits)[0].complete == 1
        assert refused(data + b"x\r\n\r\n", limits=self.limits)[0] == 431

    def test_a_large_head_in_one_piece(self) -> None:
        data = b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 1000 + b"\r\n\r\n"
        assert refused(data, limits=self.limits)[0] == 431

    def test_an_endless_header(self) -> None:
        assert refused(b"GET / HTTP/1.1\r\nX: " + b"x" * 1000, limits=self.limits)[0] == 431

    def test_an_endless_target(self) -> None:
        assert refused(b"GET /" + b"x" * 1100, limits=self.limits)[0] == 431

    def test_too_many_headers(self) -> None:
        ten = b"".join(b"X%d: 1\r\n" % n for n in range(9))
        data = b"GET / HTTP/1.1\r\n" + HOST + ten
        assert parse(data + b"\r\n", limits=self.limits)[0].complete == 1
        assert refused(data + b"Y: 1\r\n\r\n", limits=self.limits)[0] == 431

    def test_an_endless_chunk_extension(self) -> None:
        assert refused(CHUNKED, b"5;" + b"x" * 2000, limits=self.limits)[0] == 400

    def test_an_endless_trailer(self) -> None:
        assert refused(CHUNKED, b"0\r\nX: " + b"x" * 2000, limits=self.limits)[0] == 400

    def test_many_small_pieces_of_a_body_are_progress(self) -> None:
        pieces = [CHUNKED, *[b"1\r\nx\r\n"] * 1000, b"0\r\n\r\n"]
        sink, _ = parse(*pieces, limits=self.limits)
        assert sink.bodies == [b"x" * 1000]
        assert sink.complete == 1

    def test_many_requests_in_one_piece_are_progress(self) -> None:
        data = (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n") * 100
        assert parse(data, limits=self.limits)[0].complete == 100


def test_trailers_are_not_headers_of_the_next_request() -> None:
    get = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
    sink, _ = parse(CHUNKED + b"5\r\nhello\r\n0\r\nX-Trailer: y\r\n\r\n" + get)
    assert [head.get(b"x-trailer") for head in sink.heads] == [None, None]
    assert sink.bodies == [b"hello", b""]


def test_websocket_upgrade_returns_what_follows() -> None:
    head = b"Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n"
    sink, rest = parse(b"GET /ws HTTP/1.1\r\n" + HOST + head + b"frames")
    assert sink.heads[0].upgrade
    assert rest == b"frames"


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_other_upgrades_are_ignored_and_keep_their_body(body: bytes) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
    again = b"GET /2 HTTP/1.1\r\n" + HOST + b"\r\n"
    sink, rest = parse(POST + upgrade + body + again)
    assert rest is None
    assert [head.path for head in sink.heads] == ["/x", "/2"]
    assert not sink.heads[0].upgrade
    assert sink.bodies == [b"hello", b""]
    assert sink.complete == 2


def test_a_websocket_request_with_a_body_is_no_upgrade() -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nhi"
    sink, rest = parse(b"GET / HTTP/1.1\r\n" + HOST + upgrade)
    assert rest is None
    assert sink.bodies == [b"hi"]
    assert not sink.heads[0].upgrade


STREAM = (
    POST + b"Content-Length: 11\r\n\r\nhello world"
    b"GET /a?b HTTP/1.1\r\nHost: b\r\nX-Y: z\r\n\r\n"
    + CHUNKED
    + b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nT: v\r\n\r\n"
    + POST
    + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi"
    b"GET /last HTTP/1.1\r\nHost: c\r\n\r\n"
)


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_splits_never_matter(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in pairwise(edges)]
    whole, _ = parse(STREAM)
    split, _ = parse(*pieces)
    assert (split.heads, split.bodies, split.complete) == (whole.heads, whole.bodies, 5)


def test_byte_by_byte() -> None:
    whole, _ = parse(STREAM)
    split, _ = parse(*(STREAM[i : i + 1] for i in range(len(STREAM))))
    assert (split.heads, split.bodies) == (whole.heads, whole.bodies)


@given(junk=st.binary(max_size=200), at=st.integers(0, len(STREAM)))
def test_junk_is_refused_or_parsed_but_never_crashes(junk: bytes, at: int) -> None:
    with suppress(WireError):
        assert parse(STREAM[:at] + junk + STREAM[at:])[0].heads
