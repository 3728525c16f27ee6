"""The clients people use, against real children: SDKs, llama.cpp's own routes, curl, browsers."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import anthropic
import openai
import pytest
import websockets

from tests import needs
from tests.real.answers import error_of, instance_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from openai.types.chat import ChatCompletionMessageParam

    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def lswap(lab: Lab) -> AsyncIterator[Lswap]:
    models = {"alpha": lab.preset("alpha", aliases=["gpt-4o-mini"]), "beta": lab.preset("beta")}
    bad = lab.preset("gamma", extra=["--no-such-flag"])
    async with lab.lswap({**models, "bad": bad}) as server:
        yield server


async def test_openai_sdk(lab: Lab, lswap: Lswap) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{lswap.url}/v1", api_key="none", max_retries=0
    ) as client:
        listed = [model.id async for model in await client.models.list()]
        assert listed == ["alpha", "gpt-4o-mini", "beta", "bad"]
        assert (await client.models.retrieve("gpt-4o-mini")).id == "gpt-4o-mini"

        for name in ("alpha", "beta"):
            answer = await client.chat.completions.create(model=name, messages=HELLO)
            assert answer.choices[0].message.content == lab.sentence(name)
            assert answer.model == name

        stream = await client.chat.completions.create(
            model="gpt-4o-mini", messages=HELLO, stream=True
        )
        words = [chunk.choices[0].delta.content async for chunk in stream if chunk.choices]
        assert "".join(word or "" for word in words) == lab.sentence("alpha")
        assert len(words) > 4

        completed = await client.completions.create(model="beta", prompt="hi")
        assert completed.choices[0].text == lab.sentence("beta")

        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="alpa", messages=HELLO)
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.InternalServerError) as failed:
            await client.chat.completions.create(model="bad", messages=HELLO)
        assert failed.value.status_code == 503
        assert failed.value.code == "model_failed"
        with pytest.raises(openai.BadRequestError):  # the child's own complaint
            await client.chat.completions.create(model="alpha", messages=HELLO, n=99)


async def test_anthropic_sdk(lab: Lab, lswap: Lswap) -> None:
    async with anthropic.AsyncAnthropic(
        base_url=lswap.url, api_key="none", max_retries=0
    ) as client:
        for name in ("alpha", "beta"):
            answer = await client.messages.create(
                model=name, max_tokens=64, messages=[{"role": "user", "content": "hi"}]
            )
            assert answer.content[0].type == "text"
            assert answer.content[0].text == lab.sentence(name)
        async with client.messages.stream(
            model="alpha", max_tokens=64, messages=[{"role": "user", "content": "hi"}]
        ) as stream:
            assert "".join([text async for text in stream.text_stream]) == lab.sentence("alpha")
        counted = await client.messages.count_tokens(
            model="alpha", messages=[{"role": "user", "content": "hi"}]
        )
        assert counted.input_tokens > 0
        with pytest.raises(anthropic.NotFoundError) as unknown:
            await client.messages.create(
                model="alpa", max_tokens=9, messages=[{"role": "user", "content": "hi"}]
            )
        assert "did you mean alpha" in unknown.value.message


async def test_llama_cpp_routes(lab: Lab, lswap: Lswap) -> None:
    client = lswap.client
    answer = await client.post("/completion", json={"model": "alpha", "prompt": "hi"})
    assert answer.json()["content"] == lab.sentence("alpha")
    tokens = (await client.post("/tokenize", json={"model": "alpha", "content": "hi"})).json()[
        "tokens"
    ]
    assert tokens
    text = await client.post("/detokenize", json={"model": "alpha", "tokens": tokens})
    assert text.json()["content"].strip() == "hi"
    template = await client.post("/apply-template", json={"model": "alpha", "messages": HELLO})
    assert "user: hi" in template.json()["prompt"]
    props = (await client.get("/props", params={"model": "alpha"})).json()
    assert props["total_slots"] == 2
    assert (await client.get("/props")).json()["role"] == "router"
    assert len(await lswap.child_slots("alpha")) == 2
    metrics = await client.get("/metrics", params={"model": "alpha"})
    assert "llamacpp:" in metrics.text
    assert (await client.get("/lora-adapters", params={"model": "alpha"})).json() == []
    # None of these loads another model: a GET asks of what is there.
    error = error_of(await client.get("/slots", params={"model": "beta"}), 400)
    assert error["code"] == "model_not_loaded"
    assert (await lswap.state()).loads_total == 1
    asked = await client.get("/props", params={"model": "beta", "autoload": "true"})
    assert asked.status_code == 200
    assert {one.preset for one in (await lswap.state()).instances} == {"beta"}


async def test_upstream_reaches_any_path_of_a_child(lab: Lab, lswap: Lswap) -> None:
    client = lswap.client
    answer = await client.post("/upstream/alpha/v1/chat/completions", json={"messages": HELLO})
    assert answer.json()["choices"][0]["message"]["content"] == lab.sentence("alpha")
    models = (await client.get("/upstream/alpha/v1/models")).json()
    assert [model["id"] for model in models["data"]] == ["alpha"]
    assert error_of(await client.get("/upstream/beta/health"), 400)["code"] == "model_not_loaded"
    assert (await client.get("/upstream/alpha/nowhere")).status_code == 404


async def test_a_websocket_is_refused_by_who_has_none(lswap: Lswap) -> None:
    """The child's own answer to an upgrade comes through; the connection is usable after it."""
    await lswap.client.post("/lswap/v1/models/alpha/load")
    headers = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "x3JJHMbDL1EzLkh9GBhXDw==",
    }
    answer = await lswap.client.get("/upstream/alpha/nowhere", headers=headers)
    assert answer.status_code in (400, 404)
    assert (await lswap.until_idle()).requests_open == 0
    assert (await lswap.client.get("/health")).status_code == 200


