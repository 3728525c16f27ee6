"""The api over the real wire: what a client sees when leases are revoked and children die."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest

from llamaswap_py.api import App
from llamaswap_py.api.errors import render_wire_error
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.proxy import UpstreamPool, bind, serve
from tests.unit.api_fakes import FakeLease, FakeSupervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path
    from typing import TypeAlias

    Behaviour: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"
STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"a\r\ndata: 1\n\n\n\r\n"
)


class Supervisor(FakeSupervisor):
    """Grants leases of `children`, one after another; the last one again and again."""

    children: list[Endpoint]
    epochs: list[int]
    returned: asyncio.Event

    @contextmanager
    def leased(self, preset: str, **asked: Any) -> Iterator[FakeLease]:
        at = min(len(self.asked), len(self.children) - 1)
        self.asked.append({"preset": preset, **asked})
        lease = FakeLease(endpoint=self.children[at], epoch=self.epochs[at])
        self.leases.append(lease)
        try:
            yield lease
        finally:
            self.returned.set()


class Stage:
    """A client, lswap's wire and api, and scripted children on unix sockets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.supervisor = Supervisor()
        self.supervisor.children, self.supervisor.epochs = [], []
        self.supervisor.returned = asyncio.Event()
        self.client = cast("httpx.AsyncClient", None)
        self._servers: list[asyncio.Server] = []

    async def child(self, behave: Behaviour | None, epoch: int) -> None:
        """Add a child: `behave` runs after each request head; None: nobody listens."""
        path = str(self.folder / f"{len(self.supervisor.children)}.sock")
        self.supervisor.children.append(Endpoint(path=path))
        self.supervisor.epochs.append(epoch)
        if behave is None:
            return

        async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await behave(reader, writer)
            writer.close()

        self._servers.append(await asyncio.start_unix_server(serve_one, path))

    async def ask(self, path: str = "/v1/chat/completions") -> httpx.Response:
        return await self.client.post(path, json={"model": "alpha"})

    def close(self) -> None:
        for server in self._servers:
            server.close()


@pytest.fixture
async def stage(short_dir: Path) -> AsyncIterator[Stage]:
    listener = str(short_dir / "l.sock")
    async with UpstreamPool() as pool:
        stage = Stage(short_dir)
        stage.supervisor.pool = pool
        app = App(cast("Any", stage.supervisor))
        async with serve(
            [bind(Endpoint(path=listener))], app.handle, on_wire_error=render_wire_error
        ):
            transport = httpx.AsyncHTTPTransport(uds=listener)
            async with httpx.AsyncClient(transport=transport, base_url="http://l") as client:
                stage.client = client
                yield stage
        stage.close()


async def answer_ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)
    await writer.drain()


async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    pass


def revoked(stage: Stage) -> Behaviour:
    """Return a child whose lease is revoked while it works; it answers nothing."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        callback = stage.supervisor.leases[-1].revoke
        assert callback is not None
        callback("drain deadline")

    return behave


async def test_a_revoked_lease_without_a_byte_is_invisible(stage: Stage) -> None:
    for epoch in (1, 2):
        await stage.child(revoked(stage), epoch)
    await stage.child(answer_ok, 3)
    answer = await stage.ask()
    assert (answer.status_code, answer.text) == (200, "ok")
    assert [lease.outcome for lease in stage.supervisor.leases] == ["cut", "cut", "ok"]
    assert answer.headers.get_list("x-lswap-model") == ["alpha"]
    assert len(answer.headers.get_list("x-request-id")) == 1


async def test_a_child_that_dies_unseen_is_invisible(stage: Stage) -> None:
    await stage.child(die, 1)
    await stage.child(answer_ok, 2)
    assert (await stage.ask()).text == "ok"
    assert [lease.outcome for lease in stage.supervisor.leases] == ["upstream_error", "ok"]


async def test_a_dead_instance_is_left_behind_even_if_granted_again(stage: Stage) -> None:
    await stage.child(die, 1)
    for _ in range(3):  # its socket is gone before its exit is known
        await stage.child(None, 1)
    await stage.child(answer_ok, 2)
    assert (await stage.ask()).text == "ok"
    assert len(stage.supervisor.asked) == 5


async def test_two_deaths_are_an_error(stage: Stage) -> None:
    await stage.child(die, 1)
    await stage.child(die, 2)
    answer = await stage.ask()
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_failed"
    assert answer.headers["x-lswap-model"] == "alpha"


@pytest.mark.parametrize(
    ("path", "end"),
    [
        ("/v1/chat/completions", 'data: {"error":{"message":"the answer was cut short'),
        ("/v1/messages", 'event: error\ndata: {"type":"error"'),
    ],
)
async def test_a_stream_that_is_cut_ends_with_an_event(stage: Stage, path: str, end: str) -> None:
    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        await writer.drain()
        await seen.wait()
        callback = stage.supervisor.leases[-1].revoke
        assert callback is not None
        callback("shutdown deadline")

    seen = asyncio.Event()
    await stage.child(stream, 1)
    text = ""
    async with stage.client.stream("POST", path, json={"model": "alpha"}) as answer:
        async for piece in answer.aiter_text():
            text += piece
            seen.set()
    assert text.startswith("data: 1\n\n")
    assert end in text
    assert "lswap is stopping" in text
    assert stage.supervisor.leases[0].outcome == "cut"


async def test_a_stream_whose_child_dies_ends_with_an_event(stage: Stage) -> None:
    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        await writer.drain()

    await stage.child(stream, 1)
    answer = await stage.ask()
    assert answer.text.startswith("data: 1\n\n")
    assert 'data: {"error":' in answer.text
    assert stage.supervisor.leases[0].outcome == "upstream_error"


async def test_a_client_that_leaves_gives_its_lease_back(stage: Stage) -> None:
    gone = asyncio.Event()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        await writer.drain()
        await reader.read()
        gone.set()

    await stage.child(stream, 1)
    async with stage.client.stream("POST", "/v1/messages", json={"model": "alpha"}) as answer:
        assert answer.status_code == 200
        assert not stage.supervisor.returned.is_set()
    async with asyncio.timeout(60):
        await gone.wait()
        await stage.supervisor.returned.wait()


async def test_errors_keep_the_connection(stage: Stage) -> None:
    await stage.child(answer_ok, 1)
    for body, status in ((b"{", 400), (b'{"model":"nobody"}', 404), (b'{"model":"alpha"}', 200)):
        answer = await stage.client.post("/v1/completions", content=body)
        assert answer.status_code == status
        assert answer.headers.get("connection") != "close"
