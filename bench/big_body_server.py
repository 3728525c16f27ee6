"""The other sides of big_body.py: a proxy that times its loop, a sink, and an uploader.

python -m bench.big_body_server proxy PORT STUB.sock SINK.sock
                                sink PORT SINK.sock
                                upload PORT PATH CONTENT-TYPE FILE
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, cast

import uvloop

from bench.fake_relay import AlwaysReady
from llamaswap_py.api import App
from llamaswap_py.api.errors import render_wire_error
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.proxy import bind, serve
from llamaswap_py.proxy.upstream import UpstreamPool

if TYPE_CHECKING:
    from llamaswap_py.proxy.exchange import Exchange
    from llamaswap_py.supervisor.supervisor import Supervisor

CONFIG = """models:
  stub: {model: /nowhere/stub.gguf}
  sink: {model: /nowhere/sink.gguf}
  set: {model: /nowhere/set.gguf, request: {set: {temperature: 0.5}, strip: [seed]}}
"""
_ANSWER = b'{"choices":[{"message":{"role":"assistant","content":"thanks"}}]}'


class Turns:
    """The longest turn of the loop so far, in CPU milliseconds."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        """Take part in every turn."""
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            self.longest = max(self.longest, (time.thread_time() - began) * 1000)

    def take(self) -> float:
        longest, self.longest = self.longest, 0.0
        return longest


async def _proxy(port: int, stub: str, sink: str) -> None:
    turns, stop = Turns(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with UpstreamPool() as pool:
        sinks = Endpoint(path=sink)
        endpoints = {"stub": Endpoint(path=stub), "sink": sinks, "set": sinks}
        app = App(cast("Supervisor", AlwaysReady(endpoints, pool, CONFIG)))

        async def handle(exchange: Exchange) -> None:
            if exchange.head.path == "/bench/turn":
                exchange.respond(200, b"%f" % turns.take())
            else:
                await app.handle(exchange)

        sockets = [bind(Endpoint(port=port))]
        async with serve(sockets, handle, on_wire_error=render_wire_error):
            gc.freeze()  # as `lswap up` does
            watching = asyncio.ensure_future(turns.watch())
            await stop.wait()
            watching.cancel()


async def _take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        left = int(head.partition(b"content-length:")[2].split()[0])
        while left and (piece := await reader.read(min(left, 1 << 20))):
            left -= len(piece)
        lines = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(lines + b"Content-Length: %d\r\n\r\n%b" % (len(_ANSWER), _ANSWER))
        await writer.drain()
    except (asyncio.IncompleteReadError, IndexError):
        pass  # somebody who looked whether it listens
    finally:
        writer.close()


async def _sink(port: int, path: str) -> None:
    os.nice(10)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with (
        await asyncio.start_unix_server(_take, path, limit=1 << 20),
        await asyncio.start_server(_take, "127.0.0.1", port, limit=1 << 20),
    ):
        await stop.wait()


def _upload(port: int, path: str, kind: str, file: str) -> None:
    os.nice(10)
    with open(file, "rb") as body:
        text = body.read()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: {kind}\r\nContent-Length: {len(text)}\r\n\r\n"
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(head.encode())
        sock.sendall(text)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(f"refused: {answer[:500]!r}")
    print(time.perf_counter() - began)


def _main(what: str, port: str, *others: str) -> None:
    if what == "upload":
        _upload(int(port), *others)
    else:
        uvloop.run((_proxy if what == "proxy" else _sink)(int(port), *others))


if __name__ == "__main__":
    _main(*sys.argv[1:])
