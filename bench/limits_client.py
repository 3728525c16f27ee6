"""Clients by the thousand, in one event loop: one request each, and no HTTP library in between."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from bench.workplace import BenchError


def post(model: str, **body: Any) -> bytes:
    """Return a chat request."""
    ask = {"model": model, **body, "messages": [{"role": "user", "content": "hello"}]}
    data = json.dumps(ask, separators=(",", ":")).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


class Connection:
    """A keep-alive connection that asks small things and is idle in between."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.failed = False
        """Whether it was closed, refused, or got anything but a 200."""

    async def ping(self) -> None:
        """Ask whether lswap is there; the first time, connect."""
        try:
            await self.exchange(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        except (OSError, EOFError, BenchError):
            self.failed = True

    async def exchange(self, request: bytes) -> bytes:
        """Send a request; return its answer's body. Raises OSError, EOFError, BenchError."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 16)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
        body = await reader.readexactly(int(length or b"0"))
        if not head.startswith(b"http/1.1 200 "):
            raise BenchError(f"not a 200: {(head + body)[:500].decode(errors='replace')}")
        return body

    async def kept(self) -> bool:
        """Whether the other side has not closed it."""
        return not self.failed and self._streams is not None and not self._streams[0].at_eof()

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()


class Asker(Connection):
    """Asks one model again and again."""

    def __init__(self, port: int, model: str) -> None:
        super().__init__(port)
        self._request = post(model)

    async def ask(self) -> float:
        """Return the seconds that an answer took."""
        began = time.perf_counter()
        await self.exchange(self._request)
        return time.perf_counter() - began


class Stream:
    """One streamed answer of the model `stub`: so many events, `rate` of them a second."""

    def __init__(self, port: int, events: int, rate: int) -> None:
        self._port = port
        self._events = events
        self._request = post("stub", stream=True, max_tokens=events, stub_rate=rate)
        self.begun = asyncio.Event()
        """Set with its first event, or its end."""
        self.over = False
        self.status = 0
        self.whole = False

    async def run(self) -> None:
        """Ask, and read all of it; never raises for a bad answer."""
        received = b""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                writer.write(self._request)
                while not received.endswith(b"\r\n0\r\n\r\n") and not _refused(received):
                    piece = await reader.read(1 << 16)
                    if not piece:
                        break
                    received += piece
                    if b"data: " in received:
                        self.begun.set()
            finally:
                writer.close()
        except OSError:
            pass
        self.over = True
        self.begun.set()
        self.status = int(received[9:12] or b"0")
        events = received.count(b"data: {")
        ended = received.endswith(b"\r\n0\r\n\r\n") and b"data: [DONE]" in received
        self.whole = self.status == 200 and ended and events == self._events


def _refused(received: bytes) -> bool:
    head, end, body = received.partition(b"\r\n\r\n")
    if not end or head.startswith(b"HTTP/1.1 200"):
        return False
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return len(body) >= int(length or b"0")
