"""A scripted upstream that misbehaves byte by byte, raw clients, and a served handler."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeAlias

from llamaswap_py.endpoint import Endpoint
from llamaswap_py.proxy import (
    Exchange,
    RelayResult,
    RequestHead,
    Server,
    UpstreamPool,
    UpstreamRequest,
    WireLimits,
    bind,
    forward_headers,
    serve,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

PATIENCE = 60.0
SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n"
    b"Keep-Alive: timeout=5, max=100\r\n\r\n"
)
JSON_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n"
    b'Keep-Alive: timeout=5, max=100\r\n\r\n{"a":1}'
)


def sse(text: str) -> bytes:
    """Return one SSE event as llama-server sends it: one chunk."""
    event = f"data: {text}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


class Peer:
    """One end of a connection; every wait has a limit."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await asyncio.wait_for(self.writer.drain(), PATIENCE)

    async def dribble(self, data: bytes) -> None:
        """Send byte by byte, each in its own segment."""
        for index in range(len(data)):
            self.writer.write(data[index : index + 1])
            await asyncio.sleep(0)

    async def until(self, end: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(end), PATIENCE)

    async def exactly(self, size: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(size), PATIENCE)

    async def rest(self) -> bytes:
        """Read to the end of file; raises ConnectionError on a reset."""
        return await asyncio.wait_for(self.reader.read(), PATIENCE)

    async def gone(self) -> None:
        """Wait until the other side has closed, or reset."""
        with suppress(ConnectionError):
            await self.rest()

    def half_close(self) -> None:
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close with a reset."""
        sock = self.writer.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class Answer:
    """A parsed response."""

    status: int
    headers: dict[str, str]
    body: bytes
    #: the body as it was framed
    raw: bytes = b""

    @property
    def json(self) -> object:
        return json.loads(self.body)


class Client(Peer):
    """A raw HTTP client."""

    async def head(self) -> Answer:
        """Read the head of a response."""
        first, *lines = (await self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines if line)
        headers: dict[str, str] = {}
        for name, _, value in pairs:
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value
        status = int(first.split()[1])
        if status >= 200:  # RFC 9110 section 6.6.1; left out of what tests compare
            said = parsedate_to_datetime(headers.pop("date"))
            assert abs((datetime.now(UTC) - said).total_seconds()) < PATIENCE
        return Answer(status, headers, b"")

    async def answer(self, method: str = "GET") -> Answer:
        """Read one whole response."""
        answer = await self.head()
        if method == "HEAD" or answer.status in (204, 304) or answer.status < 200:
            return answer
        if answer.headers.get("transfer-encoding") == "chunked":
            lines: list[bytes] = [b""]
            chunks: list[bytes] = []
            while lines[-1] != b"0\r\n":
                lines.append(await self.until(b"\r\n"))
                chunks.append(await self.exactly(int(lines[-1], 16) + 2))
                assert chunks[-1].endswith(b"\r\n")
            answer.body = b"".join(data[:-2] for data in chunks)
            answer.raw = b"".join(line + data for line, data in zip(lines[1:], chunks, strict=True))
        elif "content-length" in answer.headers:
            answer.body = answer.raw = await self.exactly(int(answer.headers["content-length"]))
        else:
            answer.body = answer.raw = await self.rest()
        return answer

    async def ask(self, request: bytes) -> Answer:
        await self.send(request)
        return await self.answer(request.split(b" ")[0].decode())


@asynccontextmanager
async def connected(endpoint: Endpoint) -> AsyncIterator[Client]:
    """Connect a raw client."""
    if endpoint.path is not None:
        reader, writer = await asyncio.open_unix_connection(endpoint.path)
    else:
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    client = Client(reader, writer)
    try:
        yield client
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


Script: TypeAlias = "Callable[[Upstream, Peer], Awaitable[None]]"


@dataclass
class Upstream:
    """A scripted child."""

    endpoint: Endpoint
    requests: list[bytes] = field(default_factory=list)
    accepted: int = 0
    #: exceptions of scripts; a test fails on them
    errors: list[BaseException] = field(default_factory=list)

    async def request(self, peer: Peer) -> bytes:
        """Read one request with its Content-Length body, and remember it."""
        data = await peer.until(b"\r\n\r\n")
        for line in data.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                data += await peer.exactly(int(line.partition(b":")[2]))
        self.requests.append(data)
        return data


@asynccontextmanager
async def upstream(folder: Path | None, *scripts: Script) -> AsyncIterator[Upstream]:
    """Run a scripted child on a unix socket in `folder`, or behind TCP.

    Every connection runs the next script, the last one for all that follow.
    """
    child = Upstream(Endpoint())
    tasks: set[asyncio.Task[None]] = set()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        script = scripts[min(child.accepted, len(scripts) - 1)]
        child.accepted += 1
        try:
            await script(child, Peer(reader, writer))
        except asyncio.CancelledError:
            writer.transport.abort()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the relay hung up: tests look for that where they expect it
        except BaseException as error:
            if "handler is closed" not in str(error):  # what uvloop says for a ConnectionError
                child.errors.append(error)
        finally:
            writer.close()
            tasks.discard(task)

    if folder is not None:
        child.endpoint = Endpoint(path=str(folder / "child.sock"))
        server = await asyncio.start_unix_server(serve_one, str(folder / "child.sock"))
    else:
        server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
        child.endpoint = Endpoint(port=server.sockets[0].getsockname()[1])
    try:
        yield child
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=PATIENCE)
        assert not child.errors, child.errors


def answering(response: bytes) -> Script:
    """Return a script that answers every request with the same bytes."""

    async def script(child: Upstream, peer: Peer) -> None:
        while True:
            await child.request(peer)
            await peer.send(response)

    return script


def then(first: bytes, *answers: bytes, stay: bool = True) -> Script:
    """Return a script that answers one request, the next with `answers`; then stays, or closes."""

    async def script(child: Upstream, peer: Peer) -> None:
        await child.request(peer)
        await peer.send(first)
        await child.request(peer)
        for answer in answers:
            await peer.send(answer)
            await asyncio.sleep(0)
        if stay:
            await peer.gone()

    return script


def wire_error(
    status: int, message: str, head: RequestHead | None
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Render errors as the tests want to read them."""
    return [(b"content-type", b"application/json")], json.dumps({"error": message}).encode()


