"""Listening, draining, and the errors of bind."""

from __future__ import annotations

import asyncio
import os
import stat
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import StateError
from llamaswap_py.proxy import Exchange, bind, serve
from llamaswap_py.proxy.client import ClientConnection
from llamaswap_py.tasks import guard

from .harness import connected, eventually, serving, wire_error

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def hello(exchange: Exchange) -> None:
    exchange.respond(200, b"hello")


async def test_several_sockets_at_once(folder: Path) -> None:
    tcp, unix = bind(Endpoint(port=0)), bind(Endpoint(path=str(folder / "s.sock")))
    port = tcp.getsockname()[1]
    async with serve([tcp, unix], hello, on_wire_error=wire_error) as server:
        for endpoint in (Endpoint(port=port), Endpoint(path=str(folder / "s.sock"))):
            async with connected(endpoint) as client:
                assert (await client.ask(GET)).body == b"hello"
        assert repr(server).startswith("<Server listening")
    assert not (folder / "s.sock").exists()


async def test_draining_closes_the_idle_and_finishes_the_busy() -> None:
    started, release = asyncio.Event(), asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        if exchange.head.path == "/slow":
            started.set()
            await release.wait()
        exchange.respond(200)

    async with (
        serving(handler) as served,
        connected(served.endpoint) as idle,
        connected(served.endpoint) as busy,
    ):
        await idle.ask(GET)
        await busy.send(GET.replace(b"/ ", b"/slow "))
        await eventually(started)
        assert served.server.connections == 2
        await served.server.stop_accepting()
        drained = asyncio.ensure_future(served.server.drain(30))
        assert await idle.rest() == b""
        with pytest.raises(OSError):  # noqa: PT011
            await asyncio.open_connection(served.endpoint.host, served.endpoint.port)
        assert not drained.done()
        release.set()
        answer = await busy.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await asyncio.wait_for(drained, 60)
        assert served.server.connections == 0


async def test_draining_gives_up_in_the_end() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with serving(handler) as served, connected(served.endpoint) as client:
        await client.send(GET)
        await eventually(started)
        await served.server.drain(0.01)
        assert cancelled.is_set()
        assert served.server.connections == 0
        await client.gone()


async def test_leaving_the_block_ends_everything() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    sock = bind(Endpoint(port=0))
    endpoint = Endpoint(port=sock.getsockname()[1])
    async with serve([sock], handler, on_wire_error=wire_error):
        client_context = connected(endpoint)
        client = await client_context.__aenter__()
        await client.send(GET)
        await eventually(started)
    assert cancelled.is_set()
    await client.gone()
    await client_context.__aexit__(None, None, None)


async def test_an_error_in_the_block_leaves_it_as_it_is() -> None:
    with pytest.raises(StateError, match="mine"):  # noqa: PT012 - the block is what is tested
        async with serving(hello) as served, connected(served.endpoint) as client:
            await client.ask(GET)
            raise StateError("mine")


async def test_many_idle_connections() -> None:
    async with serving(hello) as served:
        clients = [connected(served.endpoint) for _ in range(200)]
        opened = [await client.__aenter__() for client in clients]
        for client in opened:
            assert (await client.ask(GET)).status == 200
        assert served.server.connections == 200
        for context in clients:
            await context.__aexit__(None, None, None)


class TestBind:
    """Clear errors, and unix sockets that nobody else can use."""

    def test_a_port_in_use(self) -> None:
        with bind(Endpoint(port=0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(
                StateError, match=f"127.0.0.1:{port}: the address is in use"
            ) as error:
                bind(Endpoint(port=port))
            assert "another port" in error.value.remedy

    def test_a_host_that_does_not_exist(self) -> None:
        with pytest.raises(StateError, match="cannot listen on"):
            bind(Endpoint(host="256.1.1.1.invalid", port=0))

    def test_a_path_that_is_too_long(self, folder: Path) -> None:
        with pytest.raises(StateError, match="longer than 107 bytes"):
            bind(Endpoint(path=str(folder / ("x" * 108))))

    def test_a_folder_that_is_not_there(self, folder: Path) -> None:
        with pytest.raises(StateError, match="No such file"):
            bind(Endpoint(path=str(folder / "none" / "s.sock")))

    def test_a_stale_socket_is_replaced(self, folder: Path) -> None:
        endpoint = Endpoint(path=str(folder / "s.sock"))
        bind(endpoint).close()
        with bind(endpoint):
            assert stat.S_IMODE(os.stat(folder / "s.sock").st_mode) == 0o600

    def test_a_socket_in_use_is_left_alone(self, folder: Path) -> None:
        endpoint = Endpoint(path=str(folder / "s.sock"))
        with bind(endpoint), pytest.raises(StateError, match="in use"):
            bind(endpoint)

    def test_a_file_is_left_alone(self, folder: Path) -> None:
        (folder / "s.sock").write_text("precious")
        with pytest.raises(StateError, match="not a socket"):
            bind(Endpoint(path=str(folder / "s.sock")))
        assert (folder / "s.sock").read_text() == "precious"

    def test_ipv6(self) -> None:
        try:
            sock = bind(Endpoint(host="::1", port=0))
        except StateError as error:
            pytest.skip(f"no IPv6 here: {error}")
        sock.close()


async def test_what_fails_in_one_connection_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: ClientConnection) -> None:
        raise ValueError("a bug")

    before = guard.failures["connection"]
    async with (
        serving(hello) as served,
        connected(served.endpoint) as one,
        connected(served.endpoint) as other,
    ):
        with monkeypatch.context() as patched:
            patched.setattr(ClientConnection, "_share", fail)
            await one.send(GET + GET)
            assert b"hello" in await one.rest()
        assert guard.failures["connection"] == before + 1
        assert (await other.ask(GET)).body == b"hello"
        assert served.server.connections == 1
