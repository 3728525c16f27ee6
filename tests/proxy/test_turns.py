"""No connection holds the event loop: what one gets done in a turn is counted, not timed."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from llamaswap_py.proxy import Exchange
from llamaswap_py.proxy.client import ClientConnection
from tests.proxy.harness import JSON_ANSWER, answering, connected, relaying, serving

pytestmark = pytest.mark.anyio
REQUEST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = REQUEST[:-2] + b"Connection: close\r\n\r\n"
MANY = 20_000
IN_A_TURN = 32


class Counting:
    """Answers at once; counts requests in each turn of the loop."""

    def __init__(self) -> None:
        self.count = self.most = 0
        self.buffered = 0
        self._before = 0

    def watch(self) -> None:
        self.most = max(self.most, self.count - self._before)
        self._before = self.count
        asyncio.get_running_loop().call_soon(self.watch)

    async def __call__(self, exchange: Exchange) -> None:
        self.count += 1
        exchange.respond(200, b"{}" * 100)
        left = exchange.connection.transport.get_write_buffer_size()
        self.buffered = max(self.buffered, left)


async def test_requests_that_come_together_are_not_answered_in_one_turn() -> None:
    handler = Counting()
    async with serving(handler) as served, connected(served.endpoint) as client:
        handler.watch()
        reading = asyncio.create_task(client.rest())
        await client.send(REQUEST * MANY + LAST)
        answers = await reading
        assert answers.count(b"HTTP/1.1 200 OK") == handler.count == MANY + 1
        assert 0 < handler.most <= IN_A_TURN


async def test_answers_that_nobody_reads_hold_the_requests_back() -> None:
    handler = Counting()
    async with serving(handler) as served, connected(served.endpoint) as client:
        sending = asyncio.create_task(client.send(REQUEST * MANY + LAST))
        while not handler.buffered:  # noqa: ASYNC110 - the sockets take some
            await asyncio.sleep(0)
        assert (await client.rest()).count(b"HTTP/1.1 200 OK") == MANY + 1
        await sending
        assert handler.buffered < 2**17


async def test_an_odd_chunk_of_a_child_is_its_fault() -> None:
    """Nothing has reached the client: it can have an answer that says so."""
    head = JSON_ANSWER.partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
    async with (
        relaying(None, answering(head + b"zz\r\n{}\r\n")) as setup,
        connected(setup.endpoint) as client,
    ):
        answer = await client.ask(REQUEST)
        assert (answer.status, answer.json) == (502, {"error": "bad upstream"})
        assert setup.handler.results[0].status == 0


async def test_requests_that_come_too_early_keep_their_order() -> None:
    """Whatever the loop does between two of them: the bytes go to the parser as they came."""
    handler = Counting()
    targets = [f"/{number}" for number in range(MANY)]
    seen: list[str] = []

    async def answer(exchange: Exchange) -> None:
        seen.append(exchange.head.path)
        await handler(exchange)

    async with serving(answer) as served, connected(served.endpoint) as client:
        reading = asyncio.create_task(client.rest())
        for at in range(0, MANY, 100):
            some = targets[at : at + 100]
            await client.send(b"".join(REQUEST.replace(b"/livez", one.encode()) for one in some))
            await asyncio.sleep(0)
        await client.send(LAST)
        await reading
    assert seen == [*targets, "/livez"]


async def test_a_client_that_sends_more_than_it_is_answered_has_to_wait() -> None:
    """What is held of its requests is a read more than the limit, however long it goes on."""
    held = 0

    async def answer(exchange: Exchange) -> None:
        nonlocal held
        exchange.respond(200, b"{}")
        await asyncio.sleep(0)  # in which more comes
        connection = cast("ClientConnection", exchange.connection)
        held = max(held, connection._incoming.held.size)

    async with serving(answer) as served, connected(served.endpoint) as client:
        reading = asyncio.create_task(client.rest())
        await client.send(REQUEST * MANY * 2 + LAST)
        assert (await reading).count(b"HTTP/1.1 200 OK") == 2 * MANY + 1
    assert 0 < held < 2**19


async def test_chunks_of_a_byte_are_not_kept_as_such() -> None:
    pieces = 0

    async def answer(exchange: Exchange) -> None:
        nonlocal pieces
        body = await exchange.read_body(2**20)
        pieces = len(body.pieces)
        exchange.respond(200, b"%d" % body.size)

    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(answer) as served, connected(served.endpoint) as client:
        await client.send(head)
        for _ in range(4):  # in reads of their own
            await client.send(b"1\r\nx\r\n" * 20_000)
            await asyncio.sleep(0)
        for _ in range(3000):
            await client.send(b"1\r\nx\r\n")
            await asyncio.sleep(0)
        await client.send(b"0\r\n\r\n")
        assert (await client.answer()).body == b"83000"
    assert pieces < 1000
