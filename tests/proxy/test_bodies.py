"""Large bodies in memory: counted by owner while they come, given back when their requests end."""

from __future__ import annotations

import asyncio

import pytest

from llamaswap_py.errors import ApiError
from llamaswap_py.proxy import Exchange
from llamaswap_py.proxy.bodies import Bodies
from llamaswap_py.units import MIB
from tests.proxy.harness import connected, eventually, serving

pytestmark = pytest.mark.anyio


def post(size: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size


def test_a_key_gets_half_and_leaves_the_rest_to_others() -> None:
    bodies = Bodies(8 * MIB)
    for _ in range(4):
        bodies.take("key ann")
    with pytest.raises(ApiError) as caught:
        bodies.take("key ann")
    assert (caught.value.status, caught.value.code) == (503, "bodies_full")
    assert caught.value.retry_after
    for _ in range(4):
        bodies.take("key bob")
    with pytest.raises(ApiError):
        bodies.take("key cat")
    bodies.give_back("key ann", 4 * MIB)
    assert bodies.take("key cat") == MIB
    assert (bodies.taken, bodies.refused) == (5 * MIB, 2)


async def test_what_does_not_fit_is_refused_and_given_back() -> None:
    go_on = asyncio.Event()
    read: list[int] = []

    async def answer(exchange: Exchange) -> None:
        try:
            body = await exchange.read_body(64 * MIB)
        except ApiError as error:
            exchange.respond(error.status)
            return
        read.append(body.size)
        await go_on.wait()
        exchange.respond(200)

    async with serving(answer) as served:
        bodies = served.server.bodies
        bodies.most = 8 * MIB
        async with connected(served.endpoint) as one, connected(served.endpoint) as other:
            await one.send(post(5 * MIB) + bytes(5 * MIB))
            async with asyncio.timeout(60):
                while not read:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert bodies.taken == 5 * MIB
            # Half read, and what is left does not come: it takes what came, no more.
            await other.send(post(5 * MIB) + bytes(2 * MIB))
            async with asyncio.timeout(60):
                while bodies.taken < 7 * MIB:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await other.send(bytes(3 * MIB))
            assert (await other.answer()).status == 503
            async with asyncio.timeout(60):
                while bodies.taken > 5 * MIB:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            go_on.set()
            assert (await one.answer()).status == 200
            await eventually(go_on)
        async with connected(served.endpoint) as again:
            await again.send(post(7 * MIB) + bytes(7 * MIB))
            assert (await again.answer()).status == 200
        async with asyncio.timeout(60):
            while bodies.taken:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert bodies.refused == 1


async def test_bodies_of_clients_that_leave_are_given_back() -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.read_body(64 * MIB)

    async with serving(answer) as served:
        bodies = served.server.bodies
        async with connected(served.endpoint) as client:
            await client.send(post(5 * MIB) + bytes(3 * MIB))
            async with asyncio.timeout(60):
                while bodies.taken < 3 * MIB:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            client.reset()
        async with asyncio.timeout(60):
            while bodies.taken:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("known", [True, False], ids=["length", "chunked"])
async def test_what_a_reader_keeps_beside_a_body_counts_too(known: bool) -> None:
    """White space, say, which stays in the text that is parsed."""
    seen = 0

    def keep(piece: bytes) -> int:
        nonlocal seen
        seen += len(piece)
        return seen

    async def answer(exchange: Exchange) -> None:
        try:
            await exchange.read_body(64 * MIB, keep)
        except ApiError as error:
            exchange.respond(error.status)
            return
        exchange.respond(200)

    async with serving(answer) as served:
        bodies = served.server.bodies
        bodies.most = 8 * MIB
        for size, status in ((3 * MIB, 200), (5 * MIB, 503)):
            seen = 0
            async with connected(served.endpoint) as client:
                if known:
                    await client.send(post(size) + bytes(size))
                else:
                    head = (
                        post(size).partition(b"Content")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
                    )
                    await client.send(head + b"%x\r\n" % size + bytes(size) + b"\r\n0\r\n\r\n")
                assert (await client.answer()).status == status
        assert bodies.refused == 1
