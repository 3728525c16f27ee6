"""Heads that come again are compared instead of parsed: the parser would have said the same."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswap_py.proxy import RelayOutcome, WireLimits
from llamaswap_py.proxy.head_cache import KnownAnswers, KnownRequests
from llamaswap_py.proxy.messages import RequestHead, WireError
from llamaswap_py.proxy.parsers import RequestParser, ResponseWatch

from .harness import JSON_ANSWER, Peer, Upstream, answering, connected, relaying

if TYPE_CHECKING:
    from pathlib import Path

HEAD = (
    b"POST /v1/x?a=b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n"
    b"Content-Type: application/json\r\nX-Own: 1\r\n\r\n"
)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def post(body: bytes) -> bytes:
    return HEAD % len(body) + body


class Sink:
    """What a parser finds."""

    def __init__(self) -> None:
        self.found: list[tuple[RequestHead, bytes]] = []
        self.complete = 0

    def on_request(self, head: RequestHead) -> None:
        self.found.append((head, b""))

    def on_piece(self, piece: bytes) -> None:
        head, body = self.found[-1]
        self.found[-1] = (head, body + piece)

    def on_request_complete(self) -> None:
        self.complete += 1


def parse(data: bytes) -> Sink:
    sink = Sink()
    parser = RequestParser(sink, WireLimits())
    parser.feed(data)
    parser.close()
    return sink


PEER = "192.0.2.1"


def remembering(data: bytes) -> KnownRequests:
    """Return what is remembered after a client has sent `data`."""
    known = KnownRequests()
    for head, _ in parse(data).found[:1]:
        known.note(PEER, data, head)
    return known


def read(known: KnownRequests, data: bytes) -> tuple[RequestHead, bytes] | None:
    """Return the head and the body, where both are known to be whole."""
    found = known.read(PEER, data)
    for one in known._known.values():  # what a connection compares with first says the same
        quick = one.read(data)
        assert quick is None or (found is not None and quick == found[:2])
    if found is None or len(data) - found[1] != found[0].content_length:
        return None
    return found[0], data[found[1] :]


def test_the_same_head_is_known_whatever_its_length() -> None:
    known = remembering(post(b"12345"))
    for body in (b"67890", b"", b"x" * 1000, b"\r\n\r\n"):
        found = read(known, post(body))
        assert found == parse(post(body)).found[0]
    first, second = read(known, post(b"abc")), read(known, post(b"def"))
    assert first is not None
    assert second is not None
    assert first[0] == second[0]
    assert first[0].memo is second[0].memo
    assert known.read("192.0.2.2", post(b"12345")) is None


VARIED = post(b"12345").replace(b"X-Own: 1", b"X-Own: 1\r\n%b")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (b"Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-%016x-01", b"traceparent"),
        (b"X-Request-Id: some-%d", b"x-request-id"),
        (b"Idempotency-Key:key %d", b"idempotency-key"),
    ],
)
def test_what_varies_is_taken_from_each_head(line: bytes, name: bytes) -> None:
    known = remembering(VARIED.replace(b"%b", line % 1))
    memos = set()
    for number in range(1, 4):
        sent = VARIED.replace(b"%b", line % number)
        found, parsed = read(known, sent), parse(sent).found[0]
        assert found is not None
        assert found[1] == parsed[1]
        assert sorted(found[0].headers) == sorted(parsed[0].headers)
        assert found[0].first == parsed[0].first
        assert found[0].varied == [(name, parsed[0].first[name])]
        memos.add(id(found[0].memo))
    assert len(memos) == 1


@pytest.mark.parametrize(
    "value",
    [b"", b" ", b"a\tb", b"a  b", b"a ", b"\xff", b"a\nb", b"a\rb", b"a\r\n b", b"a\0"],
)
def test_an_odd_value_is_parsed(value: bytes) -> None:
    known = remembering(VARIED.replace(b"%b", b"Traceparent: a"))
    sent = VARIED.replace(b"%b", b"Traceparent: " + value)
    assert read(known, sent) is None
    assert read(remembering(post(b"12345")), sent) is None


def test_what_varies_cannot_hide_another_line() -> None:
    """Where it was cut, nothing else may stand."""
    known = remembering(VARIED.replace(b"%b", b"Traceparent: a"))
    for line in (b"\n", b"X: 1", b"Content-Length: 5", b"Traceparent : a", b" a", b"Host: b"):
        assert read(known, VARIED.replace(b"%b", line)) is None
    assert read(known, post(b"12345")) is None
    assert read(known, post(b"12345").replace(b"\r\n", b"\n\r\n")) is None


def test_a_connection_header_that_names_others_is_parsed_every_time() -> None:
    for value, remembered in ((b"keep-alive", True), (b"close", True), (b"traceparent", False)):
        sent = VARIED.replace(b"%b", b"Connection: " + value)
        assert (read(remembering(sent), sent) is not None) is remembered


def test_few_heads_of_requests_are_kept() -> None:
    known, heads = KnownRequests(), [VARIED.replace(b"%b", b"X-%d: 1" % n) for n in range(1500)]
    for head in heads:
        known.note(PEER, head, parse(head).found[0][0])
    left = [head for head in heads if read(known, head) is not None]
    assert heads[-1] in left
    assert left == heads[-1024:]
    large = VARIED.replace(b"%b", b"X-Own: " + b"x" * 4096)
    assert read(remembering(large), large) is None


@pytest.mark.parametrize(
    "data",
    [
        post(b"12345")[:-1],
        post(b"12345") + b"G",
        post(b"12345").replace(b"X-Own: 1", b"X-Own: 2"),
        post(b"12345").replace(b"POST", b"PUT"),
        post(b"12345").replace(b": 5", b":  5"),
        post(b"12345").replace(b": 5", b": +5"),
        post(b"12345").replace(b": 5", b": 0x5"),
        post(b"12345").replace(b": 5", b": "),
        post(b"12345").replace(b": 5", b": " + b"0" * 20 + b"5"),
        post(b"12345").replace(b": 5\r\n", b": 5\n"),
        b"",
        GET,
    ],
)
def test_whatever_differs_is_parsed(data: bytes) -> None:
    assert read(remembering(post(b"12345")), data) is None


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"\r\n" + GET,
        GET + GET,
        GET + post(b"a"),
    ],
)
def test_some_heads_are_parsed_every_time(data: bytes) -> None:
    assert read(remembering(data), data) is None


def test_a_head_in_pieces_is_not_remembered() -> None:
    known, sink = KnownRequests(), Sink()
    parser = RequestParser(sink, WireLimits())
    parser.feed(GET[:9])
    parser.feed(GET[9:])
    known.note(PEER, GET[:9], sink.found[0][0])
    parser.close()
    assert read(known, GET) is None


_PIECES = st.sampled_from(
    [
        *(
            b"\r\n",
            b"\n",
            b"\r",
            b" ",
            b":",
            b"0",
            b"5",
            b"-",
            b"+",
            b"\0",
            b"\t",
            b"Traceparent: 2\r\n",
            b"Traceparent: ",
            b"POST",
            b"GET / ",
        ),
        *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n"),
    ]
)


@given(st.binary(max_size=30), st.data())
def test_what_is_known_is_what_the_parser_says(body: bytes, data: st.DataObject) -> None:
    varies = data.draw(st.sampled_from([b"X-Own: 1", b"X-Own: 1\r\nTraceparent: 1"]))
    known = post(b"12345").replace(b"X-Own: 1", varies)
    sent = bytearray(post(body).replace(b"X-Own: 1", varies))
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(sent)))
        end = data.draw(st.integers(start, min(start + 3, len(sent))))
        sent[start:end] = data.draw(_PIECES)
    found = read(remembering(known), bytes(sent))
    if found is not None:
        sink = parse(bytes(sent))
        assert sink.complete == 1
        ((head, body),) = sink.found
        assert found[1] == body
        assert sorted(found[0].headers) == sorted(head.headers)
        assert dataclasses.replace(found[0], headers=[]) == dataclasses.replace(head, headers=[])
    try:
        sink = parse(bytes(sent))
    except WireError:
        assert found is None


def test_answers_of_one_kind_are_found_again() -> None:
    answers = KnownAnswers()
    head = JSON_ANSWER[: JSON_ANSWER.index(b"{")]
    assert answers.find(JSON_ANSWER) is None
    answers.note(JSON_ANSWER, 200, b"OK", [(b"Content-Length", b"7"), (b"a", b"b")])
    found = answers.find(head.replace(b": 7", b": 12") + b"rest")
    assert found is not None
    known, length, rest = found
    assert (known.status, length, rest) == (200, 12, b"rest")
    assert known.render(12, b"x: y\r\n", b"rest") == (
        b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\na: b\r\nx: y\r\n\r\nrest"
    )
    for other in (head[:-2], head.replace(b"200", b"201"), head.replace(b"7", b"-7"), b""):
        assert answers.find(other) is None


def test_the_head_of_an_answer_in_pieces_is_not_remembered() -> None:
    """The end of a head is not a head, even if a child sent it as one."""
    head, cut = JSON_ANSWER[: JSON_ANSWER.index(b"{")], JSON_ANSWER.index(b"\r\nContent-Length")
    watch, answers = ResponseWatch(), KnownAnswers()
    assert watch.feed_head(JSON_ANSWER[:cut]) is None
    assert watch.feed_head(JSON_ANSWER[cut:]) == b'{"a":1}'
    assert watch.raw_head == b""
    answers.note(watch.raw_head, 200, b"OK", watch.end_to_end_headers())
    assert answers.find(JSON_ANSWER[cut:]) is None
    whole = ResponseWatch()
    assert whole.feed_head(JSON_ANSWER) == b'{"a":1}'
    assert whole.raw_head == head
    for one in (watch, whole):
        one.close()


def test_few_heads_of_answers_are_kept() -> None:
    answers = KnownAnswers()
    heads = [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\na: %d\r\n\r\n" % n for n in range(1000)]
    for head in heads:
        answers.note(head, 200, b"OK", [(b"content-length", b"1")])
    known = [head for head in heads if answers.find(head) is not None]
    assert heads[-1] in known
    assert len(known) <= 64


pytestmark = pytest.mark.anyio


async def test_requests_and_answers_of_other_lengths(folder: Path) -> None:
    async def script(child: Upstream, peer: Peer) -> None:
        while True:
            request = await child.request(peer)
            text = b'"%b"' % request.rpartition(b"\r\n\r\n")[2]
            head = JSON_ANSWER[: JSON_ANSWER.index(b"{")].replace(b": 7", b": %d" % len(text))
            if len(child.requests) % 2:
                await peer.send(head + text)
            else:
                await peer.send(head)
                await peer.dribble(text)

    async with relaying(folder, script) as setup, connected(setup.endpoint) as client:
        for number in range(12):
            body = b"n" * number
            answer = await client.ask(post(body))
            assert answer.body == b'"%b"' % body
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["x-request-id"] == "r1"
            assert answer.headers["x-accel-buffering"] == "no"
        assert (await client.ask(GET)).body == b'""'
        await client.dribble(post(b"abc"))
        assert (await client.answer()).body == b'"abc"'
        await client.send(post(b"one") + post(b"two") + GET)
        assert [(await client.answer()).body for _ in range(3)] == [b'"one"', b'"two"', b'""']
        assert setup.child.accepted == 1
        for sent in setup.child.requests:
            assert sent.lower().count(b"content-length") == (not sent.startswith(b"GET"))


async def test_an_answer_behind_a_known_head_may_break_off(folder: Path) -> None:
    async def script(child: Upstream, peer: Peer) -> None:
        await child.request(peer)
        await peer.send(JSON_ANSWER)
        await child.request(peer)
        await peer.send(JSON_ANSWER[:-1])
        peer.close()

    async with relaying(folder, script) as setup, connected(setup.endpoint) as client:
        assert (await client.ask(GET)).body == b'{"a":1}'
        await client.send(GET)
        assert (await client.rest()).endswith(b'{"a":1')  # the connection ended: it is not whole
        assert setup.handler.results[-1].outcome is RelayOutcome.DIED_MIDSTREAM


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
async def test_known_heads_and_other_kinds_of_requests(folder: Path, method: bytes) -> None:
    answer = JSON_ANSWER if method == b"GET" else JSON_ANSWER[:-7]
    async with relaying(folder, answering(JSON_ANSWER), answering(answer)) as setup:
        async with connected(setup.endpoint) as client:
            assert (await client.ask(GET)).body == b'{"a":1}'
        setup.pool.drop(setup.child.endpoint)
        old = b"%b / HTTP/1.0\r\n\r\n" % method if method == b"GET" else b"HEAD" + GET[3:]
        async with connected(setup.endpoint) as client:
            found = await client.ask(old)
            assert found.headers["content-length"] == "7"
            assert found.body == (b"" if method == b"HEAD" else b'{"a":1}')
