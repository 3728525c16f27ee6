"""Clients that go away: what they held is free again, and what they asked for stops."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.answers import PATIENCE, chat_body, instance_of, model_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


HALF_A_REQUEST = b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n{"


class RawClient:
    """A client at the level of the socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def post(self, path: str, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        self.writer.write(head.encode() + data)

    async def hang_up(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@asynccontextmanager
async def raw_client(lswap: Lswap) -> AsyncIterator[RawClient]:
    host, _, port = lswap.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    client = RawClient(reader, writer)
    try:
        yield client
    finally:
        await client.hang_up()


async def test_while_queued_for_memory(lab: Lab) -> None:
    """It costs nothing: no load, no eviction; the gate that was closed for it opens again."""
    models = {"alpha": lab.endless("alpha"), "beta": lab.preset("beta")}
    async with (
        lab.lswap(models, policy={"max_wait": "0s"}) as lswap,
        lswap.stream("alpha") as stream,
    ):
        await stream.read(3)
        async with raw_client(lswap) as client:
            client.post("/v1/chat/completions", chat_body("beta"))
            await lswap.until(lambda now: instance_of(now, "alpha").gate == "closed")
            assert (await lswap.model("beta")).waiting == 1
        state = await lswap.until(lambda now: instance_of(now, "alpha").gate == "open")
        assert model_of(state, "beta").waiting == 0
        assert (state.loads_total, state.evictions_total, state.requests_open) == (1, 0, 1)
        have = len(stream.words)
        await stream.read(have + 50)
        assert (lab.sentence("alpha") + " ") in stream.text


async def test_while_queued_for_a_slot(lab: Lab) -> None:
    preset = lab.endless("alpha", args={"parallel": 1})
    async with lab.lswap({"alpha": preset}) as lswap:
        async with lswap.stream("alpha") as stream:
            await stream.read(1)
            async with raw_client(lswap) as client:
                client.post("/v1/chat/completions", chat_body("alpha"))
                await lswap.until(lambda now: model_of(now, "alpha").waiting == 1)
            await lswap.until(lambda now: model_of(now, "alpha").waiting == 0)
            assert (await lswap.model("alpha")).leases == 1
        await lswap.until_idle()
        assert (await lswap.state()).requests_total == 1


async def test_while_loading(lab: Lab) -> None:
    """A load that nobody waits for any more is given up."""
    gate = lab.folder / "gate"
    env = {"FAKE_LOAD_GATE": str(gate), "FAKE_LOAD_STEPS": "1"}
    async with lab.lswap({"alpha": lab.fake("alpha", env=env)}) as lswap:
        async with raw_client(lswap) as client:
            client.post("/completion", {"model": "alpha"})
            await lswap.until_state("alpha", "loading")
        await lswap.until(lambda now: not now.instances)
        assert not lswap.child_pids()
        assert (await lswap.model("alpha")).failure is None
        gate.touch()
        assert await lswap.fake_answer("alpha") == "t0t1t2"


async def test_while_loading_past_the_half(lab: Lab) -> None:
    """Then the load goes on: the work is mostly done."""
    gate = lab.folder / "gate"
    env = {"FAKE_LOAD_GATE": str(gate), "FAKE_LOAD_STEPS": "2"}
    async with lab.lswap({"alpha": lab.fake("alpha", env=env)}) as lswap:
        async with raw_client(lswap) as client:
            client.post("/completion", {"model": "alpha"})
            await lswap.until(lambda now: bool(now.instances) and now.instances[0].progress == 1.0)
        await lswap.until(lambda now: model_of(now, "alpha").waiting == 0)
        assert (await lswap.model("alpha")).state == "loading"
        gate.touch()
        await lswap.until_state("alpha", "ready")
        assert await lswap.fake_answer("alpha") == "t0t1t2"
        assert (await lswap.state()).loads_total == 1


async def test_one_of_two_while_loading(lab: Lab) -> None:
    gate = lab.folder / "gate"
    env = {"FAKE_LOAD_GATE": str(gate), "FAKE_LOAD_STEPS": "1"}
    async with (
        lab.lswap({"alpha": lab.fake("alpha", env=env)}) as lswap,
        asyncio.TaskGroup() as tasks,
    ):
        ask = tasks.create_task(lswap.fake_answer("alpha"))
        async with raw_client(lswap) as client:
            client.post("/completion", {"model": "alpha"})
            await lswap.until(lambda now: model_of(now, "alpha").waiting == 2)
        await lswap.until(lambda now: model_of(now, "alpha").waiting == 1)
        gate.touch()
        assert await ask == "t0t1t2"
        assert (await lswap.state()).loads_total == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_while_generating(lab: Lab, stream: bool) -> None:
    """The child stops generating, and the instance is free at once."""
    async with lab.lswap({"alpha": lab.endless("alpha", args={"parallel": 1})}) as lswap:
        async with raw_client(lswap) as client:
            client.post("/v1/chat/completions", chat_body("alpha", stream=stream))
            if stream:
                async with asyncio.timeout(PATIENCE):
                    await client.reader.readuntil(b"hello")
            await lswap.until(lambda now: model_of(now, "alpha").leases == 1)
            await lswap.until_slots_are_busy("alpha")
        state = await lswap.until_idle()
        assert model_of(state, "alpha").leases == 0
        await lswap.until_slots_are_free("alpha")
        pid = instance_of(state, "alpha").pid
        assert (await lswap.chat("alpha", max_tokens=3)).startswith("alpha says")
        assert instance_of(await lswap.state(), "alpha").pid == pid


async def test_a_half_closed_client_gets_its_whole_answer(lab: Lab) -> None:
    """`nc -N` and the like shut their sending side down and go on reading."""
    async with lab.lswap({"alpha": lab.endless("alpha")}) as lswap, raw_client(lswap) as client:
        client.post("/v1/chat/completions", chat_body("alpha", stream=True, max_tokens=60))
        client.writer.write_eof()
        async with asyncio.timeout(PATIENCE):
            answer = await client.reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        events = [line for line in answer.splitlines() if line.startswith(b"data: {")]
        pieces = [json.loads(line.removeprefix(b"data: "))["choices"][0] for line in events]
        words = [piece["delta"].get("content") or "" for piece in pieces]
        assert "".join(words).startswith((lab.sentence("alpha") + " ") * 8)
        assert pieces[-1]["finish_reason"] == "length"
        assert answer.rstrip().endswith(b"0")


async def test_a_body_that_ends_early(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        async with raw_client(lswap) as client:
            client.writer.write(HALF_A_REQUEST)
        async with raw_client(lswap) as client:
            client.writer.write(HALF_A_REQUEST)
            client.writer.write_eof()
            async with asyncio.timeout(PATIENCE):
                answer = await client.reader.read()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert (await lswap.state()).loads_total == 0
        assert await lswap.chat("alpha") == lab.sentence("alpha")
