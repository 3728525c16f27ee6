"""No connection holds the event loop: what one gets done in a turn is counted, not timed."""

from __future__ import annotations

import asyncio

import pytest

from llamaswap_py.wire import Exchange
from tests.wire.harness import JSON_ANSWER, answering, connected, relaying, serving

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