@dataclass
class Served:
    """A running server, and where."""

    server: Server
    endpoint: Endpoint


@asynccontextmanager
async def serving(
    handler: Callable[[Exchange], Awaitable[None]],
    *,
    limits: WireLimits | None = None,
    path: Path | None = None,
) -> AsyncIterator[Served]:
    """Serve a handler on a free port, or a unix socket."""
    sock = bind(Endpoint(path=str(path)) if path else Endpoint(port=0))
    endpoint = Endpoint(path=str(path)) if path else Endpoint(port=sock.getsockname()[1])
    async with serve([sock], handler, limits, on_wire_error=wire_error) as server:
        yield Served(server, endpoint)


@dataclass
class RelayHandler:
    """A handler that relays everything to one child and keeps the results."""

    endpoint: Endpoint
    pool: UpstreamPool
    limit: int = 2**20
    results: list[RelayResult] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        exchange.response_lines = b"x-request-id: r1\r\n"
        try:
            body = await exchange.read_body(self.limit)
            request = UpstreamRequest(
                exchange.head.method,
                exchange.head.target,
                forward_headers(exchange.head, peer=exchange.peer),
                body,
            )
            result = await exchange.relay(
                self.endpoint, request, pool=self.pool, error_event=error_event
            )
            self.results.append(result)
            if not exchange.response_started:
                exchange.respond(502, json.dumps({"error": result.outcome.value}).encode())
            self.finished.set()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def error_event(reason: str) -> bytes:
    """Render an SSE error event."""
    return f"data: {json.dumps({'error': reason})}\n\n".encode()


@dataclass
class Setup:
    """Everything between a raw client and a scripted child."""

    child: Upstream
    handler: RelayHandler
    pool: UpstreamPool
    server: Server
    endpoint: Endpoint


@asynccontextmanager
async def relaying(
    folder: Path | None,
    *scripts: Script,
    limits: WireLimits | None = None,
    path: Path | None = None,
) -> AsyncIterator[Setup]:
    """Serve a RelayHandler in front of a scripted child."""
    async with upstream(folder, *scripts) as child, UpstreamPool() as pool:
        handler = RelayHandler(child.endpoint, pool)
        async with serving(handler, limits=limits, path=path) as served:
            yield Setup(child, handler, pool, served.server, served.endpoint)


async def eventually(event: asyncio.Event) -> None:
    """Wait for an event, generously."""
    await asyncio.wait_for(event.wait(), PATIENCE)
