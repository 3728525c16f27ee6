"""Clients that attack lswap all the time, and say what they got that they must not get.

An attacker has no key, or the inference key `mallory`. It holds connections, floods, sends bodies
that are expensive to read, fills queues, and asks for what only an administrator or another client
may have. `wrongs` lists each success: there must be none. Whether others suffer is judged by the
crowd (tests/faults/crowd.py), whose requests go on meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import httpx
import yaml

from llamaswap_py.config.api_keys import hash_secret
from tests.faults.crowd import conversation_of
from tests.real.answers import PATIENCE, chat_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.real.harness import Lswap

CROWD: Final = "the-key-of-the-crowd"
"""The secret of the honest clients and of the tests themselves, which are administrators."""
MALLORY: Final = "the-key-of-mallory"
"""The secret of the attackers, an inference key."""

REFUSED: Final = frozenset({400, 401, 403, 404, 405, 413, 421, 429, 501, 503})
"""What may be answered to what an inference key may not do."""


def write_keys(folder: Path, *, mallory: bool = True) -> dict[str, str]:
    """Write the key file of both, or without mallory's; return the file's `keys`."""
    keys = [{"name": "crowd", "hash": hash_secret(CROWD.encode()), "kind": "admin"}]
    if mallory:
        keys.append({"name": "mallory", "hash": hash_secret(MALLORY.encode())})
    path = folder / "keys.yaml"
    new = path.with_suffix(".new")
    new.write_text(yaml.safe_dump({"keys": keys}))
    new.chmod(0o600)
    new.replace(path)
    return {"file": str(path)}


@dataclass(slots=True)
class Attacker:
    """One attacker: its client, its dice, what it did and what it got that it must not get."""

    lswap: Lswap
    models: tuple[str, ...]
    client: httpx.AsyncClient
    dice: random.Random
    done: Counter[str] = field(default_factory=Counter)
    wrongs: list[str] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.lswap.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    @property
    def model(self) -> str:
        """Some model."""
        return self.dice.choice(self.models)

    async def attack(self, how: Callable[[Attacker], Awaitable[None]]) -> None:
        """Play one attack to its end; what breaks for the attacker itself is its own affair."""
        name = how.__name__
        try:
            async with asyncio.timeout(PATIENCE):
                await how(self)
        except TimeoutError:
            self.wrongs.append(f"{name}: nothing came within {PATIENCE:g} s")
        except (httpx.TransportError, OSError):
            pass  # a connection that lswap closes is one way to refuse
        self.done[name] += 1

    async def attack_until(self, stopping: asyncio.Event) -> None:
        """Play attacks at random, with a short rest after each."""
        while not stopping.is_set():
            await self.attack(self.dice.choice(ATTACKS))
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), self.dice.random())

    async def must_fail(self, method: str, url: str, **more: object) -> None:
        """Send a request that only others may send."""
        answer = await self.client.request(method, url, **more)  # type: ignore[arg-type]
        if answer.status_code not in REFUSED:
            self.wrongs.append(f"{method} {url}: {answer.status_code} {answer.text[:200]!r}")

    @asynccontextmanager
    async def connections(self, count: int, data: bytes) -> AsyncIterator[None]:
        """Hold so many connections, each of which has sent `data`."""
        async with AsyncExitStack() as stack:
            for _ in range(count):
                _, writer = await asyncio.open_connection(*self.address)
                stack.callback(writer.close)
                writer.write(data)
            yield


@asynccontextmanager
async def attackers(
    lswap: Lswap, models: tuple[str, ...], count: int
) -> AsyncIterator[list[Attacker]]:
    """Make so many attackers, with a client of their own."""
    async with httpx.AsyncClient(
        base_url=lswap.url,
        headers={"authorization": f"Bearer {MALLORY}"},
        limits=httpx.Limits(max_connections=None),
        timeout=PATIENCE,
        trust_env=False,
    ) as client:
        yield [Attacker(lswap, models, client, random.Random(seed)) for seed in range(count)]


async def half_sent_heads(one: Attacker) -> None:
    """500 connections without a key, each with half a head."""
    async with one.connections(500, b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Pad: "):
        await asyncio.sleep(1)


async def half_sent_bodies(one: Attacker) -> None:
    """A hundred requests whose bodies stop in the middle."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer "
    whole = f"{head}{MALLORY}\r\nContent-Length: 4000000\r\n\r\n".encode() + b" " * 1000
    async with one.connections(100, whole):
        await asyncio.sleep(1)


