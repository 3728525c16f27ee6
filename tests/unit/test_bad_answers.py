"""What a child sends that is no answer is its fault, and holds nobody up."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamaswap_py.units import MIB
from tests.unit.test_express import CHAT, request, staged
from tests.wire.harness import SSE_HEAD, Peer, Upstream, answering, connected

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
