"""One client connection: order, limits, keep-alive, half-closes and departures."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, cast

import pytest

from llamaswap_py.proxy import Exchange, WireLimits
from llamaswap_py.proxy.dating import date_line
from llamaswap_py.proxy.sockets import Input

from .harness import (
    JSON_ANSWER,
    PATIENCE,
    SSE_HEAD,
    Peer,
    Upstream,
    answering,
    connected,
    eventually,
    relaying,
    serving,
    sse,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

DATE = re.compile(rb"date: [^\r]*\r\n")
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"


def get(path: str, extra: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (path.encode(), extra)


async def tell(exchange: Exchange) -> None:
    """Answer with the path and the body."""
    body = await exchange.read_body(2**20)
    exchange.respond(200, exchange.head.path.encode() + body.join())


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving(tell) as served, connected(served.endpoint) as client:
        post = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
        await client.send(get("/1") + post + get("/3") + post)
        assert [(await client.answer()).body for _ in range(4)] == [b"/1", b"/phi", b"/3", b"/phi"]


async def test_only_the_last_of_pipelined_answers_closes() -> None:
    async with serving(tell) as served, connected(served.endpoint) as client:
        await client.send(get("/1") + get("/2", b"Connection: close\r\n"))
        assert "connection" not in (await client.answer()).headers
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.rest() == b""


async def test_a_pipelined_request_waits_for_the_answer_before_it() -> None:
    started = asyncio.Queue[str]()
    release = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        started.put_nowait(exchange.head.path)
        if exchange.head.path == "/1":
            await release.wait()
        exchange.respond(200, exchange.head.path.encode())

    async with serving(handler) as served, connected(served.endpoint) as client:
        await client.send(get("/1"))
        assert await started.get() == "/1"
        await client.send(get("/2") + get("/3"))
        release.set()
        assert [(await client.answer()).body for _ in range(3)] == [b"/1", b"/2", b"/3"]


async def test_a_flood_of_pipelined_requests_is_held_back_and_answered() -> None:
    count = 20_000
    started, release = asyncio.Event(), asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        started.set()
        await release.wait()
        exchange.respond(200)

    async with serving(handler) as served, connected(served.endpoint) as client:
        client.writer.transport.set_write_buffer_limits(high=2**26)
        client.writer.write(GET * count)
        await eventually(started)
        release.set()
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n" + date_line() + b"\r\n"
        data = await client.exactly(len(answer) * count)
        assert DATE.sub(b"", data) == DATE.sub(b"", answer) * count


async def test_a_bad_request_after_a_good_one_in_the_same_piece() -> None:
    async with serving(tell) as served, connected(served.endpoint) as client:
        await client.send(get("/1") + b"BAD\r\n\r\n")
        assert (await client.answer()).body == b"/1"
        answer = await client.answer()
        assert answer.status == 400
        assert answer.headers["connection"] == "close"
        assert await client.rest() == b""


async def test_bytes_after_connection_close_are_ignored() -> None:
    async with serving(tell) as served, connected(served.endpoint) as client:
        await client.send(get("/1", b"Connection: close\r\n") + b"junk")
        answer = await client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"/1", "close")
        assert await client.rest() == b""


async def test_the_connection_survives_a_local_error() -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.read_body(100)
        exchange.respond(404 if exchange.head.path == "/none" else 200)

    async with serving(handler) as served, connected(served.endpoint) as client:
        post = b"POST /none HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"
        assert (await client.ask(post)).status == 404
        assert (await client.ask(GET)).status == 200


async def test_a_head_that_is_too_large() -> None:
    async with serving(tell) as served, connected(served.endpoint) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 200_000)
        answer = await client.answer()
        assert answer.status == 431
        assert answer.json == {"error": "the request head is larger than 65536 bytes"}
        assert answer.headers["connection"] == "close"


async def test_a_bad_chunk_in_a_body_that_is_awaited() -> None:
    async with serving(tell) as served, connected(served.endpoint) as client:
        await client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await client.send(b"zz\r\n")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")


async def test_a_bad_chunk_in_a_body_that_is_being_thrown_away() -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.respond(200)

    async with serving(handler) as served, connected(served.endpoint) as client:
        await client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n")
        assert (await client.answer()).status == 200
        assert await client.rest() == b""


# --- timeouts -------------------------------------------------------------------------------------


async def test_a_slow_head_is_given_up() -> None:
    async with (
        serving(tell, limits=WireLimits(head_read=0.05)) as served,
        connected(served.endpoint) as client,
    ):
        await client.send(b"GET / HTTP/1.1\r\nHost:")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert await client.rest() == b""


async def test_a_slow_second_head_is_given_up() -> None:
    async with (
        serving(tell, limits=WireLimits(head_read=0.05)) as served,
        connected(served.endpoint) as client,
    ):
        await client.send(get("/1") + b"GET / HTTP/1.1\r\nHost:")
        assert (await client.answer()).status == 200
        assert (await client.answer()).status == 408


async def test_an_idle_connection_is_closed_without_a_word() -> None:
    async with serving(tell, limits=WireLimits(idle=0.05)) as served:
        async with connected(served.endpoint) as client:
            assert await client.rest() == b""
        async with connected(served.endpoint) as client:
            assert (await client.ask(GET)).status == 200
            assert await client.rest() == b""


async def test_a_stalled_body_is_given_up() -> None:
    async with (
        serving(tell, limits=WireLimits(body_idle=0.05)) as served,
        connected(served.endpoint) as client,
    ):
        await client.send(POST + b"Content-Length: 10\r\n\r\nabc")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")


async def test_nobody_is_told_of_a_body_that_came_after_its_answer() -> None:
    async def refuse(exchange: Exchange) -> None:
        exchange.respond(403)

    limits = WireLimits(body_idle=0.05)
    async with serving(refuse, limits=limits) as served, connected(served.endpoint) as client:
        for _ in range(2):  # the first head is parsed, the second is known
            await client.send(POST + b"Content-Length: 4\r\n\r\n")
            assert (await client.answer()).status == 403
            await client.send(b"late")
            await asyncio.sleep(0.2)
        assert (await client.ask(GET)).status == 403
        client.half_close()
        assert await client.rest() == b""


async def test_no_limit_on_how_long_an_answer_takes() -> None:
    release = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await exchange.read_body(10)
        await release.wait()
        exchange.respond(200)

    limits = WireLimits(head_read=0.02, idle=0.02, body_idle=0.02)
    async with serving(handler, limits=limits) as served, connected(served.endpoint) as client:
        await client.send(POST + b"Content-Length: 2\r\n\r\nhi")
        asyncio.get_running_loop().call_later(0.2, release.set)
        assert (await client.answer()).status == 200


# --- half-closes and departures -------------------------------------------------------------------


@pytest.mark.parametrize("unix", [True, False])
async def test_a_client_that_half_closes_gets_its_answers(folder: Path, unix: bool) -> None:
    """As `printf … | nc` does; the second request was pipelined."""
    path = folder / "s.sock" if unix else None
    released = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await released.wait()
        exchange.respond(200, exchange.head.path.encode())

    async with serving(handler, path=path) as served, connected(served.endpoint) as client:
        await client.send(get("/1") + get("/2"))
        client.half_close()
        asyncio.get_running_loop().call_later(0.1, released.set)
        assert (await client.answer()).body == b"/1"
        assert (await client.answer()).body == b"/2"
        assert await client.rest() == b""


async def test_a_late_half_close_on_this_host_is_no_departure() -> None:
    started, released = asyncio.Event(), asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        started.set()
        await released.wait()
        exchange.respond(200)

    async with serving(handler) as served, connected(served.endpoint) as client:
        await client.send(GET)
        await eventually(started)
        loop = asyncio.get_running_loop()
        loop.call_later(0.1, client.half_close)
        loop.call_later(0.2, released.set)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("window", [-1.0, 30.0])
async def test_where_nobody_can_know_the_moment_decides(
    monkeypatch: pytest.MonkeyPatch, window: float
) -> None:
    """Over a network a half-close comes with the request; a departure comes later."""
    monkeypatch.setattr("llamaswap_py.proxy.client.client_is_gone", lambda _: None)
    monkeypatch.setattr("llamaswap_py.proxy.client._HALF_CLOSE_WINDOW", window)
    started, released, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        started.set()
        try:
            await released.wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        exchange.respond(200)

    async with serving(handler) as served, connected(served.endpoint) as client:
        await client.send(GET)
        await eventually(started)
        client.half_close()
        if window > 0:
            asyncio.get_running_loop().call_later(0.05, released.set)
            assert (await client.answer()).status == 200
        else:
            await eventually(cancelled)


async def test_a_half_close_never_reaches_the_child(folder: Path) -> None:
    seen_eof = asyncio.Event()
    go_on = asyncio.Event()

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(SSE_HEAD + sse("one"))
        await go_on.wait()
        if peer.reader.at_eof():
            seen_eof.set()
        await peer.send(sse("two") + b"0\r\n\r\n")

    async with relaying(folder, child) as setup, connected(setup.endpoint) as client:
        await client.send(GET)
        client.half_close()
        await client.until(b"data: one\n\n\r\n")
        go_on.set()
        assert (await client.until(b"0\r\n\r\n")).endswith(b"data: two\n\n\r\n0\r\n\r\n")
        assert not seen_eof.is_set()


async def test_a_half_close_in_the_middle_of_a_body() -> None:
    async with serving(tell) as served, connected(served.endpoint) as client:
        await client.send(POST + b"Content-Length: 10\r\n\r\nabc")
        client.half_close()
        assert (await client.answer()).status == 400


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("unix", [True, False])
async def test_a_client_that_leaves_cancels_the_handler(folder: Path, unix: bool, how: str) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    path = folder / "s.sock" if unix else None
    async with serving(handler, path=path) as served, connected(served.endpoint) as client:
        await client.send(GET)
        await eventually(started)
        getattr(client, how)()
        await eventually(cancelled)


async def test_a_client_that_leaves_in_the_middle_of_its_body() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        started.set()
        try:
            await exchange.read_body(100)
        finally:
            ended.set()

    async with serving(handler) as served, connected(served.endpoint) as client:
        await client.send(POST + b"Content-Length: 10\r\n\r\nabc")
        await eventually(started)
        client.reset()
        await eventually(ended)


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_client_that_leaves_stops_the_child(folder: Path, streaming: bool) -> None:
    """Also when nothing is being written: the child reads a prompt, or thinks."""
    asked, hung_up = asyncio.Event(), asyncio.Event()

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        asked.set()
        if streaming:
            await peer.send(SSE_HEAD + sse("one"))
        await peer.gone()
        hung_up.set()

    async with relaying(folder, child) as setup:
        async with connected(setup.endpoint) as client:
            await client.send(GET)
            await eventually(asked)
            if streaming:
                await client.until(b"\n\n\r\n")
            client.close()
            await eventually(hung_up)
        await eventually(setup.handler.cancelled)
        assert setup.pool.idle == 0


async def test_a_client_that_leaves_while_the_child_writes(folder: Path) -> None:
    """No write may touch a transport that is closed: uvloop raises there."""

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(SSE_HEAD)
        while True:
            await peer.send(sse("x" * 1000) * 50)

    loop = asyncio.get_running_loop()
    problems: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: problems.append(context))
    async with relaying(folder, child) as setup:
        for how in ("close", "reset") * 5:
            setup.handler.cancelled.clear()
            async with connected(setup.endpoint) as client:
                await client.send(GET)
                await client.exactly(100_000)
                getattr(client, how)()
                await eventually(setup.handler.cancelled)
    assert not problems


async def test_a_client_that_stops_reading_stops_the_child(folder: Path) -> None:
    sent = 0
    blocked = asyncio.Event()

    async def child(upstream: Upstream, peer: Peer) -> None:
        nonlocal sent
        await upstream.request(peer)
        peer.writer.transport.set_write_buffer_limits(high=2**16)
        await peer.send(SSE_HEAD)
        piece = sse("x" * 60_000)
        while sent < 400:
            peer.writer.write(piece)
            sent += 1
            drain = asyncio.ensure_future(peer.writer.drain())
            done, _ = await asyncio.wait([drain], timeout=0.3)
            if not done:
                blocked.set()
            await asyncio.wait_for(drain, PATIENCE)
        await peer.send(b"0\r\n\r\n")

    async with relaying(folder, child) as setup, connected(setup.endpoint) as client:
        await client.send(GET)
        await eventually(blocked)
        assert sent < 400
        answer = await client.answer()
        assert len(answer.body) == 400 * len("data: \n\n" + "x" * 60_000)
        await eventually(setup.handler.finished)


async def test_a_client_that_stops_reading_and_leaves(folder: Path) -> None:
    paused, hung_up = asyncio.Event(), asyncio.Event()

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        peer.writer.transport.set_write_buffer_limits(high=2**16)
        await peer.send(SSE_HEAD)
        try:
            while True:
                peer.writer.write(sse("x" * 60_000))
                drain = asyncio.ensure_future(peer.writer.drain())
                if not (await asyncio.wait([drain], timeout=0.3))[0]:
                    paused.set()
                await drain
        except ConnectionError:
            hung_up.set()

    async with relaying(folder, child) as setup, connected(setup.endpoint) as client:
        await client.send(GET)
        await eventually(paused)
        client.reset()
        await eventually(hung_up)
        await eventually(setup.handler.cancelled)


async def test_a_client_that_takes_nothing_is_given_up_and_a_slow_one_is_not(folder: Path) -> None:
    """It would hold its slot of the model for ever; what the slow one takes, however little,
    counts."""
    paused, hung_up = asyncio.Event(), asyncio.Event()

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        peer.writer.transport.set_write_buffer_limits(high=2**16)
        await peer.send(SSE_HEAD)
        try:
            while True:
                peer.writer.write(sse("x" * 60_000))
                drain = asyncio.ensure_future(peer.writer.drain())
                if not (await asyncio.wait([drain], timeout=0.3))[0]:
                    paused.set()
                await drain
        except ConnectionError:
            hung_up.set()

    limits = WireLimits(stall=0.5)
    async with relaying(folder, child, limits=limits) as setup, connected(setup.endpoint) as client:
        await client.send(GET)
        await client.exactly(8_000_000)  # more than all buffers hold: it was paused on the way
        assert not hung_up.is_set()
        await eventually(paused)
        await eventually(hung_up)
        await eventually(setup.handler.cancelled)


async def test_many_requests_on_one_connection(folder: Path) -> None:
    async with (
        relaying(folder, answering(JSON_ANSWER)) as setup,
        connected(setup.endpoint) as client,
    ):
        for _ in range(250):
            assert (await client.ask(GET)).status == 200
        # a child's connection is used 99 times
        assert setup.child.accepted == 3


async def test_a_large_body_lets_others_have_their_turn() -> None:
    """One large piece in a turn of the loop, however much the kernel has ready."""
    reads: list[str] = []

    class Transport:
        def pause_reading(self) -> None:
            reads.append("pause")

        def resume_reading(self) -> None:
            reads.append("resume")

        def is_closing(self) -> bool:
            return False

    taken = Input(asyncio.get_running_loop())
    taken.transport = cast("asyncio.Transport", Transport())
    taken.took_much()
    assert reads == ["pause"]
    await asyncio.sleep(0)
    assert reads == ["pause", "resume"]
    taken.took_much()
    taken.pause()  # for another reason, which holds on
    await asyncio.sleep(0)
    assert reads == ["pause", "resume", "pause"]
    taken.resume()
    assert reads == ["pause", "resume", "pause", "resume"]
    taken.took_much()
    taken.pause()
    taken.resume()
    assert reads[4:] == ["pause"]
    await asyncio.sleep(0)
    assert reads[4:] == ["pause", "resume"]
