"""WebSocket and its like: bytes both ways after a 101."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.proxy import (
    Exchange,
    RelayOutcome,
    RelayResult,
    UpstreamPool,
    UpstreamRequest,
    WireLimits,
    forward_headers,
)
from llamaswap_py.proxy.websocket import close_frame

from .harness import JSON_ANSWER, Peer, Upstream, connected, eventually, serving, upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from llamaswap_py.endpoint import Endpoint

    from .harness import Script

pytestmark = pytest.mark.anyio

ASK = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: k\r\n\r\n"
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: x\r\n\r\n"
)


@dataclass
class Tunnels:
    """A server that tunnels everything to one child."""

    child: Upstream
    results: list[RelayResult] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, exchange: Exchange) -> None:
        try:
            headers = forward_headers(exchange.head, peer=exchange.peer)
            request = UpstreamRequest("GET", exchange.head.target, headers)
            async with UpstreamPool() as pool:
                self.results.append(await exchange.tunnel(self.child.endpoint, request, pool=pool))
        finally:
            self.ended.set()


@asynccontextmanager
async def tunnelling(
    folder: Path,
    script: Script,
    limits: WireLimits | None = None,
) -> AsyncIterator[tuple[Tunnels, Endpoint]]:
    async with upstream(folder, script) as child:
        tunnels = Tunnels(child)
        async with serving(tunnels, limits=limits) as served:
            yield tunnels, served.endpoint


@asynccontextmanager
async def one_tunnel(folder: Path, script: Script) -> AsyncIterator[tuple[Peer, Exchange]]:
    """Open one tunnel; yield its client, of which the answer's head is read, and its exchange."""
    exchanges: list[Exchange] = []
    async with upstream(folder, script) as child, UpstreamPool() as pool:

        async def handler(exchange: Exchange) -> None:
            exchanges.append(exchange)
            request = UpstreamRequest("GET", "/", [(b"host", b"a")])
            await exchange.tunnel(child.endpoint, request, pool=pool)

        async with serving(handler) as served, connected(served.endpoint) as client:
            await client.send(ASK)
            await client.head()
            yield client, exchanges[0]


async def switching(child: Upstream, peer: Peer) -> None:
    """Switch, then echo until the end of file."""
    await child.request(peer)
    await peer.send(SWITCH + b"hello ")
    while data := await peer.reader.read(2**16):
        await peer.send(data)


async def test_bytes_pass_both_ways(folder: Path) -> None:
    async with tunnelling(folder, switching) as (tunnels, endpoint), connected(endpoint) as client:
        await client.send(ASK + b"early ")
        answer = await client.head()
        assert answer.status == 101
        assert answer.headers == {
            "sec-websocket-accept": "x",
            "upgrade": "websocket",
            "connection": "upgrade",
        }
        assert await client.exactly(12) == b"hello early "
        await client.send(b"late")
        assert await client.exactly(4) == b"late"
        sent = tunnels.child.requests[0]
        assert sent.endswith(b"connection: upgrade\r\nupgrade: websocket\r\n\r\n")
        assert b"sec-websocket-key: k\r\n" in sent
        client.half_close()
        assert await client.rest() == b""
        await eventually(tunnels.ended)
        assert tunnels.results[0].outcome is RelayOutcome.COMPLETE
        assert tunnels.results[0].status == 101


async def test_what_a_client_sends_before_the_switch_is_kept(folder: Path) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        asked.set()
        await eventually(go_on)
        await peer.send(SWITCH)
        await peer.send(await peer.exactly(5))

    async with tunnelling(folder, child) as (_, endpoint), connected(endpoint) as client:
        await client.send(ASK)
        await eventually(asked)
        await client.send(b"early")
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        assert (await client.head()).status == 101
        assert await client.exactly(5) == b"early"


async def test_the_child_may_refuse(folder: Path) -> None:
    async def refusing(child: Upstream, peer: Peer) -> None:
        await child.request(peer)
        await peer.send(JSON_ANSWER.replace(b"200 OK", b"404 Not Found"))

    async with tunnelling(folder, refusing) as (_, endpoint), connected(endpoint) as client:
        answer = await client.ask(ASK)
        assert (answer.status, answer.body) == (404, b'{"a":1}')
        assert answer.headers["connection"] == "close"
        assert await client.rest() == b""


