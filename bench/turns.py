"""The longest turn of the event loop for what is large: bodies at their limit, 10,000 presets.

    python -m bench.turns [chat ollama lists] [--rounds N]

The server is lswap's API before a supervisor with 10,000 presets, whose children are stand-ins: one
of them is served by the sink of big_body_server.py. A turn is measured in CPU time of the loop's
thread, which other programs on the machine do not lengthen. Prints a table, and returns 1 if a turn
was longer than 20 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import http.client
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import uvloop

from bench.big_body_server import Turns
from bench.workplace import HERE, free_port, open_workplace, running
from llamaswap_py.api import App
from llamaswap_py.api.errors import render_wire_error
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.proxy import bind, serve
from llamaswap_py.units import MIB
from tests.unit.supervisors import configured, loaded, make_supervisor

if TYPE_CHECKING:
    from llamaswap_py.proxy.exchange import Exchange

PRESETS: Final = 10_000
LIMIT: Final = 64 * MIB
"""`limits.body`."""
MOST: Final = 20.0
"""Milliseconds of CPU that a turn may take."""
_LIMIT: Final = 120.0
_ENV: Final = {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
LISTS: Final = (
    *("/v1/models", "/api/tags", "/metrics", "/lswap/v1/state"),
    *("/v1/models/model-09999", "/", "/lswap/v1/models"),
)


def _filled(member: bytes, size: int, *, head: bytes, tail: bytes = b"]}") -> bytes:
    """Return a body of at most `size` bytes: a list that repeats a member."""
    count = (size - len(head) - len(tail)) // (len(member) + 1)
    return head + b",".join([member] * count) + tail


def _bodies(size: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the shapes of docs/decisions/0009-large-bodies.md."""
    head = b'{"model":"sink","stream":false,"messages":['
    chat = b'{"role":"user","content":"%b"}' % (b"a line of a long text " * 7)
    image = base64.b64encode(bytes(range(256))) * (size // 344 - 8)
    yield (
        "an image",
        lambda: (
            head + b'{"role":"user","content":[{"type":"image_url","image_url":{"url":'
            b'"data:image/png;base64,' + image + b'"}}]}]}'
        ),
    )
    yield "messages of 184 bytes", lambda: _filled(chat, size, head=head)
    for name, member in (
        ("a text of escapes", b'"' + b"\\u00e9" * 100_000 + b'"'),
        ("small numbers", b"1"),
        ("empty objects", b"{}"),
        ("lists in lists, 12 deep", b"[" * 12 + b"]" * 12),
        ("short texts", b'"a"'),
        ("texts that begin with `http`", b'"http"'),
    ):
        yield name, lambda member=member: _filled(member, size, head=head)  # type: ignore[misc]
    yield (
        "members of the top level",
        lambda: (
            b'{"model":"sink",' + b",".join(b'"%d":1' % one for one in range(size // 11)) + b"}"
        ),
    )
    yield "one open bracket after the other", lambda: head + b"[" * (size - len(head))


def _ollama(size: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
    head = b'{"model":"sink","stream":false,"messages":['
    yield from _bodies(size)

    def most(count: int, length: int) -> Callable[[], bytes]:
        member = b'{"role":"user","content":"%b"}' % (b"x" * length)
        return lambda: head + b",".join([member] * count) + b"]}"

    yield "20,000 messages, 16 MiB in all", most(20_000, 16 * MIB // 20_000 - 40)
    yield "20,000 messages of a word", most(20_000, 4)
    call = b'{"function":{"name":"f","arguments":{"a":1}}}'
    yield (
        "5,000 calls of tools",
        lambda: head + b'{"role":"assistant","tool_calls":[' + b",".join([call] * 5_000) + b"]}]}",
    )

    def schema(value: Callable[[], bytes]) -> Callable[[], bytes]:
        before = (
            b'{"model":"sink","stream":false,"messages":[{"role":"user","content":"x"}],"format":'
        )
        return lambda: before + value() + b"}"

    yield (
        "240,000 names in a schema",
        schema(lambda: b"{" + b",".join(b'"name%d":1' % one for one in range(240_000)) + b"}"),
    )
    yield (
        "25,000 numbers of 639 digits",
        schema(lambda: b'{"a":[' + b",".join([b"1" * 639] * 25_000) + b"]}"),
    )
    yield (
        "240,000 names in the arguments of a tool call",
        lambda: (
            head
            + b'{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":{'
            + b",".join(b'"name%d":1' % one for one in range(240_000))
            + b"}}}]}]}"
        ),
    )
    yield (
        "a text of escapes, 16 MiB",
        lambda: head + b'{"role":"user","content":"' + b"\\n" * (8 * MIB - 100) + b'"}]}',
    )
    small = b'"' + base64.b64encode(b"\x89PNG" + bytes(60)) + b'"'
    yield (
        "5,000 small images",
        lambda: head + b'{"role":"user","images":[' + b",".join([small] * 5_000) + b"]}]}",
    )
    yield (
        "240,000 values in a schema",
        schema(lambda: b'{"a":[' + b",".join([b"{}"] * 120_000) + b"]}"),
    )


class _Client:
    """Asks the server, and for its longest turn."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, int]:
        """Return the status and the size of the answer."""
        link = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_LIMIT)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            with suppress(
                BrokenPipeError, ConnectionResetError
            ):  # it may be refused before its end
                link.request(method, path, body, headers)
            answer = link.getresponse()
            return answer.status, len(answer.read())
        finally:
            link.close()

    def longest(self) -> float:
        """Return the longest turn since the last question, in CPU milliseconds."""
        link = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_LIMIT)
        link.request("GET", "/bench/turn")
        figure = float(link.getresponse().read())
        link.close()
        return figure


def _measure(client: _Client, what: str, rounds: int) -> Iterator[tuple[str, int, list[float]]]:
    if what == "lists":
        for path in LISTS:
            client.ask("GET", path)
            client.longest()
            turns = []
            for _ in range(rounds):
                status, _ = client.ask("GET", path)
                turns.append(client.longest())
            yield f"`GET {path}`", status, turns
        return
    path, shapes = "/v1/chat/completions", _bodies(LIMIT)
    if what == "ollama":
        path, shapes = "/api/chat", _ollama(61_000_000)
    for name, make in shapes:
        body, turns = make(), []
        client.longest()
        for _ in range(rounds):
            status, _ = client.ask("POST", path, body)
            turns.append(client.longest())
        yield f"`{path}`, {len(body) / 1e6:.1f} MB: {name}", status, turns
        del body


async def _serve(port: int, sink: str, folder: str) -> None:
    turns, stop = Turns(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    names = ["sink", *(f"model-{number:05}" for number in range(PRESETS))]
    text = "models:\n" + "".join(f"  {name}: {{model: /m/{name}.gguf}}\n" for name in names)
    config = configured(text)
    async with make_supervisor(Path(folder), config, Endpoint(path=sink)) as supervisor:
        supervisor.request_load("sink")
        await loaded(supervisor)
        app = App(supervisor)

        async def handle(exchange: Exchange) -> None:
            if exchange.head.path == "/bench/turn":
                exchange.respond(200, b"%f" % turns.take())
            else:
                await app.handle(exchange)

        async with serve([bind(Endpoint(port=port))], handle, on_wire_error=render_wire_error):
            gc.collect()
            gc.freeze()  # as `lswap up` does
            gc.set_threshold(10_000, 10, 10)
            watching = asyncio.ensure_future(turns.watch())
            await stop.wait()
            watching.cancel()


def main() -> int:
    """Measure; see above."""
    parser = argparse.ArgumentParser(prog="python -m bench.turns")
    parser.add_argument("what", nargs="*", default=["chat", "ollama", "lists"])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    slow = False
    print(f"| what | status | longest turn, CPU ms (median of {asked.rounds}) | spread |")
    print("|---|---:|---:|---|")
    with open_workplace() as place, ExitStack() as stack:
        sink, port = free_port(), free_port()
        path = str(place.folder / "sink.sock")
        for argv, at in (
            (["bench.big_body_server", "sink", str(sink), path], sink),
            (["bench.turns", "serve", str(port), path, str(place.folder)], port),
        ):
            log = place.folder / f"{at}.log"
            command = [sys.executable, "-m", *argv]
            stack.enter_context(running(command, port=at, log=log, env=_ENV))
        client = _Client(port)
        time.sleep(1)
        for what in asked.what:
            for name, status, turns in _measure(client, what, asked.rounds):
                middle = median(turns)
                slow |= middle > MOST
                spread = f"{min(turns):.1f} to {max(turns):.1f}"
                print(f"| {name} | {status} | {middle:.1f} | {spread} |", flush=True)
    return int(slow)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        uvloop.run(_serve(int(sys.argv[2]), *sys.argv[3:]))
    else:
        sys.exit(main())
