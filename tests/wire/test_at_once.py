"""Requests that a server's `begin` starts without a coroutine, and what goes on as one."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.endpoint import Endpoint
from llamaswap_py.proxy import Outcome, UpstreamPool, WireLimits, bind, serve

from .harness import (
    JSON_ANSWER,
    SSE_HEAD,
    Peer,
    RelayHandler,
    Upstream,
    answering,
    connected,
    error_event,
    eventually,
    sse,
    then,
    upstream,
    wire_error,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from llamaswap_py.proxy import Exchange, RelayResult, Server

    from .harness import Client, Script

pytestmark = pytest.mark.anyio
EVENT = b'data: {"error":"unloaded"}\n\n'


def post(body: bytes) -> bytes:
    return b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@dataclass
class Beginner:
    """Starts what it is shown, and notes how that ended."""

    endpoint: Endpoint
    pool: UpstreamPool
    begun: list[Exchange] = field(default_factory=list)
    done: list[Outcome] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, exchange: Exchange, body: bytes) -> bool:
        if body == b"not this":
            return False
        exchange.begun = self
        exchange.response_lines = b"x-request-id: r2\r\n"
        self.begun.append(exchange)
        exchange.relay_at_once(
            self.pool, self.endpoint, post(body), error_event=error_event, done=self.note
        )
        return True

    def note(self, exchange: Exchange, result: RelayResult) -> None:
        assert exchange is self.begun[-1]
        self.done.append(result.outcome)
        self.ended.set()


@dataclass
class Setup:
    child: Upstream
    handler: RelayHandler
    beginner: Beginner
    server: Server
    pool: UpstreamPool
    endpoint: Endpoint


@asynccontextmanager
async def beginning(
    folder: Path, *scripts: Script, limits: WireLimits | None = None
) -> AsyncIterator[Setup]:
    """Serve in front of a scripted child."""
    async with upstream(folder, *scripts) as child, UpstreamPool() as pool:
        handler, beginner = RelayHandler(child.endpoint, pool), Beginner(child.endpoint, pool)
        sock = bind(Endpoint(port=0))
        endpoint = Endpoint(port=sock.getsockname()[1])
        async with serve(
            [sock], handler, limits, on_wire_error=wire_error, begin=beginner.begin
        ) as server:
            yield Setup(child, handler, beginner, server, pool, endpoint)
            assert server.outbox.open == 0
            for exchange in beginner.begun:  # either way, and once
                taken_over = sum(one is exchange for one in handler.exchanges)
                assert taken_over <= 1
            ways = len(beginner.done) + sum(one in beginner.begun for one in handler.exchanges)
            assert ways == len(beginner.begun)


async def warm(client: Client) -> None:
    """Let the server see the head, and have an idle connection to the child."""
    assert (await client.ask(post(b"warm"))).json == {"a": 1}


async def test_a_head_that_came_before_is_begun(folder: Path) -> None:
    async with (
        beginning(folder, answering(JSON_ANSWER)) as setup,
        connected(setup.endpoint) as client,
    ):
        await warm(client)
        assert setup.beginner.begun == []
        for body in (b"1", b"22", b""):
            answer = await client.ask(post(body))
            assert (answer.status, answer.json) == (200, {"a": 1})
            assert answer.headers["x-request-id"] == "r2"
            assert setup.child.requests[-1].endswith(b"\r\n\r\n" + body)
        assert setup.beginner.done == [Outcome.COMPLETE] * 3
        assert setup.child.accepted == 1
        assert (await client.ask(post(b"not this"))).headers["x-request-id"] == "r1"
        assert len(setup.handler.results) == 2


@pytest.mark.parametrize("cut", [1, 20, len(JSON_ANSWER) - 8, len(JSON_ANSWER) - 1])
async def test_an_answer_in_pieces(folder: Path, cut: int) -> None:
    async with (
        beginning(folder, then(JSON_ANSWER, JSON_ANSWER[:cut], JSON_ANSWER[cut:])) as setup,
        connected(setup.endpoint) as client,
    ):
        await warm(client)
        assert (await client.ask(post(b"1"))).json == {"a": 1}
        await eventually(setup.beginner.ended)
        assert setup.beginner.done == [Outcome.COMPLETE]


async def test_a_stream(folder: Path) -> None:
    whole = SSE_HEAD + sse("one") + sse("two") + b"0\r\n\r\n"
    async with (
        beginning(folder, then(JSON_ANSWER, whole[:-9], whole[-9:])) as setup,
        connected(setup.endpoint) as client,
    ):
        await warm(client)
        answer = await client.ask(post(b"1"))
        assert answer.raw == sse("one") + sse("two") + b"0\r\n\r\n"
        await warm(client)
        assert setup.beginner.done[0] is Outcome.COMPLETE


async def test_requests_that_come_meanwhile_are_answered_in_order(folder: Path) -> None:
    async def child(upstream: Upstream, peer: Peer) -> None:
        while True:
            body = (await upstream.request(peer)).rpartition(b"\r\n\r\n")[2]
            await peer.send(JSON_ANSWER.replace(b'{"a":1}', b'{"a":%b}' % body))

    async with beginning(folder, child) as setup, connected(setup.endpoint) as client:
        assert (await client.ask(post(b"0"))).json == {"a": 0}
        for first, second, third in (b"123", b"456"):
            await client.send(post(b"%c" % first))
            await client.send(post(b"%c" % second) + post(b"%c" % third))
            found = [(await client.answer()).json for _ in range(3)]
            assert found == [{"a": int(chr(one))} for one in (first, second, third)]
        assert setup.beginner.begun


async def test_a_connection_that_went_stale_is_replaced_unseen(folder: Path) -> None:
    """The child closes as the request comes: it has seen nothing of it that counts."""
    async with (
        beginning(folder, then(JSON_ANSWER, stay=False), answering(JSON_ANSWER)) as setup,
        connected(setup.endpoint) as client,
    ):
        await warm(client)
        assert (await client.ask(post(b"1"))).json == {"a": 1}
        assert setup.beginner.done == []
        assert [one.outcome for one in setup.handler.results] == [Outcome.COMPLETE] * 2
        assert setup.child.accepted == 2
        assert (await client.ask(post(b"2"))).json == {"a": 1}
        assert setup.beginner.done == [Outcome.COMPLETE]


async def test_without_an_idle_connection_the_handler_makes_one(folder: Path) -> None:
    closing = JSON_ANSWER.replace(b"Keep-Alive: timeout=5, max=100", b"Connection: close")
    async with (
        beginning(folder, answering(closing)) as setup,
        connected(setup.endpoint) as client,
    ):
        for _ in range(3):
            await warm(client)
        assert len(setup.beginner.begun) == 2
        assert setup.beginner.done == []
        assert setup.child.accepted == 3


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (JSON_ANSWER[:-1], Outcome.DIED_MIDSTREAM),
        (SSE_HEAD + sse("one")[:5], Outcome.DIED_MIDSTREAM),
        (b"HTTP/1.1 200", Outcome.DIED_BEFORE_HEAD),
    ],
)
async def test_a_child_that_dies_is_the_handlers_to_tell(
    folder: Path, answer: bytes, outcome: Outcome
) -> None:
    async with (
        beginning(folder, then(JSON_ANSWER, answer, stay=False)) as setup,
        connected(setup.endpoint) as client,
    ):
        await warm(client)
        setup.handler.finished.clear()
        await client.send(post(b"1"))
        if outcome is Outcome.DIED_BEFORE_HEAD:
            assert (await client.answer()).status == 502
        else:
            await client.gone()
        await eventually(setup.handler.finished)
        assert setup.handler.results[-1].outcome is outcome
        assert setup.beginner.done == []


async def test_a_cut_is_the_handlers_to_tell(folder: Path) -> None:
    async with (
        beginning(folder, then(JSON_ANSWER, SSE_HEAD + sse("one"))) as setup,
        connected(setup.endpoint) as client,
    ):
        await warm(client)
        setup.handler.finished.clear()
        await client.send(post(b"1"))
        await client.head()
        assert await client.until(b"\n\n\r\n") == sse("one")
        setup.beginner.begun[0].cut(EVENT, "unloaded")
        assert (await client.until(b"0\r\n\r\n")).endswith(EVENT + b"\r\n0\r\n\r\n")
        await eventually(setup.handler.finished)
        assert setup.handler.results[-1].outcome is Outcome.CUT


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_leaves_ends_it_at_once(folder: Path, reset: bool) -> None:
    left = asyncio.Event()

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(JSON_ANSWER)
        await upstream.request(peer)
        await peer.send(SSE_HEAD + sse("one"))
        await peer.gone()
        left.set()

    async with beginning(folder, child) as setup:
        async with connected(setup.endpoint) as client:
            await warm(client)
            await client.send(post(b"1"))
            await client.until(b"\n\n\r\n")
            client.reset() if reset else client.close()
            await eventually(left)
        assert setup.beginner.done == [Outcome.CUT]
        assert len(setup.handler.exchanges) == 1


async def test_a_client_that_leaves_before_the_handler_had_it(folder: Path) -> None:
    """The cut hands it over, and in the same turn of the loop the connection goes."""
    async with (
        beginning(folder, then(JSON_ANSWER, SSE_HEAD + sse("one"))) as setup,
        connected(setup.endpoint) as client,
    ):
        await warm(client)
        await client.send(post(b"1"))
        await client.until(b"\n\n\r\n")
        exchange = setup.beginner.begun[0]
        exchange.cut(EVENT, "unloaded")
        exchange.connection.abandon()
        await eventually(setup.beginner.ended)
        assert setup.beginner.done == [Outcome.CUT]
        assert len(setup.handler.exchanges) == 1


async def test_a_server_that_stops_waits_for_it(folder: Path) -> None:
    there, go_on = asyncio.Event(), asyncio.Event()

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(JSON_ANSWER)
        await upstream.request(peer)
        there.set()
        await eventually(go_on)
        await peer.send(JSON_ANSWER)

    async with beginning(folder, child) as setup, connected(setup.endpoint) as client:
        await warm(client)
        await client.send(post(b"1"))
        await eventually(there)
        draining = asyncio.create_task(setup.server.drain(30.0))
        await asyncio.sleep(0)
        go_on.set()
        answer = await client.answer()
        assert (answer.json, answer.headers["connection"]) == ({"a": 1}, "close")
        assert await client.rest() == b""
        await draining


async def test_an_idle_connection_is_closed_after_it_too(folder: Path) -> None:
    async with (
        beginning(folder, answering(JSON_ANSWER), limits=WireLimits(idle=0.2)) as setup,
        connected(setup.endpoint) as client,
    ):
        await warm(client)
        await warm(client)
        assert setup.beginner.done == [Outcome.COMPLETE]
        assert await client.rest() == b""


async def test_the_last_request_of_a_connection(folder: Path) -> None:
    last = post(b"1").replace(b"Host: a", b"Host: a\r\nConnection: close")
    async with (
        beginning(folder, answering(JSON_ANSWER)) as setup,
        connected(setup.endpoint) as client,
    ):
        await warm(client)
        assert (await client.ask(last)).headers["connection"] == "close"
        assert await client.rest() == b""


async def test_half_closing_with_the_request(folder: Path) -> None:
    async with (
        beginning(folder, answering(JSON_ANSWER)) as setup,
        connected(setup.endpoint) as client,
    ):
        await warm(client)
        client.writer.write(post(b"1"))
        client.half_close()
        assert (await client.answer()).json == {"a": 1}
        assert await client.rest() == b""
        assert setup.beginner.done == [Outcome.COMPLETE]


async def test_a_slow_reader_holds_the_child_up(folder: Path) -> None:
    large = b"x" * 40_000_000
    sent = asyncio.Event()

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(JSON_ANSWER)
        await upstream.request(peer)
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(large)
        await peer.send(head + large)
        sent.set()
        await peer.gone()

    async with beginning(folder, child) as setup, connected(setup.endpoint) as client:
        await warm(client)
        await client.send(post(b"1"))
        head = await client.head()
        exchange = setup.beginner.begun[0]
        while not exchange.held_up:  # noqa: ASYNC110 - the transport tells nobody
            await asyncio.sleep(0)
        assert not sent.is_set()
        assert await client.exactly(int(head.headers["content-length"])) == large
        await eventually(setup.beginner.ended)


async def test_a_client_that_leaves_in_the_same_turn(folder: Path) -> None:
    """The request was not written yet, and never is."""
    async with (
        beginning(folder, answering(JSON_ANSWER)) as setup,
        connected(setup.endpoint) as client,
    ):
        await warm(client)
        begin = setup.beginner.begin

        def leave(exchange: Exchange, body: bytes) -> bool:
            begun = begin(exchange, body)
            exchange.connection.abandon()
            return begun

        setup.server.begin = leave
        await client.send(post(b"1"))
        await client.gone()
        assert setup.beginner.done == [Outcome.CUT]
        assert len(setup.child.requests) == 1
