"""A child's answer on its way to a client: untouched where it can be, honest where it breaks."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.endpoint import Endpoint
from llamaswap_py.proxy import Exchange, RelayOutcome, RelayResult, UpstreamPool, UpstreamRequest

from .harness import (
    JSON_ANSWER,
    SSE_HEAD,
    Client,
    Peer,
    Setup,
    Upstream,
    answering,
    connected,
    error_event,
    eventually,
    relaying,
    serving,
    sse,
    upstream,
)

if TYPE_CHECKING:
    from pathlib import Path

    from .harness import Script

pytestmark = pytest.mark.anyio

GET = b"GET /v1/x?y=1 HTTP/1.1\r\nHost: a\r\n\r\n"
STREAM = sse("one") + sse("two") + sse("[DONE]") + b"0\r\n\r\n"


def saying(*pieces: bytes) -> Script:
    """Return a script that reads a request, sends the pieces, and closes."""

    async def script(child: Upstream, peer: Peer) -> None:
        await child.request(peer)
        for piece in pieces:
            await peer.send(piece)

    return script


async def result(setup: Setup) -> RelayResult:
    await eventually(setup.handler.finished)
    return setup.handler.results[-1]


async def test_a_json_answer(folder: Path) -> None:
    async with (
        relaying(folder, answering(JSON_ANSWER)) as setup,
        connected(setup.endpoint) as client,
    ):
        post = b"POST /v1/x?y=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nX: y\r\n\r\n{}"
        answer = await client.ask(post)
        assert answer.body == b'{"a":1}'
        assert answer.headers == {
            "content-type": "application/json",
            "content-length": "7",
            "x-accel-buffering": "no",
            "x-request-id": "r1",
        }
        assert setup.child.requests == [
            (
                b"POST /v1/x?y=1 HTTP/1.1\r\nhost: localhost\r\nx: y\r\n"
                b"x-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\n"
                b"x-forwarded-host: a\r\ncontent-length: 2\r\n\r\n{}"
            )
        ]
        ended = await result(setup)
        assert (ended.outcome, ended.started, ended.status) == (RelayOutcome.COMPLETE, True, 200)
        assert 0 < ended.first_byte_at <= time.monotonic()


async def test_a_stream_passes_byte_for_byte_and_the_client_stays(folder: Path) -> None:
    async with relaying(folder, saying(SSE_HEAD, *STREAM.splitlines(True))) as setup:
        async with connected(setup.endpoint) as client:
            for _ in range(2):
                answer = await client.ask(GET)
                assert answer.raw == STREAM
                assert "connection" not in answer.headers
                assert "keep-alive" not in answer.headers
        # never a second use after a stream, whatever the child promised
        assert setup.child.accepted == 2


async def test_each_event_reaches_the_client_before_the_next_exists(folder: Path) -> None:
    got = asyncio.Event()

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(SSE_HEAD)
        await eventually(got)
        for word in ("one", "two"):
            got.clear()
            await peer.send(sse(word))
            await eventually(got)
        await peer.send(b"0\r\n")
        await peer.send(b"\r\n")

    async with relaying(folder, child) as setup, connected(setup.endpoint) as client:
        await client.send(GET)
        await client.head()
        got.set()
        assert await client.until(b"\n\n\r\n") == sse("one")
        got.set()
        assert await client.until(b"\n\n\r\n") == sse("two")
        got.set()
        assert await client.exactly(5) == b"0\r\n\r\n"
        assert (await result(setup)).outcome is RelayOutcome.COMPLETE


@pytest.mark.parametrize("response", [JSON_ANSWER, SSE_HEAD + STREAM])
async def test_a_dribbling_child(folder: Path, response: bytes) -> None:
    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.dribble(response)
        await peer.gone()

    async with relaying(folder, child) as setup, connected(setup.endpoint) as client:
        answer = await client.ask(GET)
        assert answer.raw == response.partition(b"\r\n\r\n")[2]
        assert (await result(setup)).outcome is RelayOutcome.COMPLETE


async def test_interim_responses_are_stripped(folder: Path) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    async with (
        relaying(folder, saying(interim + JSON_ANSWER), saying(interim, JSON_ANSWER)) as setup,
        connected(setup.endpoint) as client,
    ):
        for _ in range(2):
            answer = await client.ask(GET)
            assert (answer.status, answer.body) == (200, b'{"a":1}')
            assert "link" not in answer.headers


SAID_TWICE = (
    b"X-Request-Id: theirs\r\nX-Accel-Buffering: yes\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
    b"X-Lswap-Model: other\r\n"
)


@pytest.mark.parametrize("answer", [JSON_ANSWER, SSE_HEAD + sse("x") + b"0\r\n\r\n"])
async def test_what_the_server_says_itself_is_said_once(folder: Path, answer: bytes) -> None:
    status, _, rest = answer.partition(b"\r\n")
    response = status + b"\r\n" + SAID_TWICE + rest
    async with relaying(folder, answering(response)) as setup, connected(setup.endpoint) as client:
        for _ in range(3):
            headers = (await client.ask(GET)).headers  # none is there twice, and a new date
            assert (headers["x-request-id"], headers["x-accel-buffering"]) == ("r1", "no")
            assert "x-lswap-model" not in headers


@pytest.mark.parametrize("framing", [b"Content-Length: 0", b"Transfer-Encoding: chunked"])
async def test_an_answer_without_content_has_no_length(folder: Path, framing: bytes) -> None:
    response = b"HTTP/1.1 204 No Content\r\n" + framing + b"\r\n\r\n"
    async with relaying(folder, answering(response)) as setup, connected(setup.endpoint) as client:
        for _ in range(2):
            answer = await client.ask(GET)
            assert answer.status == 204
            assert not {"content-length", "transfer-encoding"} & answer.headers.keys()


@pytest.mark.parametrize("head", [b"204 No Content", b"304 Not Modified\r\nContent-Length: 7"])
async def test_answers_without_a_body(folder: Path, head: bytes) -> None:
    response = b"HTTP/1.1 " + head + b"\r\n\r\n"
    async with relaying(folder, answering(response)) as setup, connected(setup.endpoint) as client:
        for _ in range(2):
            assert (await client.ask(GET)).status == int(head[:3])
        assert setup.child.accepted == 1


@pytest.mark.parametrize("response", [JSON_ANSWER.partition(b"{")[0], SSE_HEAD])
async def test_head_requests(folder: Path, response: bytes) -> None:
    async with relaying(folder, answering(response)) as setup, connected(setup.endpoint) as client:
        for _ in range(2):
            answer = await client.ask(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert answer.status == 200
            assert "content-length" in answer.headers or "transfer-encoding" in answer.headers
        # the parser can't be told that no body follows: a fresh connection each time
        assert setup.child.accepted == 2


async def test_an_empty_body(folder: Path) -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    async with relaying(folder, answering(response)) as setup, connected(setup.endpoint) as client:
        for _ in range(2):
            assert (await client.ask(GET)).body == b""
        assert setup.child.accepted == 1


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_body_that_ends_by_closing(folder: Path, version: bytes) -> None:
    script = saying(b"HTTP/1.1 200 OK\r\n\r\nab", b"cd")
    async with relaying(folder, script) as setup, connected(setup.endpoint) as client:
        answer = await client.ask(b"GET / HTTP/%b\r\nHost: a\r\n\r\n" % version)
        assert answer.body == b"abcd"
        if version == b"1.1":
            assert answer.headers["transfer-encoding"] == "chunked"
            assert (await client.ask(GET)).body == b"abcd"
        assert (await result(setup)).outcome is RelayOutcome.COMPLETE


async def test_http_1_0_clients_get_no_chunks(folder: Path) -> None:
    async with (
        relaying(folder, saying(SSE_HEAD + STREAM)) as setup,
        connected(setup.endpoint) as client,
    ):
        answer = await client.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert answer.body == b"data: one\n\ndata: two\n\ndata: [DONE]\n\n"
        assert answer.headers["connection"] == "close"
        assert "transfer-encoding" not in answer.headers


async def test_http_1_0_clients_keep_alive_for_a_counted_body(folder: Path) -> None:
    async with (
        relaying(folder, answering(JSON_ANSWER)) as setup,
        connected(setup.endpoint) as client,
    ):
        for _ in range(2):
            answer = await client.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (answer.body, answer.headers["connection"]) == (b'{"a":1}', "keep-alive")
        assert (await client.ask(GET)).body == b'{"a":1}'


async def test_a_large_upload(folder: Path) -> None:
    size = 3_000_000
    received = 0

    async def child(upstream: Upstream, peer: Peer) -> None:
        nonlocal received
        received = len(await upstream.request(peer))
        await peer.send(JSON_ANSWER)

    async with relaying(folder, child) as setup, connected(setup.endpoint) as client:
        setup.handler.limit = 2 * size
        body = bytes(size)
        answer = await client.ask(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + body
        )
        assert answer.status == 200
        assert received == size + len(setup.child.requests[0].partition(b"\r\n\r\n")[0]) + 4


async def test_an_early_answer_to_a_large_upload(folder: Path) -> None:
    """The child refuses without reading; its connection is not used again."""
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"

    async def child(upstream: Upstream, peer: Peer) -> None:
        await peer.until(b"\r\n\r\n")
        await peer.send(refusal)
        await peer.gone()

    async with relaying(folder, child) as setup, connected(setup.endpoint) as client:
        size = 20_000_000
        setup.handler.limit = size
        await client.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
        )
        assert (await client.answer()).status == 413
        assert (await result(setup)).outcome is RelayOutcome.COMPLETE
        assert setup.pool.idle == 0


# --- a child that breaks --------------------------------------------------------------------------


async def test_nobody_listens(folder: Path) -> None:
    async with (
        relaying(folder, answering(JSON_ANSWER)) as setup,
        connected(setup.endpoint) as client,
    ):
        setup.handler.endpoint = Endpoint(path=str(folder / "nobody.sock"))
        answer = await client.ask(GET)
        assert answer.json == {"error": "unreachable"}
        assert "nobody.sock" in setup.handler.results[0].error
        # the client's connection is as good as before
        assert (await client.ask(GET)).status == 502


@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\nContent-"])
async def test_a_child_that_dies_before_its_head(folder: Path, part: bytes) -> None:
    async with relaying(folder, saying(part)) as setup, connected(setup.endpoint) as client:
        assert (await client.ask(GET)).json == {"error": "died before head"}
        ended = setup.handler.results[0]
        assert (ended.started, ended.status) == (False, 0)


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ],
)
async def test_a_child_that_speaks_garbage(folder: Path, garbage: bytes) -> None:
    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(garbage)
        await peer.gone()

    async with relaying(folder, child) as setup, connected(setup.endpoint) as client:
        assert (await client.ask(GET)).json == {"error": "bad upstream"}
        assert (await client.ask(GET)).status == 502


async def test_a_child_that_dies_between_events_ends_the_stream_with_an_error(folder: Path) -> None:
    async with (
        relaying(folder, saying(SSE_HEAD, sse("one"))) as setup,
        connected(setup.endpoint) as client,
    ):
        answer = await client.ask(GET)
        events = answer.body.split(b"\n\n")
        assert events[0] == b"data: one"
        assert "closed the connection" in json.loads(events[1].removeprefix(b"data: "))["error"]
        assert events[2] == b""
        ended = await result(setup)
        assert (ended.outcome, ended.started) == (RelayOutcome.DIED_MIDSTREAM, True)
        # whole chunks: the client's connection lives on
        assert (await client.ask(GET)).status == 200


async def test_a_child_that_dies_right_after_its_head(folder: Path) -> None:
    async with relaying(folder, saying(SSE_HEAD)) as setup, connected(setup.endpoint) as client:
        answer = await client.ask(GET)
        assert answer.body.startswith(b'data: {"error"')


async def test_an_unfinished_event_is_closed_before_the_error(folder: Path) -> None:
    script = saying(SSE_HEAD + b"9\r\ndata: par\r\n")
    async with relaying(folder, script) as setup, connected(setup.endpoint) as client:
        assert b"data: par\n\ndata: {" in (await client.ask(GET)).body


async def test_http_1_0_streams_get_the_error_event_too(folder: Path) -> None:
    async with (
        relaying(folder, saying(SSE_HEAD, sse("one"))) as setup,
        connected(setup.endpoint) as client,
    ):
        answer = await client.ask(b"GET / HTTP/1.0\r\n\r\n")
        assert answer.body.startswith(b'data: one\n\ndata: {"error"')


@pytest.mark.parametrize(
    "part",
    [
        SSE_HEAD + sse("one")[:-4],
        SSE_HEAD + sse("one") + b"1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nabc",
        SSE_HEAD.replace(b"text/event-stream", b"application/json") + sse("one"),
    ],
    ids=["in a chunk", "in a chunk size", "counted", "no events"],
)
async def test_where_no_event_fits_the_client_sees_a_broken_answer(
    folder: Path, part: bytes
) -> None:
    async with relaying(folder, saying(part)) as setup, connected(setup.endpoint) as client:
        await client.send(GET)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.answer()
        assert (await result(setup)).outcome is RelayOutcome.DIED_MIDSTREAM


async def test_a_truncated_answer_to_http_1_0_is_a_reset(folder: Path) -> None:
    """There an end of file would look like a whole answer."""
    script = saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    async with relaying(folder, script) as setup, connected(setup.endpoint) as client:
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionError):
            await client.answer()


@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\n", b"junk"])
async def test_nothing_beyond_a_chunked_answer_reaches_the_client(
    folder: Path, extra: bytes
) -> None:
    head = SSE_HEAD.replace(b"text/event-stream", b"application/json")
    script = saying(head, b"2\r\n{}\r\n0\r\n\r\n" + extra)
    async with relaying(folder, script) as setup, connected(setup.endpoint) as client:
        await client.send(GET)
        await client.head()
        with suppress(ConnectionError):
            assert extra not in await client.rest()


@pytest.mark.parametrize("together", [True, False])
async def test_nothing_beyond_a_counted_answer_reaches_the_client(
    folder: Path, together: bool
) -> None:
    head, _, body = JSON_ANSWER.partition(b"\r\n\r\n")
    head += b"\r\n\r\n"
    pieces = [head + body + b"extra"] if together else [head, body + b"extra"]
    script = saying(*pieces)
    async with relaying(folder, script) as setup, connected(setup.endpoint) as client:
        for _ in range(2):
            assert (await client.ask(GET)).body == b'{"a":1}'
        assert setup.child.accepted == 2


# --- a lease that is revoked ----------------------------------------------------------------------

EVENT = b'data: {"error":"unloaded"}\n\n'


async def waiting_child(upstream: Upstream, peer: Peer) -> None:
    """Answer nothing."""
    await upstream.request(peer)
    await peer.gone()


def holding(data: bytes) -> Script:
    """Return a script that sends the data and waits."""

    async def script(child: Upstream, peer: Peer) -> None:
        await child.request(peer)
        await peer.send(data)
        await peer.gone()

    return script


async def asked(setup: Setup, client: Client) -> Exchange:
    """Send a request and wait until the child has it."""
    arrived = asyncio.Event()
    original = setup.child.request

    async def request(peer: Peer) -> bytes:
        data = await original(peer)
        arrived.set()
        return data

    setup.child.request = request  # type: ignore[method-assign]
    await client.send(GET)
    await eventually(arrived)
    return setup.handler.exchanges[-1]


async def test_a_cut_before_the_first_byte_leaves_the_answer_open(folder: Path) -> None:
    async with relaying(folder, waiting_child) as setup, connected(setup.endpoint) as client:
        exchange = await asked(setup, client)
        exchange.cut(EVENT, "unloaded")
        exchange.cut(EVENT, "twice does nothing")
        answer = await client.answer()
        assert answer.json == {"error": "cut"}
        ended = await result(setup)
        assert (ended.outcome, ended.started, ended.error) == (RelayOutcome.CUT, False, "unloaded")


async def test_a_cut_between_events_ends_the_stream(folder: Path) -> None:
    async with (
        relaying(folder, holding(SSE_HEAD + sse("one"))) as setup,
        connected(setup.endpoint) as client,
    ):
        exchange = await asked(setup, client)
        await client.head()
        assert await client.until(b"\n\n\r\n") == sse("one")
        exchange.cut(EVENT, "unloaded")
        assert await client.until(b"0\r\n\r\n") == b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVENT), EVENT)
        ended = await result(setup)
        assert (ended.outcome, ended.started) == (RelayOutcome.CUT, True)
        await client.send(GET)
        assert (await client.head()).status == 200


async def test_a_cut_in_a_chunk_waits_for_its_end(folder: Path) -> None:
    go_on = asyncio.Event()

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(SSE_HEAD + sse("one")[:8])
        await eventually(go_on)
        await peer.send(sse("one")[8:])
        await peer.gone()

    async with relaying(folder, child) as setup, connected(setup.endpoint) as client:
        exchange = await asked(setup, client)
        await client.head()
        await client.exactly(8)
        exchange.cut(EVENT, "unloaded")
        go_on.set()
        assert (await client.until(b"0\r\n\r\n")).endswith(EVENT + b"\r\n0\r\n\r\n")
        assert (await result(setup)).outcome is RelayOutcome.CUT


async def test_a_cut_in_a_chunk_that_never_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamaswap_py.proxy.relay._CUT_PATIENCE", 0.05)
    async with (
        relaying(folder, holding(SSE_HEAD + sse("one")[:8])) as setup,
        connected(setup.endpoint) as client,
    ):
        exchange = await asked(setup, client)
        await client.head()
        await client.exactly(8)
        exchange.cut(EVENT, "unloaded")
        await client.gone()
        assert (await result(setup)).outcome is RelayOutcome.CUT


async def test_a_cut_in_a_document_aborts(folder: Path) -> None:
    part = JSON_ANSWER[:-3]
    async with relaying(folder, holding(part)) as setup, connected(setup.endpoint) as client:
        exchange = await asked(setup, client)
        await client.head()
        exchange.cut(EVENT, "unloaded")
        await client.gone()
        ended = await result(setup)
        assert (ended.outcome, ended.started) == (RelayOutcome.CUT, True)


# --- a stream that was begun before the child answered --------------------------------------------


async def test_a_childs_stream_continues_one_that_was_begun(folder: Path) -> None:
    results: list[RelayResult] = []
    async with relaying(folder, saying(SSE_HEAD + sse("one"), sse("two"), b"0\r\n\r\n")) as setup:

        async def handler(exchange: Exchange) -> None:
            await exchange.start(200, "text/event-stream")
            await exchange.write(b": loading\n\n")
            request = UpstreamRequest("GET", "/", [(b"host", b"a")])
            results.append(await exchange.relay(setup.child.endpoint, request, pool=setup.pool))

        async with serving(handler) as served, connected(served.endpoint) as client:
            for _ in range(2):
                assert (await client.ask(GET)).body == b": loading\n\ndata: one\n\ndata: two\n\n"
            answer = await client.ask(b"GET / HTTP/1.0\r\n\r\n")
            assert answer.body == b": loading\n\ndata: one\n\ndata: two\n\n"
        assert [r.outcome for r in results] == [RelayOutcome.COMPLETE] * 3
        assert [r.refusal for r in results] == [None] * 3


async def test_a_refusal_after_a_stream_was_begun_is_handed_back(folder: Path) -> None:
    refusal = b"HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    results: list[RelayResult] = []
    async with relaying(folder, saying(refusal)) as setup:

        async def handler(exchange: Exchange) -> None:
            await exchange.start(200, "text/event-stream")
            request = UpstreamRequest("GET", "/", [(b"host", b"a")])
            ended = await exchange.relay(setup.child.endpoint, request, pool=setup.pool)
            results.append(ended)
            await exchange.write(error_event("refused"))
            await exchange.finish()

        async with serving(handler) as served, connected(served.endpoint) as client:
            assert (await client.ask(GET)).body == error_event("refused")
        assert (results[0].outcome, results[0].status) == (RelayOutcome.COMPLETE, 400)
        assert results[0].refusal == b"{}"


async def test_a_child_that_dies_after_a_stream_was_begun(folder: Path) -> None:
    results: list[RelayResult] = []
    async with upstream(folder, saying(b"")) as child, UpstreamPool() as pool:

        async def handler(exchange: Exchange) -> None:
            await exchange.start(200, "text/event-stream")
            request = UpstreamRequest("GET", "/", [(b"host", b"a")])
            results.append(
                await exchange.relay(child.endpoint, request, pool=pool, error_event=error_event)
            )
            await exchange.write(error_event("gone"))
            await exchange.finish()

        async with serving(handler) as served, connected(served.endpoint) as client:
            assert (await client.ask(GET)).body == error_event("gone")
        assert (results[0].outcome, results[0].started) == (RelayOutcome.DIED_BEFORE_HEAD, True)
