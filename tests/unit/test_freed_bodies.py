"""The memory of a request is given back when it ends, however it ends: nothing waits for the
collector.
"""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from llamaswap_py.api.body import Skim
from llamaswap_py.api.request import Call
from llamaswap_py.proxy import Exchange
from llamaswap_py.proxy.backpressure import Outflow
from llamaswap_py.proxy.client import ClientConnection
from llamaswap_py.proxy.deadline import Deadline
from llamaswap_py.proxy.intake import Intake
from llamaswap_py.proxy.messages import Body, UpstreamRequest
from llamaswap_py.proxy.parsers import RequestParser
from llamaswap_py.proxy.relay import Relay
from llamaswap_py.proxy.sockets import Input
from llamaswap_py.supervisor.leases import Ticket
from llamaswap_py.units import KIB, MIB
from tests.proxy.harness import Client, Peer, Upstream, connected, eventually
from tests.unit.test_plain_requests import CHAT, OK, Stage, request, staged, until

pytestmark = pytest.mark.anyio
KINDS = (
    *(Call, Exchange, Intake, Body, UpstreamRequest, Ticket, Skim, Relay),
    *(ClientConnection, RequestParser, Deadline, Outflow, Input),
)
CONFIG = """
limits: {body: 16MiB}
models: {alpha: {model: /nowhere/a.gguf}}
"""
PAD = 4 * MIB
BIG = json.dumps({"model": "alpha", "stream": True, "pad": "x" * PAD}).encode()


EARLIER: list[object] = []
"""What earlier tests left: pytest keeps the frames of one that failed."""


def parts() -> list[object]:
    """Return what requests are made of."""
    return [one for one in gc.get_objects() if isinstance(one, KINDS)]


def alive() -> Counter[str]:
    """Count what requests of this test are made of."""
    earlier = {id(one) for one in EARLIER}
    return Counter(type(one).__name__ for one in parts() if id(one) not in earlier)


async def ended() -> None:
    """Give the loop many turns; nothing of any request is left then.

    One look takes seconds where earlier tests left many objects: a limit of time would end it.
    """
    for _ in range(100):
        if not alive():
            return
        await asyncio.sleep(0.05)
    assert not alive()


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Run without the collector, and count what is allocated."""
    gc.collect()
    gc.disable()
    EARLIER[:] = parts()
    tracemalloc.start()
    yield
    tracemalloc.stop()
    EARLIER.clear()
    gc.enable()


async def whole(stage: Stage, client: Client) -> None:
    assert (await client.ask(request(BIG))).status == 200


async def at_once(stage: Stage, client: Client) -> None:
    small = request({"model": "alpha", "pad": "x" * (64 * KIB)})
    for _ in range(3):
        assert (await client.ask(small)).status == 200
    assert stage.at_once[-1]


async def aborted(stage: Stage, client: Client) -> None:
    await client.send(request(BIG)[:-100])
    await until(lambda: stage.app.services.calls)
    client.reset()


async def aborted_form(stage: Stage, client: Client) -> None:
    head = "Content-Type: multipart/form-data; boundary=x\r\n"
    await client.send(request(BIG, "/v1/audio/transcriptions", head)[:-100])
    await until(lambda: stage.app.services.calls)
    client.reset()


async def half_closed(stage: Stage, client: Client) -> None:
    await client.send(request(BIG)[:-100])
    await until(lambda: stage.app.services.calls)
    await asyncio.sleep(0.1)  # or it counts as a client that sent all it had to say
    client.half_close()
    await client.gone()


async def unread(stage: Stage, client: Client) -> None:
    """Its body is none that this route reads."""
    with suppress(ConnectionError):
        await client.send(request(BIG, "/livez", method="GET"))
        await client.gone()


async def too_large(stage: Stage, client: Client) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (MIB, b"x" * MIB)
    with suppress(ConnectionError):
        await client.send(head.encode() + chunk * 17)
        assert (await client.answer()).status == 413
        await client.gone()


async def broken_chunk(stage: Stage, client: Client) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    await client.send(head.encode() + b"%x\r\n%b\r\nzz\r\n" % (PAD, b"x" * PAD))
    assert (await client.answer()).status == 400
    await client.gone()


async def wrong(stage: Stage, client: Client) -> None:
    assert (await client.ask(request(BIG[:-1]))).status == 400


async def unknown(stage: Stage, client: Client) -> None:
    assert (await client.ask(request(BIG.replace(b"alpha", b"omega")))).status == 404


async def left_while_answered(stage: Stage, client: Client) -> None:
    await client.send(request(BIG.replace(b'"pad"', b'"hold"')))
    await until(lambda: stage.child.requests)
    client.reset()


async def cancelled_while_answered(stage: Stage, client: Client) -> None:
    await client.send(request(BIG.replace(b'"pad"', b'"hold"')))
    await until(lambda: stage.child.requests)
    for call in stage.app.services.calls.values():
        call.cancel()
    del call
    assert (await client.answer()).status == 410


async def cancelled_while_it_waits(stage: Stage, client: Client) -> None:
    async with AsyncExitStack() as stack:
        state = stage.supervisor.scheduler.state
        hold = request({"model": "alpha", "hold": 1})
        others = [await stack.enter_async_context(connected(stage.endpoint)) for _ in range(4)]
        for one in others:
            await one.send(hold)
        await until(lambda: len(state.leases) == 4)
        await client.send(request(BIG))
        await until(lambda: state.waiters)
        for call in stage.app.services.calls.values():
            if not call.leased:
                call.cancel()
        del call
        assert (await client.answer()).status == 410


ENDS = (
    *(whole, at_once, aborted, aborted_form, half_closed, unread, too_large, broken_chunk, wrong),
    *(unknown, left_while_answered, cancelled_while_answered, cancelled_while_it_waits),
)


@pytest.mark.parametrize("end", ENDS)
async def test_nothing_of_a_request_is_left(
    short_dir: Path, uncollected: None, end: Callable[[Stage, Client], Awaitable[None]]
) -> None:
    held = asyncio.Event()

    async def child(upstream: Upstream, peer: Peer) -> None:
        while True:
            holds = b'"hold"' in (await upstream.request(peer))
            upstream.requests[-1] = b""
            if holds:
                await eventually(held)
            await peer.send(OK)

    async with staged(short_dir, child, config=CONFIG) as stage:
        async with connected(stage.endpoint) as client:
            assert (await client.ask(request())).status == 200
        await ended()
        before = tracemalloc.get_traced_memory()[0]
        async with connected(stage.endpoint) as client:
            await end(stage, client)
        held.set()
        del client
        await until(stage.nothing_is_left)
        await ended()
        assert tracemalloc.get_traced_memory()[0] - before < MIB
