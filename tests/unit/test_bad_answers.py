"""What a child sends that is no answer is its fault, and holds nobody up."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from llamaswap_py.api.ollama.answers import LineStream
from llamaswap_py.proxy import upstream as upstream_module
from llamaswap_py.proxy.parsers import DecodingWatch
from llamaswap_py.units import MIB
from tests.proxy.harness import SSE_HEAD, Peer, Upstream, answering, connected
from tests.unit.test_plain_requests import CHAT, request, staged, until

pytestmark = pytest.mark.anyio
JSON = SSE_HEAD.replace(b"text/event-stream", b"application/json")
ODD = (b"zz\r\n{}\r\n", b"2\r\n{}zz", b"-1\r\n{}\r\n", b"fffffffffffffffff\r\n{}\r\n")
ASK = {"model": "alpha", "messages": [{"role": "user", "content": "hi"}], "stream": False}


@pytest.mark.parametrize("path", [CHAT, "/api/chat", "/upstream/alpha/x"])
@pytest.mark.parametrize("chunk", ODD)
async def test_an_odd_chunk_is_a_bad_gateway(short_dir: Path, path: str, chunk: bytes) -> None:
    async with (
        staged(short_dir, answering(JSON + chunk)) as stage,
        connected(stage.endpoint) as client,
    ):
        answer = await client.ask(request(ASK, path))
        assert answer.status == 502
        assert b"upstream_failed" in answer.body


async def test_a_child_that_ends_within_what_is_collected_is_a_bad_gateway(
    short_dir: Path,
) -> None:
    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(JSON + b"10\r\n{")

    async with staged(short_dir, child) as stage, connected(stage.endpoint) as client:
        assert (await client.ask(request(ASK, "/api/chat"))).status == 502


async def test_a_line_without_end_ends_the_answer(short_dir: Path) -> None:
    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(SSE_HEAD)
        while True:
            await peer.send(b"%x\r\n%b\r\n" % (MIB, b"x" * MIB))

    async with staged(short_dir, child) as stage, connected(stage.endpoint) as client:
        answer = await client.ask(request({**ASK, "stream": True}, "/api/chat"))
        assert answer.status == 200
        assert b"16 MiB" in answer.body.splitlines()[-1]


EVENT = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
BLOB = EVENT * 3000


class Turns:
    """Counts what each turn of the loop handles, however long it takes."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.number = 0
        self.counts: dict[int, int] = {}
        self._next()

    def _next(self) -> None:
        self.number += 1
        self._loop.call_soon(self._next)

    def count(self, events: int) -> None:
        self.counts[self.number] = self.counts.get(self.number, 0) + events


@pytest.mark.parametrize("ends", ["well", "by closing", "in the middle"])
async def test_very_many_events_are_translated_in_many_turns(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Others get their turns meanwhile, nothing is lost, and the child waits for its reader."""
    monkeypatch.setattr(upstream_module, "_TURN", 0)
    turns, feed = Turns(), LineStream.feed

    def counted(stream: LineStream, piece: bytes) -> bytes:
        turns.count(piece.count(b"x"))
        return feed(stream, piece)

    monkeypatch.setattr(LineStream, "feed", counted)

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        if ends == "by closing":
            await peer.send(SSE_HEAD.replace(b"Transfer-Encoding: chunked\r\n", b"") + BLOB * 4)
            return
        await peer.send(SSE_HEAD + (b"%x\r\n%b\r\n" % (len(BLOB), BLOB)) * 4)
        await peer.send(b"0\r\n\r\n" if ends == "well" else b"5\r\nda")

    async with staged(short_dir, child) as stage, connected(stage.endpoint) as client:
        answer = await client.ask(request({**ASK, "stream": True}, "/api/chat"))
        lines = [json.loads(line) for line in answer.body.splitlines()]
        assert len(lines) == 12_001
        assert ("error" in lines[-1]) is (ends == "in the middle")
        assert sum(turns.counts.values()) == 12_000
        assert max(turns.counts.values()) <= 2 * upstream_module.STEP // len(EVENT)


@pytest.mark.parametrize("streams", [True, False])
async def test_chunks_of_one_byte_are_joined(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    monkeypatch.setattr(upstream_module, "_TURN", 0)
    turns, take, feed = Turns(), DecodingWatch.take, LineStream.feed
    fed: list[bytes] = []

    def counted(watch: DecodingWatch) -> list[bytes]:
        pieces = take(watch)
        turns.count(len(pieces))
        return pieces

    def kept(stream: LineStream, piece: bytes) -> bytes:
        fed.append(piece)
        return feed(stream, piece)

    monkeypatch.setattr(DecodingWatch, "take", counted)
    monkeypatch.setattr(LineStream, "feed", kept)
    body = EVENT if streams else b'{"choices":[{"message":{"content":"x"}}]}'
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body + b"\n" * 50_000) + b"0\r\n\r\n"
    head = SSE_HEAD if streams else JSON
    async with (
        staged(short_dir, answering(head + chunks)) as stage,
        connected(stage.endpoint) as client,
    ):
        answer = await client.ask(request({**ASK, "stream": streams}, "/api/chat"))
        said = json.loads(answer.body.splitlines()[0])
        assert said["message"]["content"] == "x"
        assert max(turns.counts.values()) <= 2 * upstream_module.STEP // 6
        assert len(fed) < 5_000


async def test_a_client_that_reads_nothing_stops_the_translation(short_dir: Path) -> None:
    """What was read of the child waits with it; both go on with the client."""
    many = (6 * MIB) // len(BLOB)

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(SSE_HEAD)
        for _ in range(many):
            await peer.send(b"%x\r\n%b\r\n" % (len(BLOB), BLOB))
        await peer.send(b"0\r\n\r\n")

    async with staged(short_dir, child) as stage, connected(stage.endpoint) as client:
        await client.send(request({**ASK, "stream": True}, "/api/chat"))
        await until(lambda: any(one.exchange.held_up for one in stage.app.services.calls.values()))
        assert (await client.answer()).body.count(b"\n") == 3000 * many + 1


async def test_what_was_read_of_a_child_is_passed_on_after_its_connection_is_lost(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a write to it fails: the error follows what it had said before."""
    monkeypatch.setattr(upstream_module, "_TURN", 0)
    received = upstream_module.UpstreamConnection.data_received

    def lost(connection: upstream_module.UpstreamConnection, data: bytes) -> None:
        received(connection, data)
        connection.closed = True
        connection._transport.abort()
        connection.closed = False

    monkeypatch.setattr(upstream_module.UpstreamConnection, "data_received", lost)
    part = EVENT * 1000
    child = answering(SSE_HEAD + b"%x\r\n%b\r\n" % (len(part), part))
    async with staged(short_dir, child) as stage, connected(stage.endpoint) as client:
        answer = await client.ask(request({**ASK, "stream": True}, "/api/chat"))
        lines = [json.loads(line) for line in answer.body.splitlines()]
        assert len(lines) == 1001
        assert "error" in lines[-1]
