"""Which connections to a child are used again, and what happens to stale ones."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.endpoint import Endpoint
from llamaswap_py.proxy import RelayOutcome, UpstreamPool

from .harness import (
    JSON_ANSWER,
    SSE_HEAD,
    Peer,
    Upstream,
    answering,
    connected,
    eventually,
    relaying,
    sse,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def test_a_whole_answer_leaves_its_connection_for_the_next(folder: Path) -> None:
    async with (
        relaying(folder, answering(JSON_ANSWER)) as setup,
        connected(setup.endpoint) as client,
    ):
        for _ in range(5):
            await client.ask(GET)
        assert setup.child.accepted == 1
        assert repr(setup.pool) == "<UpstreamPool 1 connections, 1 idle>"


@pytest.mark.parametrize(
    "response",
    [
        SSE_HEAD + sse("one") + b"0\r\n\r\n",
        JSON_ANSWER.replace(b"Keep-Alive: timeout=5, max=100", b"Connection: close"),
        JSON_ANSWER.replace(b"HTTP/1.1", b"HTTP/1.0"),
        JSON_ANSWER + b"extra",
    ],
    ids=["stream", "close", "1.0", "surplus"],
)
async def test_what_is_never_used_again(folder: Path, response: bytes) -> None:
    async with relaying(folder, answering(response)) as setup, connected(setup.endpoint) as client:
        for _ in range(2):
            assert (await client.ask(GET)).status == 200
            assert setup.pool.idle == 0
        assert setup.child.accepted == 2


async def test_an_old_connection_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamaswap_py.proxy.upstream._IDLE_LIMIT", 0.0)
    async with (
        relaying(folder, answering(JSON_ANSWER)) as setup,
        connected(setup.endpoint) as client,
    ):
        for _ in range(2):
            await client.ask(GET)
        assert setup.child.accepted == 2


async def test_a_connection_the_child_closed_is_forgotten(folder: Path) -> None:
    closed = asyncio.Event()

    async def once(child: Upstream, peer: Peer) -> None:
        await child.request(peer)
        await peer.send(JSON_ANSWER)

    class Watching(UpstreamPool):
        def forget(self, connection):  # type: ignore[no-untyped-def]
            super().forget(connection)
            closed.set()

    async with (
        relaying(folder, once) as setup,
        Watching() as pool,
        connected(setup.endpoint) as client,
    ):
        setup.handler.pool = pool
        await client.ask(GET)
        await eventually(closed)
        assert pool.idle == 0
        assert (await client.ask(GET)).status == 200


async def test_a_stale_connection_is_replaced_unseen(folder: Path) -> None:
    """The child hangs up the moment a second request arrives: the FIN race of any pool."""

    async def once(child: Upstream, peer: Peer) -> None:
        await child.request(peer)
        await peer.send(JSON_ANSWER)
        await child.request(peer)

    async with relaying(folder, once) as setup, connected(setup.endpoint) as client:
        for _ in range(3):
            assert (await client.ask(GET)).body == b'{"a":1}'
        assert setup.child.accepted == 3
        assert [r.outcome for r in setup.handler.results] == [RelayOutcome.COMPLETE] * 3


async def test_a_used_connection_that_dies_within_its_head_is_not_replaced(folder: Path) -> None:
    async def twice(child: Upstream, peer: Peer) -> None:
        await child.request(peer)
        await peer.send(JSON_ANSWER)
        await child.request(peer)
        await peer.send(JSON_ANSWER[:20])

    async with relaying(folder, twice) as setup, connected(setup.endpoint) as client:
        await client.ask(GET)
        assert (await client.ask(GET)).json == {"error": "died before head"}
        assert setup.child.accepted == 1


async def test_a_fresh_connection_that_dies_is_not_tried_again(folder: Path) -> None:
    async def never(child: Upstream, peer: Peer) -> None:
        await child.request(peer)

    async with relaying(folder, never) as setup, connected(setup.endpoint) as client:
        assert (await client.ask(GET)).json == {"error": "died before head"}
        assert setup.child.accepted == 1


async def test_bytes_nobody_asked_for_end_an_idle_connection(folder: Path) -> None:
    async def chatty(child: Upstream, peer: Peer) -> None:
        await child.request(peer)
        await peer.send(JSON_ANSWER)
        await hello.wait()
        await peer.send(b"HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n")
        await peer.gone()
        gone.set()

    hello, gone = asyncio.Event(), asyncio.Event()
    async with (
        relaying(folder, chatty, answering(JSON_ANSWER)) as setup,
        connected(setup.endpoint) as client,
    ):
        await client.ask(GET)
        hello.set()
        await eventually(gone)
        assert (await client.ask(GET)).status == 200


async def test_drop_closes_the_idle_and_keeps_nothing_busy(folder: Path) -> None:
    release, asked, hung_up = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        asked.set()
        await release.wait()
        await peer.send(JSON_ANSWER)
        await peer.gone()
        hung_up.set()

    async with relaying(folder, answering(JSON_ANSWER), child) as setup:
        pool = setup.pool
        async with connected(setup.endpoint) as one, connected(setup.endpoint) as two:
            await one.ask(GET)
            idle = pool.take(setup.child.endpoint)
            assert idle is not None
            await two.send(GET)
            await eventually(asked)
            pool.keep(idle)
            pool.drop(setup.child.endpoint)
            assert idle.closed
            release.set()
            assert (await two.answer()).status == 200
            await eventually(hung_up)
            assert pool.idle == 0


async def test_leaving_the_pool_closes_everything(folder: Path) -> None:
    hung_up = asyncio.Event()

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(JSON_ANSWER)
        await peer.gone()
        hung_up.set()

    async with relaying(folder, child) as setup, connected(setup.endpoint) as client:
        async with UpstreamPool() as pool:
            setup.handler.pool = pool
            await client.ask(GET)
            assert pool.idle == 1
        await eventually(hung_up)


async def test_a_child_behind_tcp() -> None:
    async with relaying(None, answering(JSON_ANSWER)) as setup, connected(setup.endpoint) as client:
        for _ in range(2):
            assert (await client.ask(GET)).body == b'{"a":1}'
        assert setup.child.accepted == 1


@pytest.mark.parametrize("endpoint", [Endpoint(path="/nowhere/x.sock"), Endpoint(port=1)])
async def test_nobody_there(endpoint: Endpoint) -> None:
    async with UpstreamPool() as pool:
        with pytest.raises(OSError):  # noqa: PT011 - what kind is the kernel's business
            await pool.connect(endpoint)


async def test_a_full_listen_queue_is_waited_for(folder: Path) -> None:
    """A unix socket says EAGAIN at once where TCP would wait."""
    path = str(folder / "full.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        fillers = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        try:
            for filler in fillers:
                filler.setblocking(False)
            fillers[0].connect(path)
            with pytest.raises(BlockingIOError):
                fillers[1].connect(path)
            async with UpstreamPool() as pool:
                with pytest.raises(OSError):  # noqa: PT011
                    await pool.connect(Endpoint(path=path), wanted=lambda: False)
                connecting = asyncio.ensure_future(pool.connect(Endpoint(path=path)))
                await asyncio.sleep(0)
                assert not connecting.done()
                accepted, _ = listener.accept()
                accepted.close()
                connection = await asyncio.wait_for(connecting, 60)
                connection.abort()
        finally:
            for filler in fillers:
                filler.close()