async def pipelined_flood(one: Attacker) -> None:
    """20,000 requests without a key on one connection, of whose answers none is read."""
    async with one.connections(1, b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n" * 20_000):
        await asyncio.sleep(1)


async def broken_uploads(one: Attacker) -> None:
    """Eight megabytes of a body of sixty, four times, then the client is gone."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer "
    begun = f"{head}{MALLORY}\r\nContent-Length: 60000000\r\n\r\n".encode()
    for _ in range(4):
        _, writer = await asyncio.open_connection(*one.address)
        writer.write(begun + b'{"messages": "' + b"x" * 8_000_000)
        await writer.drain()
        writer.close()


async def hostile_json(one: Attacker) -> None:
    """JSON that is expensive to read, on routes that read it."""
    bodies = (
        b"[" * 1_000_000,
        b'{"model": [' + b"0," * 1_000_000 + b"0]}",
        b'{"messages": [' + b"{}," * 500_000 + b"{}]}",
        b'{"model": "' + b"\\u0061" * 600_000 + b'"}',
        b'{"keep_alive": 0' + b"".join(b',"k%d":{}' % n for n in range(100_000)) + b"}",
    )
    paths = ("/v1/chat/completions", "/v1/messages", "/api/chat", "/api/embed", "/tokenize")
    body, path = one.dice.choice(bodies), one.dice.choice((*paths, "/v1/streams/lookup"))
    answer = await one.client.post(path, content=body, headers={"content-type": "application/json"})
    if answer.status_code == HTTPStatus.OK and path != "/v1/streams/lookup":
        one.wrongs.append(f"{path} took hostile JSON: {answer.text[:200]!r}")


async def full_queue(one: Attacker) -> None:
    """48 requests at once for one model."""
    model = one.model

    async def ask() -> int:
        body = chat_body(model, max_tokens=12)
        return (await one.client.post("/v1/chat/completions", json=body)).status_code

    statuses = set(await asyncio.gather(*(ask() for _ in range(48))))
    if odd := statuses - {200, 401, 429, 502, 503}:  # 401: its key is revoked now and then
        one.wrongs.append(f"{model}: statuses {odd} for 48 requests at once")


SPELLINGS: Final = (
    "lora-adapters",
    "lora%uD800-adapters",
    "%uDFFFlora-adapters",
    "lora%u002Dadapters",
    "lora%2Dadapters",
    "l%6Fra-adapters",
    "%u006Cora-adapters",
    "./lora-adapters",
    "/lora-adapters",
    "x/../lora-adapters",
    "x/%2E%2E/lora-adapters",
    "lora-adapters%3Fx",
    "lora-adapters%23",
    "lora-adapters;x",
    "lora-adapters/",
    "lora-adapters%00",
    "LORA-ADAPTERS",
)
"""An admin route of llama-server, and how else one may try to write it."""


async def odd_paths(one: Attacker) -> None:
    """An admin route of a child, spelled so that lswap might not know it again."""
    model = one.model
    for spelled in SPELLINGS:
        reader, writer = await asyncio.open_connection(*one.address)
        try:
            writer.write(
                f"POST /upstream/{model}/{spelled} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
                f"Authorization: Bearer {MALLORY}\r\nContent-Length: 2\r\n\r\n[]".encode()
            )
            answer = await reader.read(100_000)
        finally:
            writer.close()
        status = answer.split(b" ", 2)[1].decode() if answer else "none"
        if status.startswith("2"):
            one.wrongs.append(f"POST /upstream/{model}/{spelled}: {answer[:300]!r}")


async def operator_routes(one: Attacker) -> None:
    """What only an administrator may do."""
    model = one.model
    await one.must_fail("POST", f"/lswap/v1/models/{model}/unload?force=true")
    await one.must_fail("POST", "/models/unload", json={"model": model})
    await one.must_fail("POST", "/lswap/v1/reload")
    await one.must_fail("GET", f"/lswap/v1/logs/{model}")
    await one.must_fail("POST", "/api/generate", json={"model": model, "keep_alive": 0})


async def others_answers(one: Attacker) -> None:
    """Read and end the answers of the crowd, whose ids it knows."""
    for number in range(4):
        name = conversation_of(number, one.model)
        await one.must_fail("GET", "/v1/stream", params={"conv_id": name, "from": "0"})
        await one.client.delete("/v1/stream", params={"conv_id": name})  # 204 for what is not there
        found = await one.client.post("/v1/streams/lookup", json={"conversation_ids": [name]})
        if found.status_code == HTTPStatus.OK and found.json():
            one.wrongs.append(f"lookup told of {name}: {found.text[:200]}")


async def urls_to_fetch(one: Attacker) -> None:
    """Images at an address of this machine, which nobody may be made to ask."""
    asked = asyncio.Event()

    def listen(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = {"url": f"http://127.0.0.1:{port}/x.png"}
        content = [{"type": "image_url", "image_url": url}]
        body = {"model": one.model, "messages": [{"role": "user", "content": content}]}
        for path in ("/v1/chat/completions", "/v1/responses", "/api/chat"):
            await one.must_fail("POST", path, json=body)
    if asked.is_set():
        one.wrongs.append("an image was fetched")


async def event_readers(one: Attacker) -> None:
    """Twenty readers of events, which read nothing."""
    head = f"GET /lswap/v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {MALLORY}\r\n\r\n"
    async with one.connections(20, head.encode()):
        await asyncio.sleep(1)


ATTACKS: Final[tuple[Callable[[Attacker], Awaitable[None]], ...]] = (
    *(half_sent_heads, half_sent_bodies, pipelined_flood, broken_uploads, hostile_json),
    *(full_queue, odd_paths, operator_routes, others_answers, event_readers, urls_to_fetch),
)
