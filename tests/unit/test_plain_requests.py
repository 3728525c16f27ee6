"""Requests that a ready model gets as they are: at once, and each as the first one was."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from llamaswap_py.api import App
from llamaswap_py.api.errors import render_wire_error
from llamaswap_py.config.api_keys import ApiKey, KeyRing, hash_secret
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.proxy import bind, serve
from llamaswap_py.supervisor.supervisor import Supervisor
from tests.proxy.harness import (
    SSE_HEAD,
    Answer,
    Client,
    Peer,
    Upstream,
    answering,
    connected,
    eventually,
    sse,
    then,
    upstream,
)
from tests.unit.supervisors import configured, loaded_supervisor, prepared

if TYPE_CHECKING:
    from llamaswap_py.proxy import Exchange
    from tests.proxy.harness import Script

pytestmark = pytest.mark.anyio

CONFIG = """
limits: {body: 100KiB}
aliases: {either: {first: [alpha, beta]}}
models:
  alpha: {model: /nowhere/a.gguf, aliases: [one]}
  beta: {model: /nowhere/b.gguf, request: {set: {seed: 1}}}
  gamma: {model: /nowhere/c.gguf, when_full: "substitute: alpha"}
"""
BODY = b'{"id":"x","usage":{"completion_tokens":3,"prompt_tokens":5,"total_tokens":8}}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)
CHAT = "/v1/chat/completions"


@dataclass
class Stage:
    app: App
    supervisor: Supervisor
    child: Upstream
    endpoint: Endpoint
    #: of each request that has ended: it was answered without its connection's task
    at_once: list[bool] = field(default_factory=list)

    async def handle(self, exchange: Exchange) -> None:
        try:
            await self.app.handle(exchange)
        finally:
            self.at_once.append(exchange.connection.at_once)

    def sent(self) -> list[bytes]:
        """Return what the child got, but for what names each request."""
        line = re.compile(rb"\r\nx-request-id: [^\r]*", re.IGNORECASE)
        return [line.sub(b"", one) for one in self.child.requests]

    def nothing_is_left(self) -> bool:
        held = [one.open_leases.requests() for one in self.supervisor.instances.running.values()]
        return not (
            self.app.services.calls
            or self.supervisor.leases.tickets
            or self.supervisor.scheduler.state.leases
            or any(one.owing or one.others for one in held)
        )


@asynccontextmanager
async def staged(folder: Path, *scripts: Script, config: str = CONFIG) -> AsyncIterator[Stage]:
    async with (
        upstream(folder, *scripts or (answering(OK),)) as child,
        loaded_supervisor(folder / "run", configured(config), child.endpoint) as supervisor,
    ):
        app = App(supervisor)
        sock = bind(Endpoint(port=0))
        stage = Stage(app, supervisor, child, Endpoint(port=sock.getsockname()[1]))
        async with serve([sock], stage.handle, on_wire_error=render_wire_error):
            yield stage
        assert stage.nothing_is_left()


def request(
    body: object = None, path: str = CHAT, headers: str = "", method: str = "POST"
) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body or {"model": "alpha"}).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}"
    if "content-type" not in headers.lower():
        head += "Content-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(data), data)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what nobody says."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def ask(client: Client, data: bytes) -> Answer:
    return await client.ask(data)


async def test_it_is_answered_as_the_first_one_was(short_dir: Path) -> None:
    async with staged(short_dir) as stage, connected(stage.endpoint) as client:
        answers = [await ask(client, request()) for _ in range(4)]
        # the first one had to wait for a connection to the child
        assert stage.at_once == [False, True, True, True]
        ids = {one.headers.pop("x-request-id") for one in answers}
        assert len(ids) == 4
        for name in ("x-lswap-queue-ms", "x-lswap-load-ms"):
            assert all(one.headers.pop(name).isdigit() for one in answers)
        first_answer, *others = answers
        assert all(
            (one.status, one.headers, one.body) == (200, first_answer.headers, BODY)
            for one in others
        )
        first, *later = stage.child.requests
        for sent in later:
            lines = [
                set(one.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")) for one in (first, sent)
            ]
            assert {one.partition(b":")[0] for one in lines[0] ^ lines[1]} == {b"x-request-id"}
        counts = stage.app.services.counters
        assert counts.requests == {("alpha", CHAT, 200): 4}
        assert list(counts.models) == ["alpha"]
        alpha = counts.models["alpha"]
        assert (alpha.tokens_in, alpha.tokens_out) == (20, 12)
        for kind in (alpha.total, alpha.first_byte, alpha.queue, alpha.load):
            assert sum(kind.counts) == 4
        assert stage.supervisor.leases.granted == 4


@pytest.mark.parametrize(
    "data",
    [
        request({"model": "one"}),
        request({"model": "alpha", "stream": False, "messages": []}, "/v1/completions"),
        request({"model": "alpha"}, "/tokenize"),
        request(headers="Content-Type: application/json; charset=utf-8\r\n"),
        request(headers="User-Agent: x\r\n"),
    ],
)
async def test_requests_that_wait_for_nothing(short_dir: Path, data: bytes) -> None:
    async with staged(short_dir) as stage, connected(stage.endpoint) as client:
        for _ in range(3):
            assert (await ask(client, data)).status == 200
        assert stage.at_once == [False, True, True]
        assert len(set(stage.sent())) == 1


@pytest.mark.parametrize(
    "data",
    [
        request({"model": "beta"}),  # its bodies are changed
        request({"model": "gamma"}),  # another may answer
        request({"model": "either"}),  # chosen for each request
        request({"model": "nobody"}),
        request({"model": 3}),
        request({"model": None}),
        request(b'{"model": "alpha"'),
        request(b'\xef\xbb\xbf{"model": "alpha"}'),
        request(b"{}"),
        request({"model": "alpha", "pad": "x" * 110_000}),
        request(path=CHAT + "?autoload=true"),
        request(path="/v1/chat/completions/control"),
        request(path="/upstream/alpha/v1/chat/completions"),
        request(headers="X-Request-Id: mine\r\n"),
        request(headers="X-Conversation-Id: mine\r\n"),
        request(headers="X-Lswap-Priority: -1\r\n"),
        request(headers="Content-Type: application/x-www-form-urlencoded\r\n"),
        request(headers="Content-Type: multipart/form-data; boundary=x\r\n"),
    ],
)
async def test_what_is_looked_at_each_time_is_answered_alike(short_dir: Path, data: bytes) -> None:
    async with staged(short_dir) as stage, connected(stage.endpoint) as client:
        answers = [await ask(client, data) for _ in range(3)]
        assert len({one.status for one in answers}) == 1
        assert len({re.sub(rb"[0-9a-f]{8}-\d+", b"", one.body) for one in answers}) == 1
        assert len(set(stage.sent())) <= 1
        assert len(stage.sent()) == (3 if answers[0].status == 200 else 0)


class Kept:
    """Captures that keep what they get in a list."""

    def __init__(self, records: list[Any]) -> None:
        self.keep = records.append


async def test_capturing_sees_every_request(short_dir: Path) -> None:
    kept: list[Any] = []
    async with staged(short_dir) as stage, connected(stage.endpoint) as client:
        await ask(client, request())
        stage.app.services.captures = cast("Any", Kept(kept))
        for _ in range(2):
            await ask(client, request())
        assert stage.at_once == [False, True, True]
        assert len(kept) == 2


async def test_a_changed_configuration_is_looked_at_anew(short_dir: Path) -> None:
    async with staged(short_dir) as stage, connected(stage.endpoint) as client:
        for _ in range(2):
            await ask(client, request())
        supervisor = stage.supervisor
        text = CONFIG.replace("aliases: [one]", "request: {set: {seed: 2}}")
        config = configured(text)
        supervisor.adopt(config, {name: prepared(one) for name, one in config.models.items()})
        for _ in range(3):
            await ask(client, request())
        assert stage.at_once == [False, True, True, True, True]
        assert not any(b"seed" in sent for sent in stage.child.requests[:2])
        assert all(b'"seed":2' in sent for sent in stage.child.requests[2:])


def key(name: str, **more: Any) -> ApiKey:
    return ApiKey(name=name, hash=hash_secret(name.encode()), **more)


async def test_keys_are_asked_once_for_each_head(short_dir: Path) -> None:
    async with staged(short_dir) as stage:
        ring = KeyRing([key("free"), key("few", max_in_flight=1), key("some", models=("alpha",))])
        stage.app.services.access.replace(ring)
        for name in ("free", "few", "some"):
            async with connected(stage.endpoint) as client:
                data = request(headers=f"Authorization: Bearer {name}\r\n")
                for _ in range(2):
                    assert (await ask(client, data)).status == 200
                assert stage.at_once[-1] is True
                other = request({"model": "gamma"}, headers=f"Authorization: Bearer {name}\r\n")
                for _ in range(2):
                    status = (await ask(client, other)).status
                    assert status == (403 if name == "some" else 200)
        async with connected(stage.endpoint) as client:
            data = request(headers="Authorization: Bearer free\r\n")
            for _ in range(2):
                assert (await ask(client, data)).status == 200
            assert stage.at_once[-1] is True
            stage.app.services.access.replace(KeyRing([key("other")]))
            assert (await ask(client, data)).status == 401


async def test_with_every_slot_taken_a_request_waits(short_dir: Path) -> None:
    go_on = asyncio.Event()

    async def child(upstream: Upstream, peer: Peer) -> None:
        while True:
            sent = await upstream.request(peer)
            if b"hold" in sent:
                await eventually(go_on)
            await peer.send(OK)

    hold = request({"model": "alpha", "x": "hold"})
    async with (
        staged(short_dir, child) as stage,
        connected(stage.endpoint) as client,
        AsyncExitStack() as stack,
    ):
        await ask(client, request())
        state = stage.supervisor.scheduler.state
        others = [await stack.enter_async_context(connected(stage.endpoint)) for _ in range(4)]
        for other in others:
            await other.send(hold)
        await until(lambda: len(state.leases) == 4)
        await client.send(request())
        await until(lambda: state.waiters)
        assert stage.at_once == [False]
        go_on.set()
        assert {(await one.answer()).status for one in (*others, client)} == {200}
        # three of those that held the slots wanted a connection, and the last one a slot
        assert sorted(stage.at_once) == [False] * 5 + [True]


async def test_a_lease_that_is_taken_back_unseen_begins_again(short_dir: Path) -> None:
    async with (
        staged(short_dir, then(OK), answering(OK)) as stage,
        connected(stage.endpoint) as client,
    ):
        await ask(client, request())
        await client.send(request())
        await until(lambda: len(stage.child.requests) == 2)
        (lease,) = stage.supervisor.scheduler.state.leases
        stage.supervisor.leases.revoke(lease, "drain deadline")
        assert (await client.answer()).status == 200
        assert len(stage.child.requests) == 3
        assert stage.app.services.counters.requests == {("alpha", CHAT, 200): 2}


async def test_a_stream_that_is_cut_ends_with_an_event(short_dir: Path) -> None:
    async with (
        staged(short_dir, then(OK, SSE_HEAD + sse("one"))) as stage,
        connected(stage.endpoint) as client,
    ):
        await ask(client, request())
        await client.send(request({"model": "alpha", "stream": True}))
        assert (await client.head()).headers["x-lswap-model"] == "alpha"
        await client.until(b"\n\n\r\n")
        (lease,) = stage.supervisor.scheduler.state.leases
        stage.supervisor.leases.revoke(lease, "drain deadline")
        assert b"unloaded" in await client.until(b"0\r\n\r\n")


async def test_an_operator_ends_one(short_dir: Path) -> None:
    async with (
        staged(short_dir, then(OK, SSE_HEAD + sse("one"))) as stage,
        connected(stage.endpoint) as client,
        connected(stage.endpoint) as operator,
    ):
        await ask(client, request())
        await client.send(request({"model": "alpha", "stream": True}))
        id = (await client.head()).headers["x-request-id"]
        await client.until(b"\n\n\r\n")
        seen = await ask(operator, request(method="GET", path="/lswap/v1/requests", body=b""))
        (one,) = cast("Any", seen.json)["requests"]
        assert (one["id"], one["model"], one["state"], one["tokens"]) == (id, "alpha", "running", 1)
        ended = await ask(operator, request(path=f"/lswap/v1/requests/{id}/cancel", body=b""))
        assert ended.status == 200
        assert b"cancelled" in await client.until(b"0\r\n\r\n")


async def test_a_child_that_dies_unseen_is_asked_once_more(short_dir: Path) -> None:
    async with (
        staged(short_dir, then(OK, stay=False), answering(OK)) as stage,
        connected(stage.endpoint) as client,
    ):
        await ask(client, request())
        assert (await ask(client, request())).status == 200
        assert stage.at_once == [False, False]
        assert stage.app.services.counters.requests == {("alpha", CHAT, 200): 2}


async def test_a_child_that_dies_halfway(short_dir: Path) -> None:
    async with (
        staged(short_dir, then(OK, SSE_HEAD + sse("one"), stay=False)) as stage,
        connected(stage.endpoint) as client,
    ):
        await ask(client, request())
        await client.send(request({"model": "alpha", "stream": True}))
        await client.head()
        assert b"upstream_failed" in await client.until(b"0\r\n\r\n")


async def test_a_client_that_leaves_is_counted_as_gone(short_dir: Path) -> None:
    left = asyncio.Event()

    async def child(upstream: Upstream, peer: Peer) -> None:
        await upstream.request(peer)
        await peer.send(OK)
        await upstream.request(peer)
        await peer.gone()
        left.set()

    async with staged(short_dir, child) as stage:
        async with connected(stage.endpoint) as client:
            await ask(client, request())
            await client.send(request())
            await until(lambda: len(stage.child.requests) == 2)
        await eventually(left)
        assert stage.app.services.counters.requests == {
            ("alpha", CHAT, 200): 1,
            ("alpha", CHAT, 0): 1,
        }
        assert stage.nothing_is_left()
