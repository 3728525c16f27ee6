"""Clients that hold connections and ask nothing, against a real lswap that may open few files."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.real.answers import PATIENCE, chat_body
from tests.real.test_api_keys import write_keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
FILES = 256
FEW = ("sh", "-c", f'ulimit -n {FILES}; exec "$@"', "sh")
HALF_A_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Some"
HALF_A_BODY = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    b'Content-Length: 100000\r\n\r\n{"model": "alp'
)
IDLE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
EVENTS = b"GET /lswap/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
UNREAD = b"GET /lswap/v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 300
WITH_KEY = {"authorization": "Bearer boss"}


def open_one(lswap: Lswap) -> socket.socket:
    if lswap.url.startswith("unix:"):
        one = socket.socket(socket.AF_UNIX)
        one.connect(lswap.url.removeprefix("unix:"))
        return one
    host, _, port = lswap.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


@asynccontextmanager
async def with_few_files(lab: Lab, **keys: Any) -> AsyncIterator[Lswap]:
    """Run an lswap that may open FILES files."""
    models = {name: lab.preset(name, size="20MiB") for name in ("alpha", "beta", "gamma")}
    server = lab.server(lab.write_config(models, **keys))
    server.wrapper = FEW
    async with server.running():
        yield server
        await server.stop()


def holding(lswap: Lswap, sends: bytes, count: int) -> Iterator[socket.socket]:
    for _ in range(count):
        one = open_one(lswap)
        one.setblocking(False)
        with suppress(BlockingIOError, ConnectionError):
            one.send(sends)
        yield one


async def attacked(lswap: Lswap, sends: bytes, headers: dict[str, str], rounds: int = 2) -> None:
    """Whoever asks with a head that comes at once is answered, on a connection of its own."""
    path = lswap.url.removeprefix("unix:") if lswap.url.startswith("unix:") else None
    with ExitStack() as stack:
        for _ in range(rounds):
            for one in await asyncio.to_thread(lambda: [*holding(lswap, sends, 100)]):
                stack.enter_context(one)
            async with httpx.AsyncClient(
                base_url="http://localhost" if path else lswap.url,
                transport=httpx.AsyncHTTPTransport(uds=path),
                timeout=PATIENCE,
                trust_env=False,
            ) as client:
                body: Any = chat_body("alpha")
                answer = await client.post("/v1/chat/completions", json=body, headers=headers)
                assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "sends",
    [b"", HALF_A_HEAD, HALF_A_BODY, IDLE, EVENTS, UNREAD],
    ids=["silence", "half a head", "half a body", "idle", "events", "unread"],
)
@pytest.mark.parametrize("with_keys", [True, False])
async def test_connections_that_ask_nothing_keep_nobody_out(
    lab: Lab, sends: bytes, with_keys: bool
) -> None:
    keys = {"keys": write_keys(lab.folder)} if with_keys else {}
    async with with_few_files(lab, **keys) as lswap:
        rounds = 10 if sends == HALF_A_HEAD else 2
        await attacked(lswap, sends, WITH_KEY if with_keys else {}, rounds)


async def test_nor_on_a_unix_socket(lab: Lab) -> None:
    listen = f"unix:{lab.folder}/lswap.sock"
    async with with_few_files(lab, listen=listen) as lswap:
        await attacked(lswap, HALF_A_HEAD, {})


async def test_a_model_is_loaded_meanwhile(lab: Lab) -> None:
    """Descriptors are kept for children."""
    async with with_few_files(lab) as lswap, AsyncExitStack() as stack:
        for one in await asyncio.to_thread(lambda: [*holding(lswap, HALF_A_HEAD, 600)]):
            stack.enter_context(one)
        for name in ("alpha", "beta", "gamma"):
            assert await lswap.chat(name) == lab.sentence(name)


async def test_events_for_one_key_leave_places_for_another(lab: Lab) -> None:
    ann = EVENTS.replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer ann\r\n\r\n")
    async with with_few_files(lab, keys=write_keys(lab.folder)) as lswap:
        await attacked(lswap, ann, WITH_KEY)


async def test_the_connection_that_gave_way_is_told_why(lab: Lab) -> None:
    limits = {"connections": 8}
    async with lab.lswap({"alpha": lab.preset("alpha")}, limits=limits) as lswap:
        with ExitStack() as stack:
            first = stack.enter_context(open_one(lswap))
            first.sendall(HALF_A_HEAD)
            for one in await asyncio.to_thread(lambda: [*holding(lswap, HALF_A_HEAD, 20)]):
                stack.enter_context(one)
            said = await asyncio.to_thread(first.recv, 1 << 16)
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: " in said
        assert b"limits.connections" in said
        metrics = (await lswap.client.get("/metrics")).text
        assert "lswap_connections_limit 8.0" in metrics
        gave_way = metrics.partition("\nlswap_connections_gave_way_total ")[2].split()[0]
        assert float(gave_way) >= 1


async def test_a_connection_with_a_key_takes_no_place_of_those_without(lab: Lab) -> None:
    """It counts as its key's from the head of its first request on, also while the body comes."""
    half = HALF_A_BODY.partition(b"\r\n\r\n")[0]
    begun = half + b"\r\nAuthorization: Bearer boss\r\nExpect: 100-continue\r\n\r\n"
    keys, limits = write_keys(lab.folder), {"connections": 32}
    models = {"alpha": lab.preset("alpha")}
    async with lab.lswap(models, keys=keys, limits=limits) as lswap:
        with ExitStack() as stack:
            stranger = stack.enter_context(open_one(lswap))
            stranger.sendall(IDLE[:-2])
            for _ in range(14):  # strangers have 8 places, a key 16
                one = stack.enter_context(open_one(lswap))
                one.sendall(begun)
                said = await asyncio.to_thread(one.recv, 1 << 16)
                assert said.startswith(b"HTTP/1.1 100 "), said
            stranger.sendall(IDLE[-2:])
            said = await asyncio.to_thread(stranger.recv, 1 << 16)
            assert said.startswith(b"HTTP/1.1 200 "), said
