"""What one client, without a key even, cannot do to all others, tried against a real lswap."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
from typing import TYPE_CHECKING

import psutil
import pytest

from llamaswap_py.units import MIB

if TYPE_CHECKING:
    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


async def connect(lswap: Lswap) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = lswap.url.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port))


def taken(lswap: Lswap) -> int:
    """Return what lswap has in memory, in bytes."""
    return int(psutil.Process(lswap.pid).memory_info().rss)


async def fallen(lswap: Lswap, most: int) -> None:
    """Wait until lswap takes no more than that."""
    async with asyncio.timeout(60):
        while taken(lswap) > most:  # noqa: ASYNC110 - nobody says when
            await asyncio.sleep(0.05)


async def risen(lswap: Lswap, least: int) -> None:
    """Wait until lswap takes that much."""
    async with asyncio.timeout(60):
        while taken(lswap) < least:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_uploads_that_are_broken_off_leave_nothing_in_memory(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        before = taken(lswap)
        head = (
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" % (400 * MIB)
        )
        for _ in range(3):
            _, writer = await connect(lswap)
            writer.write(head)
            for _ in range(100):
                writer.write(bytes(MIB))
                await writer.drain()
            assert taken(lswap) > before + 80 * MIB
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            await fallen(lswap, before + 40 * MIB)


async def test_uploads_that_were_open_together_leave_nothing_in_memory(lab: Lab) -> None:
    """The allocator of the system would keep the pieces of many bodies that lie side by side."""
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"
        b'Content-Type: application/json\r\n\r\n{"model":"alpha","pad":"' % (50 * MIB)
    )
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        before = taken(lswap)
        writers = [(await connect(lswap))[1] for _ in range(20)]
        for writer in writers:
            writer.write(head + b"x" * (50 * MIB - 100))
        for writer in writers:
            await writer.drain()
        await risen(lswap, before + 500 * MIB)
        for writer in writers:
            writer.transport.abort()
        await fallen(lswap, before + 40 * MIB)


async def test_a_large_body_for_lswap_itself_is_refused(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        before = taken(lswap)
        body = b'{"conversation_ids":[' + b"[]," * (20 * MIB) + b"[]]}"
        answer = await lswap.client.post("/v1/streams/lookup", content=body)
        assert answer.status_code == 413
        assert str(MIB) in answer.text
        assert taken(lswap) < before + 40 * MIB


async def test_clients_that_pipeline_leave_memory_alone(lab: Lab) -> None:
    """Each sends requests as fast as it can, and reads its answers."""
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        before = taken(lswap)
        requests = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5000

        async def flood() -> int:
            reader, writer = await connect(lswap)
            got = 0

            async def read() -> None:
                nonlocal got
                while data := await reader.read(1 << 20):
                    got += data.count(b"HTTP/1.1 200 OK\r\n")
                    assert b"HTTP/1.1 4" not in data

            reading = asyncio.create_task(read())
            while got < 2000:
                writer.write(requests)
                await writer.drain()
                assert not reading.done(), reading.exception()
            reading.cancel()
            writer.transport.abort()
            return got

        async with asyncio.TaskGroup() as tasks:
            for _ in range(24):
                tasks.create_task(flood())
        assert taken(lswap) < before + 64 * MIB


async def test_a_turn_that_holds_requests_up_is_counted_in_metrics(lab: Lab) -> None:
    """The program is stopped while a request is answered; no known body takes a slow turn."""
    body = {"model": "alpha", "messages": [{"role": "user", "content": "x"}], "stream": True}
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap, asyncio.timeout(60):
        metrics = ""
        while "lswap_slow_turns_total{" not in metrics:
            asked = lswap.client.stream("POST", "/v1/chat/completions", json=body)
            async with asked as answer:
                assert answer.status_code == 200
                os.kill(lswap.pid, signal.SIGSTOP)
                await asyncio.sleep(0.2)
                os.kill(lswap.pid, signal.SIGCONT)
                metrics = (await lswap.client.get("/metrics")).text
        assert 'lswap_slow_turns_total{what="' in metrics
        assert 'lswap_slow_turn_seconds_max{what="' in metrics


async def test_240000_members_are_read_in_steps(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        many = {"model": "none", **{f"member{number}": 1 for number in range(240_000)}}
        answer = await lswap.client.post("/api/chat", json=many)
        assert answer.status_code == 404
        assert "none" in answer.text


async def test_numbers_of_very_many_digits_are_refused(lab: Lab) -> None:
    """Python takes the square of their digits: 3,400 of 4,299 digits take a quarter of a second."""
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        body = b'{"model":"alpha","messages":[],"options":{"seed":%b}}' % (b"1" * 700)
        answer = await lswap.client.post("/api/chat", content=body)
        assert answer.status_code == 400
