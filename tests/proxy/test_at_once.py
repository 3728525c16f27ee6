"""Handlers that begin in the call that brought their request, and when a task goes on with them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.endpoint import Endpoint
from llamaswap_py.proxy import RelayOutcome, UpstreamPool, WireLimits, bind, serve

from .harness import (
    JSON_ANSWER,
    SSE_HEAD,
    Peer,
    RelayHandler,
    Upstream,
    answering,
    connected,
    eventually,
    sse,
    then,
    upstream,
    wire_error,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from llamaswap_py.proxy import Exchange, Server

    from .harness import Client, Script

pytestmark = pytest.mark.anyio
EVENT = b'data: {"error":"unloaded"}\n\n'


def post(body: bytes) -> bytes:
    return b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@dataclass
class Noting(RelayHandler):
    """Relays, and notes of each request whether its connection's task was needed for it."""

    at_once: list[bool] = field(default_factory=list)

    async def __call__(self, exchange: Exchange) -> None:
        try:
            await super().__call__(exchange)
        finally:
            self.at_once.append(exchange.connection.at_once)
            self.finished.set()


@dataclass
class Setup:
    child: Upstream
    handler: Noting
    server: Server
    pool: UpstreamPool
    endpoint: Endpoint

    @property
    def outcomes(self) -> list[RelayOutcome]:
        return [one.outcome for one in self.handler.results]


@asynccontextmanager
async def beginning(
    folder: Path, *scripts: Script, limits: WireLimits | None = None
) -> AsyncIterator[Setup]:
    """Serve in front of a scripted child."""
    async with upstream(folder, *scripts) as child, UpstreamPool() as pool:
        handler = Noting(child.endpoint, pool)
        sock = bind(Endpoint(port=0))
        endpoint = Endpoint(port=sock.getsockname()[1])
        async with serve([sock], handler, limits, on_wire_error=wire_error) as server:
            yield Setup(child, handler, server, pool, endpoint)
            assert server.outbox.open == 0
            assert len(handler.at_once) == len(handler.exchanges)  # each has ended, and once


async def warm(client: Client) -> None:
    """Let the server see the head, and have an idle connection to the child."""
    assert (await client.ask(post(b"warm"))).json == {"a": 1}


async def test_nothing_but_a_new_connection_to_the_child_needs_the_task(folder: Path) -> None:
    async with (
        beginning(folder, answering(JSON_ANSWER)) as setup,
        connected(setup.endpoint) as client,
    ):
        await warm(client)
        assert setup.handler.at_once == [False]
        for body in (b"1", b"22", b""):
            answer = await client.ask(post(body))
            assert (answer.status, answer.json) == (200, {"a": 1})
            assert answer.headers["x-request-id"] == "r1"
            assert setup.child.requests[-1].endswith(b"\r\n\r\n" + body)
        assert setup.handler.at_once == [False, True, True, True]
        assert setup.outcomes == [RelayOutcome.COMPLETE] * 4
        assert setup.child.accepted == 1
        async with connected(setup.endpoint) as other:  # a new connection of a client needs none
            assert (await other.ask(post(b"1"))).headers["x-request-id"] == "r1"
        assert setup.handler.at_once[-1] is True
        assert len(setup.handler.results) == 5


@pytest.mark.parametrize("cut", [1, 30, len(post(b"")) - 1, len(post(b"")), len(post(b"")) + 2])
async def test_a_request_in_two_writes(folder: Path, cut: int) -> None:
    async with (
        beginning(folder, answering(JSON_ANSWER)) as setup,
        connected(setup.endpoint) as client,
    ):
        await warm(client)
        request = post(b"12345")
        for _ in range(2):
            await client.send(request[:cut])
            await asyncio.sleep(0.01)
            await client.send(request[cut:])
            assert (await client.answer()).json == {"a": 1}
            assert setup.child.requests[-1].endswith(b"\r\n\r\n12345")
        assert setup.handler.at_once == [False, True, True]


async def test_a_body_in_many_pieces_and_the_next_request_with_the_last(folder: Path) -> None:
    async def child(upstream: Upstream, peer: Peer) -> None:
        while True:
            body = (await upstream.request(peer)).rpartition(b"\r\n\r\n")[2]
            await peer.send(JSON_ANSWER.replace(b'{"a":1}', b'{"a":%b}' % body[:1]))

    async with beginning(folder, child) as setup, connected(setup.endpoint) as client:
        assert (await client.ask(post(b"7"))).json == {"a": 7}
        first, second = post(b"1" * 40), post(b"2")
        for at in range(0, 80, 20):
            await client.send(first[at : at + 20])
            await asyncio.sleep(0.01)
        await client.send(first[80:] + second + second[:30])
        assert [(await client.answer()).json for _ in range(2)] == [{"a": 1}, {"a": 2}]
        await client.send(second[30:])
        assert (await client.answer()).json == {"a": 2}
        assert setup.outcomes == [RelayOutcome.COMPLETE] * 4


@pytest.mark.parametrize("cut", [1, 20, len(JSON_ANSWER) - 8, len(JSON_ANSWER) - 1])
async def test_an_answer_in_pieces(folder: Path, cut: int) -> None:
    async with (
        beginning(folder, then(JSON_ANSWER, JSON_ANSWER[:cut], JSON_ANSWER[cut:])) as setup,
        connected(setup.endpoint) as client,
    ):
        await warm(client)
        assert (await client.ask(post(b"1"))).json == {"a": 1}
        assert setup.handler.at_once == [False, True]
        assert setup.outcomes == [RelayOutcome.COMPLETE] * 2


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
        assert setup.handler.at_once[1] is True
        assert setup.outcomes[1] is RelayOutcome.COMPLETE


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
        assert any(setup.handler.at_once)