async def test_a_client_that_leaves_ends_the_tunnel(folder: Path) -> None:
    hung_up = asyncio.Event()

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(SWITCH)
        await peer.gone()
        hung_up.set()

    async with tunnelling(folder, child) as (tunnels, endpoint), connected(endpoint) as client:
        await client.send(ASK)
        await client.head()
        client.close()
        await eventually(hung_up)
        await eventually(tunnels.ended)


async def test_a_child_that_leaves_ends_the_tunnel(folder: Path) -> None:
    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(SWITCH + b"bye")

    async with tunnelling(folder, child) as (tunnels, endpoint), connected(endpoint) as client:
        await client.send(ASK)
        await client.head()
        assert await client.rest() == b"bye"
        client.close()
        await eventually(tunnels.ended)
        assert tunnels.results[0].outcome is RelayOutcome.COMPLETE


async def test_half_closes_pass_through(folder: Path) -> None:
    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(SWITCH)
        assert await peer.rest() == b"question"
        await peer.send(b"answer")

    async with tunnelling(folder, child) as (tunnels, endpoint), connected(endpoint) as client:
        await client.send(ASK)
        await client.head()
        await client.send(b"question")
        client.half_close()
        assert await client.rest() == b"answer"
        await eventually(tunnels.ended)


async def test_half_of_a_tunnel_does_not_stay_forever(folder: Path) -> None:
    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(SWITCH)
        peer.half_close()
        await peer.gone()

    async with (
        tunnelling(folder, child, WireLimits(idle=0.1)) as (tunnels, endpoint),
        connected(endpoint) as client,
    ):
        await client.send(ASK)
        await client.head()
        assert await client.rest() == b""
        await eventually(tunnels.ended)


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_side_that_stops_reading_stops_the_other(folder: Path, direction: str) -> None:
    total = 40_000_000
    go_on, received = asyncio.Event(), asyncio.Event()

    async def take(peer: Peer) -> None:
        await go_on.wait()
        got = 0
        while got < total:
            got += len(await asyncio.wait_for(peer.reader.read(2**20), 60))
        received.set()

    async def give(peer: Peer) -> None:
        peer.writer.transport.set_write_buffer_limits(high=2**16)
        peer.writer.write(bytes(total))
        drain = asyncio.ensure_future(peer.writer.drain())
        await asyncio.wait([drain], timeout=0.3)
        assert not drain.done()
        go_on.set()
        await drain

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(SWITCH)
        await (take(peer) if direction == "up" else give(peer))
        await peer.gone()

    async with tunnelling(folder, child) as (_, endpoint), connected(endpoint) as client:
        await client.send(ASK)
        await client.head()
        await (give(client) if direction == "up" else take(client))
        await eventually(received)


async def test_a_cut_ends_a_tunnel(folder: Path) -> None:
    async with one_tunnel(folder, switching) as (client, exchange):
        exchange.cut(b"data: x\n\n", "unloaded")
        await client.gone()


@pytest.mark.parametrize(
    ("sent", "whole"),
    [
        (b"\x81\x03abc", True),
        (b"\x81\x03abc\x8a\x00", True),
        (b"\x82\x7e\x01\x00" + b"x" * 256, True),
        (b"\x82\x7f" + (70_000).to_bytes(8) + b"x" * 100, False),
        (b"\x81\x03ab", False),
        (b"\x81", False),
        (b"\x82\x7e\x01", False),
    ],
)
async def test_a_websocket_is_closed_between_two_frames(
    folder: Path, sent: bytes, whole: bool
) -> None:
    """In the middle of a frame it is cut off: more bytes would be taken for the frame's rest."""

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(SWITCH + sent)
        await peer.gone()

    async with one_tunnel(folder, child) as (client, exchange):
        assert await client.exactly(len(sent)) == sent
        exchange.cut(b"", "revoked", close=1008)
        if whole:
            assert await client.rest() == close_frame(1008)
        else:
            await client.gone()


async def test_an_upgrade_that_is_answered_locally() -> None:
    async def handler(exchange: Exchange) -> None:
        assert exchange.head.upgrade
        exchange.respond(501)

    async with serving(handler) as served, connected(served.endpoint) as client:
        await client.send(ASK + b"frames")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (501, "close")
        assert await client.rest() == b""
