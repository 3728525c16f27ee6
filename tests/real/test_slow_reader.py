"""A client that reads a byte a second from a fast stream: its child waits, and nobody else."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.real.answers import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

TOKENS, PAD = 10_000, 1000
EVENT = PAD + len(b'400\r\ndata: {"content":"t1000"}\n\n\r\n')
MIB = 1024 * 1024
BUFFERS = 8 * MIB
"""What the kernel may hold between child, lswap and client; lswap's own part is below 1 MiB."""


def request(id: str) -> bytes:
    body = json.dumps({"model": "alpha", "stream": True}).encode()
    head = f"POST /completion HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {id}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def address_of(lswap: Lswap) -> tuple[str, int]:
    host, _, port = lswap.url.removeprefix("http://").rpartition(":")
    return host, int(port)


@asynccontextmanager
async def slow_reader(lswap: Lswap) -> AsyncIterator[list[bytes]]:
    """Ask for a stream and read a byte a second of it, from a connection of small buffers."""
    loop = asyncio.get_running_loop()
    got: list[bytes] = []

    async def read() -> None:
        while True:
            got.append(await loop.sock_recv(sock, 1))
            await asyncio.sleep(1)

    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, address_of(lswap))
        await loop.sock_sendall(sock, request("slow"))
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(read())
            yield got
            reading.cancel()


async def read_fast(lswap: Lswap) -> int:
    """Read a whole stream as fast as it comes, and return its events."""
    reader, writer = await asyncio.open_connection(*address_of(lswap))
    writer.write(request("fast"))
    events, tail = 0, b""
    async with asyncio.timeout(PATIENCE):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        while not tail.endswith(b"0\r\n\r\n"):
            piece = await reader.read(1 << 20)
            assert piece, "the stream broke off"
            text = tail + piece
            events += text.count(b'"content"')
            tail = text[-8:]  # shorter than what is counted
    writer.close()
    return events


async def relayed(lswap: Lswap, id: str) -> int:
    """Return how many events of a request have come from its child."""
    answer = await lswap.client.get("/lswap/v1/requests")
    found: int = next(one["tokens"] for one in answer.json()["requests"] if one["id"] == id)
    return found


async def test_a_byte_a_second(lab: Lab) -> None:
    models = {
        "alpha": lab.fake("alpha", env={"FAKE_TOKENS": str(TOKENS), "FAKE_TOKEN_PAD": str(PAD)})
    }
    async with lab.lswap(models) as lswap:
        assert await read_fast(lswap) == TOKENS  # what a stream costs at all is in the memory then
        process = psutil.Process(lswap.pid)
        before = process.memory_info().rss
        async with slow_reader(lswap) as got:
            for _ in range(2):  # beside it: whole streams, again and again
                assert await read_fast(lswap) == TOKENS
            grown = process.memory_info().rss - before
            held = await relayed(lswap, "slow")
            assert got
            assert held * EVENT <= len(got) + BUFFERS < TOKENS * EVENT
            assert grown < 4 * MIB
            assert await read_fast(lswap) == TOKENS
            assert (await relayed(lswap, "slow") - held) * EVENT <= MIB  # the child waits for it
        await lswap.until_idle()