async def test_a_websocket_through_upstream(lab: Lab) -> None:
    """The lease lasts as long as the connection."""
    preset = lab.fake("alpha") | {"engine": lab.websocket_engine()}
    async with lab.lswap({"alpha": preset}) as lswap:
        url = lswap.url.replace("http", "ws", 1) + "/upstream/alpha/echo?autoload=true"
        async with websockets.connect(url, proxy=None) as connection:
            for message in ("hello", "x" * 300_000):
                await connection.send(message)
                assert await connection.recv() == message[::-1]
            assert (await lswap.model("alpha")).leases == 1
        await lswap.until_idle()
        assert (await lswap.model("alpha")).leases == 0


async def test_curl_and_its_content_type(lab: Lab, lswap: Lswap) -> None:
    """`curl -d` claims to send a form; the body is JSON all the same."""
    curl = needs.CURL.require()
    body = json.dumps({"model": "alpha", "messages": HELLO})
    process = await asyncio.create_subprocess_exec(
        *(curl, "-sS", "--noproxy", "*", f"{lswap.url}/v1/chat/completions", "-d", body),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert json.loads(out)["choices"][0]["message"]["content"] == lab.sentence("alpha")


async def test_what_every_answer_says(lab: Lab, lswap: Lswap) -> None:
    answer = await lswap.client.post(
        "/v1/chat/completions",
        json={"model": "gpt-4o-mini", "messages": HELLO},
        headers={"x-request-id": "my-own-id"},
    )
    assert answer.headers["x-request-id"] == "my-own-id"
    assert answer.headers["x-lswap-model"] == "alpha"
    assert int(answer.headers["x-lswap-load-ms"]) > 0
    assert int(answer.headers["x-lswap-queue-ms"]) >= 0
    again = await lswap.post_chat("alpha")
    assert again.headers["x-lswap-load-ms"] == "0"
    assert again.headers["x-request-id"] != "my-own-id"
    listed = {
        one["id"]: one["status"]["value"]
        for one in (await lswap.client.get("/models")).json()["data"]
    }
    assert (listed["alpha"], listed["beta"]) == ("loaded", "unloaded")
    assert (await lswap.client.head("/v1/models")).status_code == 200


async def test_http_1_0(lab: Lab, lswap: Lswap) -> None:
    """A stream for a client that knows no chunks: plain bytes until the connection closes."""
    host, _, port = lswap.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"model": "alpha", "messages": HELLO, "stream": True}).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert b"transfer-encoding" not in head.lower()
    events = [line for line in answer.split(b"\n\n") if line]
    assert events[-1] == b"data: [DONE]"
    assert all(line.startswith(b"data: ") for line in events)


async def test_a_large_body_and_one_in_chunks(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        assert await lswap.chat("alpha", ignored="x" * (8 << 20)) == lab.sentence("alpha")

        async def pieces() -> AsyncIterator[bytes]:
            for piece in (
                b'{"model": "al',
                b'pha", "messages": [{"role": "user',
                b'", "content": "x"}]}',
            ):
                yield piece

        chunked = await lswap.client.post("/v1/chat/completions", content=pieces())
        assert chunked.json()["choices"][0]["message"]["content"] == lab.sentence("alpha")
        assert instance_of(await lswap.state(), "alpha").epoch == 1


async def test_model_names_with_slashes_and_colons(lab: Lab) -> None:
    name = "ggml-org/Tiny-GGUF:Q4_K_M"
    async with lab.lswap({name: lab.preset("alpha")}) as lswap:
        assert await lswap.chat(name) == lab.sentence("alpha")
        assert (await lswap.client.get(f"/v1/models/{name}")).json()["id"] == name
        assert (await lswap.client.get(f"/upstream/{name}/health")).status_code == 200
        unloaded = await lab.cli("unload", name, "--url", lswap.url)
        assert unloaded.code == 0, unloaded.err
        assert not (await lswap.state()).instances