async def test_a_connection_that_went_stale_is_replaced_unseen(folder: Path) -> None:
    """The child closes as the request comes: it has seen nothing of it that counts."""
    async with (
        beginning(folder, then(JSON_ANSWER, stay=False), answering(JSON_ANSWER)) as setup,
        connected(setup.endpoint) as client,
    ):
        await warm(client)
        assert (await client.ask(post(b"1"))).json == {"a": 1}
        assert setup.handler.at_once == [False, False]
        assert setup.outcomes == [RelayOutcome.COMPLETE] * 2
        assert setup.child.accepted == 2
        assert (await client.ask(post(b"2"))).json == {"a": 1}
        assert setup.handler.at_once[-1] is True
        assert setup.outcomes[-1] is RelayOutcome.COMPLETE


async def test_without_an_idle_connection_the_handler_makes_one(folder: Path) -> None:
    closing = JSON_ANSWER.replace(b"Keep-Alive: timeout=5, max=100", b"Connection: close")
    async with (
        beginning(folder, answering(closing)) as setup,
        connected(setup.endpoint) as client,
    ):
        for _ in range(3):
            await warm(client)
        assert setup.handler.at_once == [False] * 3
        assert setup.outcomes == [RelayOutcome.COMPLETE] * 3
        assert setup.child.accepted == 3


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (JSON_ANSWER[:-1], RelayOutcome.DIED_MIDSTREAM),
        (SSE_HEAD + sse("one")[:5], RelayOutcome.DIED_MIDSTREAM),
        (b"HTTP/1.1 200", RelayOutcome.DIED_BEFORE_HEAD),
    ],
)
async def test_a_child_that_dies_is_the_handlers_to_tell(
    folder: Path, answer: bytes, outcome: RelayOutcome
) -> None:
    async with (
        beginning(folder, then(JSON_ANSWER, answer, stay=False)) as setup,
        connected(setup.endpoint) as client,
    ):
        await warm(client)
        setup.handler.finished.clear()
        await client.send(post(b"1"))
        if outcome is RelayOutcome.DIED_BEFORE_HEAD:
            assert (await client.answer()).status == 502
        else:
            await client.gone()
        await eventually(setup.handler.finished)
        assert setup.outcomes[-1] is outcome
        assert setup.handler.at_once[-1] is False


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
        setup.handler.exchanges[1].cut(EVENT, "unloaded")
        assert (await client.until(b"0\r\n\r\n")).endswith(EVENT + b"\r\n0\r\n\r\n")
        await eventually(setup.handler.finished)
        assert setup.handler.results[-1].outcome is RelayOutcome.CUT


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
        await eventually(setup.handler.cancelled)
        assert setup.outcomes == [RelayOutcome.COMPLETE]
        assert len(setup.handler.exchanges) == 2


async def test_a_client_that_leaves_before_the_task_had_it(folder: Path) -> None:
    """The cut hands it over, and in the same turn of the loop the connection goes."""
    async with (
        beginning(folder, then(JSON_ANSWER, SSE_HEAD + sse("one"))) as setup,
        connected(setup.endpoint) as client,
    ):
        await warm(client)
        await client.send(post(b"1"))
        await client.until(b"\n\n\r\n")
        exchange = setup.handler.exchanges[1]
        exchange.cut(EVENT, "unloaded")
        exchange.connection.abandon()
        await eventually(setup.handler.cancelled)
        assert setup.outcomes == [RelayOutcome.COMPLETE]
        assert len(setup.handler.exchanges) == 2


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
        assert setup.outcomes == [RelayOutcome.COMPLETE] * 2
        assert setup.handler.at_once[-1] is True
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
        assert setup.outcomes == [RelayOutcome.COMPLETE] * 2


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
        exchange = setup.handler.exchanges[1]
        while not exchange.held_up:  # noqa: ASYNC110 - the transport tells nobody
            await asyncio.sleep(0)
        assert not sent.is_set()
        setup.handler.finished.clear()
        assert await client.exactly(int(head.headers["content-length"])) == large
        await eventually(setup.handler.finished)


async def test_a_client_that_leaves_in_the_same_turn(folder: Path) -> None:
    """The request was not written yet, and never is."""
    async with (
        beginning(folder, answering(JSON_ANSWER)) as setup,
        connected(setup.endpoint) as client,
        AsyncExitStack() as stack,
    ):
        await warm(client)
        others = [await stack.enter_async_context(connected(setup.endpoint)) for _ in range(2)]
        handler = setup.server.handler

        async def leave(exchange: Exchange) -> None:
            asyncio.get_running_loop().call_soon(exchange.connection.abandon)
            await handler(exchange)

        setup.server.handler = leave
        setup.server.outbox.open += 2  # as if others were answered: writes of a turn are put off
        for other in others:
            await other.send(post(b"1"))
        for other in others:
            await other.gone()
        setup.server.outbox.open -= 2
        assert setup.outcomes == [RelayOutcome.COMPLETE]
        assert len(setup.child.requests) == 1
