"""Clients that break the rules, all at once, while well-behaved ones must not notice."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import sys
from collections import Counter
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.faults.checks import check_all
from tests.faults.crowd import Crowd
from tests.real.answers import PATIENCE, chat_body, model_of

if TYPE_CHECKING:
    from tests.real.harness import Lswap
    from tests.real.lab import Lab, Preset

pytestmark = pytest.mark.anyio
LIMIT = 8


def models_of(lab: Lab) -> dict[str, Preset]:
    return {
        "alpha": lab.preset("alpha", size="60MiB"),
        "long": lab.endless("long", size="60MiB", layers=32),
    }


def crowd_of(lab: Lab, lswap: Lswap) -> Crowd:
    sentences = {name: lab.sentence(name) for name in ("alpha", "long")}
    return Crowd(lswap, sentences, frozenset({"long"}))


def address_of(lswap: Lswap) -> tuple[str, int]:
    host, _, port = lswap.url.removeprefix("http://").rpartition(":")
    return host, int(port)


def request(body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
    )
    return head.encode() + b"\r\n" + data


async def one_byte_at_a_time(lswap: Lswap, data: bytes, pause: float) -> bytes:
    """Send a request that way; return what came until the server closed or the answer began."""
    reader, writer = await asyncio.open_connection(*address_of(lswap))
    try:
        for number in range(len(data)):
            writer.write(data[number : number + 1])
            await writer.drain()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    return await reader.read(4096)
        return await reader.read(4096)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_slow_stalled_and_vanishing_clients(lab: Lab) -> None:
    """Their own requests end; nobody else waits for them."""
    limits = {"head_read": "1s", "idle": "2s"}
    async with lab.lswap(models_of(lab), limits=limits) as lswap:
        crowd = crowd_of(lab, lswap)
        whole = request(chat_body("alpha"))
        endless = request(chat_body("long", stream=True, max_tokens=1_000_000))
        async with crowd.asking(), asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
            # One byte a second: the head has its time, and then it is over.
            slow = [tasks.create_task(one_byte_at_a_time(lswap, whole, 0.25)) for _ in range(5)]
            # As slow, but a legal body: answered.
            prompt = tasks.create_task(one_byte_at_a_time(lswap, whole[:40], 0.002))
            # A stream that is never read, a body that never comes, a client that says nothing.
            stalled = [stack.enter_context(socket.create_connection(address_of(lswap)))]
            for data in (endless, whole[:-10], b""):
                stalled.append(stack.enter_context(socket.create_connection(address_of(lswap))))
                stalled[-1].sendall(data)
            # Clients that vanish at every point.
            for cut in range(0, len(whole), 9):
                with socket.create_connection(address_of(lswap)) as gone:
                    gone.sendall(whole[:cut])
            for one in slow:
                assert (await one).startswith(b"HTTP/1.1 408 ")
            await prompt
            await crowd.until_answered(8)
            for each in stalled:
                each.close()
        await check_all(lswap, crowd)
        await lswap.until_slots_are_free("long")


async def test_a_burst_of_ten_times_the_limit(lab: Lab) -> None:
    """Who does not fit is refused at once; whoever was let in is answered."""
    models = models_of(lab)
    policy = {"queue": {"limit": LIMIT}}
    async with lab.lswap(models, policy=policy) as lswap:
        crowd = crowd_of(lab, lswap)
        async with (
            lswap.stream("long", max_tokens=1_000_000) as one,
            lswap.stream("long", max_tokens=1_000_000) as other,
        ):
            await one.read(1)
            await other.read(1)  # both slots are taken
            asked = [
                asyncio.create_task(lswap.post_chat("long", max_tokens=12))
                for _ in range(10 * LIMIT)
            ]
            async with asyncio.timeout(PATIENCE):
                while sum(each.done() for each in asked) < 9 * LIMIT:
                    await asyncio.wait(asked, timeout=0.1)
            assert model_of(await lswap.state(), "long").waiting == LIMIT
        statuses = Counter([(await each).status_code for each in asked])
        assert statuses == {200: LIMIT, 429: 9 * LIMIT}
        for each in asked:
            answer = await each
            if answer.status_code == 429:
                assert answer.json()["error"]["code"] == "queue_full"
                assert int(answer.headers["retry-after"]) >= 1
            else:
                text = answer.json()["choices"][0]["message"]["content"]
                assert text.startswith(lab.sentence("long"))
        await check_all(lswap, crowd)


async def test_no_more_file_descriptors(lab: Lab) -> None:
    """Whoever is connected is served or told; when there are some again, everything works."""
    if sys.platform != "linux":
        pytest.skip("missing: Linux")
    async with lab.lswap(models_of(lab)) as lswap:
        crowd = crowd_of(lab, lswap)
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        old = resource.prlimit(lswap.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(lswap.pid, resource.RLIMIT_NOFILE, (64, old[1]))
        try:
            with ExitStack() as stack:
                for _ in range(100):
                    one = stack.enter_context(socket.create_connection(address_of(lswap)))
                    one.setblocking(False)
                answer = await lswap.post_chat("alpha")  # on the connection that was open before
                assert answer.status_code in (200, 502, 503), answer.text
                with suppress(httpx.TransportError, TimeoutError):
                    async with asyncio.timeout(1):
                        await lswap.post_chat("long")
        finally:
            resource.prlimit(lswap.pid, resource.RLIMIT_NOFILE, old)
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(httpx.TransportError):
                    if (await lswap.post_chat("alpha")).status_code == 200:
                        break
                await asyncio.sleep(0.1)
        async with crowd.asking():
            await crowd.until_answered(8)
        await check_all(lswap, crowd, hit=("alpha", "long"))
