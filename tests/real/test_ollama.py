"""The Ollama family, with Ollama's own Python client, against real children."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import ollama
import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
HELLO: Any = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def connect(lswap: Lswap) -> AsyncIterator[ollama.AsyncClient]:
    """Ollama's client, closed at the end: it has no way of its own to be."""
    client = ollama.AsyncClient(host=lswap.url)
    try:
        yield client
    finally:
        await client._client.aclose()


async def test_models_are_listed_and_shown_before_they_are_loaded(lab: Lab) -> None:
    models = {
        "alpha": lab.preset("alpha", size="50MiB", aliases=["first"]),
        "beta:4b": lab.preset("beta", size="50MiB"),
    }
    async with lab.lswap(models) as lswap, connect(lswap) as client:
        listed = (await client.list()).models
        assert [one.model for one in listed] == ["alpha", "first", "beta:4b"]
        assert listed[0].size is not None
        assert listed[0].size > 100_000
        assert listed[0].details is not None
        assert listed[0].details.family == "llama"
        shown = await client.show("alpha:latest")
        assert shown.capabilities is not None
        assert "completion" in shown.capabilities
        assert shown.modelinfo is not None
        assert shown.modelinfo["general.architecture"] == "llama"
        assert shown.modelinfo["llama.context_length"] > 0
        assert (await client.ps()).models == []
        assert not (await lswap.state()).instances, "nothing was loaded for it"
        answer = await lswap.client.get("/", headers={"accept": "*/*"})
        assert answer.text == "Ollama is running"
        version = (await lswap.client.get("/api/version")).json()["version"]
        assert tuple(map(int, version.split("."))) >= (0, 6, 4)


async def test_chat_and_generate_whole_and_in_pieces(lab: Lab) -> None:
    models = {name: lab.preset(name, size="150MiB") for name in ("alpha", "beta")}
    async with lab.lswap(models) as lswap, connect(lswap) as client:
        whole = await client.chat("alpha", messages=HELLO)
        assert whole.message.content == lab.sentence("alpha")
        assert whole.done_reason == "stop"
        assert whole.eval_count
        assert whole.prompt_eval_count
        assert whole.total_duration
        assert whole.total_duration >= (whole.eval_duration or 0) > 0
        pieces = [one async for one in await client.chat("beta", messages=HELLO, stream=True)]
        assert len(pieces) > 3
        assert "".join(one.message.content or "" for one in pieces) == lab.sentence("beta")
        assert [one.done for one in pieces] == [False] * (len(pieces) - 1) + [True]
        assert pieces[-1].eval_count == len(lab.sentence("beta").split()) + 1
        assert pieces[-1].load_duration, "it had to be loaded"
        said = await client.generate("beta", prompt="hi", system="be brief")
        assert said.response == lab.sentence("beta")
        raw = await client.generate("beta", prompt="hi", raw=True)
        assert (raw.response or "").strip() == lab.sentence("beta")
        short = await client.chat("beta", messages=HELLO, options={"num_predict": 2, "num_ctx": 9})
        assert short.done_reason == "length"
        assert short.eval_count == 2


async def test_keep_alive_loads_keeps_and_unloads(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap, connect(lswap) as client:
        loaded = await client.generate("alpha", keep_alive="1h")
        assert loaded.done_reason == "load"
        (running,) = (await client.ps()).models
        assert running.model == "alpha"
        (instance,) = (await lswap.state()).instances
        assert instance.ttl == 3600
        await client.chat("alpha", messages=HELLO, keep_alive=-1)
        (instance,) = (await lswap.state()).instances
        assert instance.ttl is None
        await client.chat("alpha", messages=HELLO, keep_alive=0)
        await lswap.until(lambda state: not state.instances)
        await client.chat("alpha", messages=HELLO)
        gone = await client.generate("alpha", keep_alive=0)
        assert gone.done_reason == "unload"
        await lswap.until(lambda state: not state.instances)


async def test_embeddings(lab: Lab) -> None:
    preset = lab.preset("alpha", args={"embeddings": True, "pooling": "mean"})
    async with lab.lswap({"alpha": preset}) as lswap, connect(lswap) as client:
        assert (await client.show("alpha")).capabilities == ["embedding"]
        many = await client.embed("alpha", input=["alpha says", "hello"])
        assert len(many.embeddings) == 2
        assert sum(value * value for value in many.embeddings[0]) == pytest.approx(1, abs=1e-3)
        cut = await client.embed("alpha", input="alpha says", dimensions=3)
        assert len(cut.embeddings[0]) == 3
        assert sum(value * value for value in cut.embeddings[0]) == pytest.approx(1, abs=1e-6)
        old = await client.embeddings("alpha", prompt="alpha says")
        assert list(old.embedding) == pytest.approx(list(many.embeddings[0]))


async def test_errors_are_ollamas(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap, connect(lswap) as client:
        with pytest.raises(ollama.ResponseError, match="model 'alfa' not found") as caught:
            await client.chat("alfa", messages=HELLO)
        assert caught.value.status_code == 404
        assert "did you mean alpha" in caught.value.error
        with pytest.raises(ollama.ResponseError, match="`context` was not made by lswap"):
            await client.generate("alpha", prompt="hi", context=[1, 2])
        with pytest.raises(ollama.ResponseError) as caught:
            await client.create("mine", from_="alpha")
        assert caught.value.status_code == 501
        async for one in await client.pull("alpha", stream=True):
            last = one
        assert last.status == "success"
        answer = await lswap.client.post("/api/chat", content=b"{")
        assert answer.status_code == 400
        assert answer.json()["code"] == "bad_json"


async def test_a_client_that_leaves_frees_its_slot(lab: Lab) -> None:
    models = {"alpha": lab.endless("alpha", concurrency=1)}
    async with lab.lswap(models) as lswap:
        body = {"model": "alpha", "messages": HELLO}
        async with lswap.client.stream("POST", "/api/chat", json=body) as answer:
            assert answer.headers["content-type"] == "application/x-ndjson"
            assert answer.headers["x-lswap-model"] == "alpha"
            lines = answer.aiter_lines()
            assert json.loads(await anext(lines))["done"] is False
        await lswap.until_idle()
        await lswap.until_slots_are_free("alpha")


async def test_a_child_that_dies_ends_the_stream_with_an_error_line(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.endless("alpha")}) as lswap:
        body = {"model": "alpha", "messages": HELLO}
        async with lswap.client.stream("POST", "/api/chat", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            (pid,) = lswap.child_pids()
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(60):
                rest = [json.loads(line) async for line in lines]
        assert "error" in rest[-1]
        assert all("message" in one for one in rest[:-1])
