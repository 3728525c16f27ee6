"""What a handler can do with a request: read it, and answer it locally."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.errors import ApiError
from llamaswap_py.proxy import BodyTooLarge, Exchange
from llamaswap_py.proxy.dating import date_line

from .harness import connected, eventually, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"


async def echo(exchange: Exchange) -> None:
    """Answer with the body, or say why not."""
    try:
        body = await exchange.read_body(10)
    except BodyTooLarge as error:
        exchange.respond(error.status, error.code.encode())
    else:
        exchange.respond(200, body.join(), "text/plain")


async def test_a_body_with_a_length() -> None:
    async with serving(echo) as served, connected(served.endpoint) as client:
        answer = await client.ask(POST + b"Content-Length: 5\r\n\r\nhello")
        assert (answer.status, answer.body) == (200, b"hello")
        assert answer.headers == {"content-length": "5", "content-type": "text/plain"}


async def test_a_chunked_body_in_many_pieces() -> None:
    async with serving(echo) as served, connected(served.endpoint) as client:
        await client.dribble(
            POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
        )
        assert (await client.answer()).body == b"hello"


async def test_an_announced_body_that_is_too_large_is_refused_before_it_comes() -> None:
    async with serving(echo) as served, connected(served.endpoint) as client:
        await client.send(POST + b"Content-Length: 1000000\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.body) == (413, b"body_too_large")
        assert answer.headers["connection"] == "close"
        assert await client.rest() == b""


async def test_a_client_that_still_sends_reads_the_refusal() -> None:
    """Closing with unread bytes would be a reset, and the answer lost."""
    async with serving(echo) as served, connected(served.endpoint) as client:
        await client.send(POST + b"Content-Length: 10000000\r\n\r\n" + b"x" * 3_000_000)
        assert (await client.answer()).status == 413


async def test_a_chunked_body_is_refused_when_it_crosses_the_limit() -> None:
    async with serving(echo) as served, connected(served.endpoint) as client:
        await client.send(
            POST + b"Transfer-Encoding: chunked\r\n\r\n6\r\nhello \r\n6\r\nworld!\r\n"
        )
        answer = await client.answer()
        assert answer.status == 413
        assert answer.headers["connection"] == "close"


async def test_a_small_rest_is_thrown_away_and_the_connection_kept() -> None:
    async with serving(echo) as served, connected(served.endpoint) as client:
        await client.send(POST + b"Content-Length: 100\r\n\r\n" + b"x" * 60)
        answer = await client.answer()
        assert answer.status == 413
        assert "connection" not in answer.headers
        await client.send(b"x" * 40)
        assert (await client.ask(POST + b"Content-Length: 2\r\n\r\nhi")).body == b"hi"


async def test_a_body_that_nobody_reads() -> None:
    async def ignore(exchange: Exchange) -> None:
        exchange.respond(404)

    async with serving(ignore) as served, connected(served.endpoint) as client:
        for _ in range(2):
            answer = await client.ask(POST + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000)
            assert answer.status == 404
            assert "connection" not in answer.headers


async def test_100_continue_is_sent_when_the_body_is_wanted() -> None:
    wanted = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await wanted.wait()
        await echo(exchange)

    async with serving(handler) as served, connected(served.endpoint) as client:
        await client.send(POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        wanted.set()
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"hello")
        assert (await client.answer()).body == b"hello"
        # and not again for the next request
        assert (await client.ask(POST + b"Content-Length: 2\r\n\r\nhi")).body == b"hi"


async def test_no_100_continue_when_the_body_is_refused() -> None:
    async with serving(echo) as served, connected(served.endpoint) as client:
        await client.send(POST + b"Expect: 100-continue\r\nContent-Length: 11\r\n\r\n")
        answer = await client.answer()
        assert answer.status == 413
        assert answer.headers["connection"] == "close"
        assert await client.rest() == b""


async def test_no_100_continue_when_the_body_is_already_here() -> None:
    async with serving(echo) as served, connected(served.endpoint) as client:
        request = POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"
        assert (await client.ask(request)).status == 200


async def test_pieces_arrive_as_they_come() -> None:
    seen = asyncio.Queue[bytes]()

    async def handler(exchange: Exchange) -> None:
        async for piece in exchange.pieces():
            seen.put_nowait(piece)
        exchange.respond(200)

    async with serving(handler) as served, connected(served.endpoint) as client:
        await client.send(POST + b"Content-Length: 6\r\n\r\nabc")
        assert await asyncio.wait_for(seen.get(), 60) == b"abc"
        await client.send(b"def")
        assert await asyncio.wait_for(seen.get(), 60) == b"def"
        assert (await client.answer()).status == 200


async def test_a_slow_reader_of_pieces_makes_the_client_wait() -> None:
    size = 64 * 2**20
    go_on = asyncio.Event()
    total = 0

    async def handler(exchange: Exchange) -> None:
        nonlocal total
        async for piece in exchange.pieces():
            await go_on.wait()
            total += len(piece)
        exchange.respond(200)

    async with serving(handler) as served, connected(served.endpoint) as client:
        client.writer.transport.set_write_buffer_limits(high=2**16)
        await client.send(POST + b"Content-Length: %d\r\n\r\n" % size)
        client.writer.write(bytes(size))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.writer.drain(), 0.3)
        go_on.set()
        assert (await client.answer()).status == 200
        assert total == size


async def test_head_gets_headers_only() -> None:
    async with serving(echo) as served, connected(served.endpoint) as client:
        answer = await client.ask(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.headers["content-length"] == "0"
        assert (await client.ask(GET)).status == 200


async def test_answers_without_a_body() -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.respond(204, b"ignored")

    async with serving(handler) as served, connected(served.endpoint) as client:
        answer = await client.ask(GET)
        assert (answer.status, answer.headers) == (204, {})
        assert (await client.ask(GET)).status == 204


async def stream(exchange: Exchange) -> None:
    """Stream three words."""
    exchange.response_lines += b"x-a: b\r\n"
    await exchange.start(200, "text/event-stream")
    for word in (b"one ", b"", b"two ", b"three"):
        await exchange.write(word)
    await exchange.finish()


async def test_a_local_stream_is_chunked_and_keeps_the_connection() -> None:
    async with serving(stream) as served, connected(served.endpoint) as client:
        for _ in range(2):
            answer = await client.ask(GET)
            assert answer.body == b"one two three"
            assert answer.headers["transfer-encoding"] == "chunked"
            assert answer.headers["x-a"] == "b"
            assert answer.headers["x-accel-buffering"] == "no"


async def test_a_local_stream_for_http_1_0_ends_by_closing() -> None:
    async with serving(stream) as served, connected(served.endpoint) as client:
        answer = await client.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert answer.body == b"one two three"
        assert "transfer-encoding" not in answer.headers
        assert answer.headers["connection"] == "close"


async def test_http_1_0_keep_alive_is_confirmed() -> None:
    async with serving(echo) as served, connected(served.endpoint) as client:
        request = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        for _ in range(2):
            assert (await client.ask(request)).headers["connection"] == "keep-alive"
        answer = await client.ask(b"GET / HTTP/1.0\r\n\r\n")
        assert answer.headers["connection"] == "close"
        assert await client.rest() == b""


async def test_a_stream_waits_for_a_client_that_does_not_read() -> None:
    written = 0
    done = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        nonlocal written
        await exchange.start(200, "text/plain")
        for _ in range(640):
            await exchange.write(bytes(100_000))
            written += 1
        await exchange.finish()
        done.set()

    async with serving(handler) as served, connected(served.endpoint) as client:
        await client.send(GET)
        await client.head()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(done.wait(), 0.3)
        assert written < 640
        while not done.is_set():
            await asyncio.wait_for(client.reader.read(2**20), 60)


async def test_counters_and_repr() -> None:
    exchanges: list[Exchange] = []

    async def handler(exchange: Exchange) -> None:
        exchanges.append(exchange)
        assert repr(exchange) == "<Exchange GET / open>"
        assert exchange.peer == "127.0.0.1"
        exchange.respond(200, b"hello")
        assert repr(exchange) == "<Exchange GET / finished>"

    async with serving(handler) as served, connected(served.endpoint) as client:
        await client.ask(GET)
        assert exchanges[0].bytes_sent == len(
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-type: application/json\r\n"
            + date_line()
            + b"\r\nhello"
        )


async def test_a_unix_client_is_called_unix(folder: Path) -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.respond(200, exchange.peer.encode())

    async with (
        serving(handler, path=folder / "s.sock") as served,
        connected(served.endpoint) as client,
    ):
        assert (await client.ask(GET)).body == b"unix"


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_handler_that_fails(streaming: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(exchange: Exchange) -> None:
        if streaming:
            await exchange.start(200, "text/plain")
            await exchange.write(b"half")
        raise ApiError("internal", "a bug")

    async with serving(handler) as served, connected(served.endpoint) as client:
        await client.send(GET)
        if streaming:
            await client.head()
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await client.until(b"0\r\n\r\n")
        else:
            assert (await client.answer()).status == 500
            assert (await client.ask(GET)).status == 500
    assert "a bug" in caplog.text


async def test_a_handler_that_forgets_to_answer() -> None:
    async def handler(exchange: Exchange) -> None: ...

    async with serving(handler) as served, connected(served.endpoint) as client:
        assert (await client.ask(GET)).status == 500


async def test_writing_to_a_client_that_is_gone_does_nothing() -> None:
    started, cleaned = asyncio.Event(), asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            exchange.respond(200, b"nobody")
            await exchange.finish()
            cleaned.set()

    async with serving(handler) as served:
        async with connected(served.endpoint) as client:
            await client.send(GET)
            await eventually(started)
        await eventually(cleaned)
