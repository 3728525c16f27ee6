"""Members of Ollama's API one by one, with Ollama's own Python client, against real children."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import ollama
import pytest

from llamaswap_py.api.ollama.members import OPTIONS
from tests.real.test_ollama import HELLO, connect

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
EMBED: Any = {"embeddings": True, "pooling": "mean"}
WANTED: dict[str, Any] = {
    **{"num_keep": 4, "seed": 42.0, "num_predict": 3.0, "top_k": 40.0, "top_p": 0.9, "min_p": 0.1},
    **{"typical_p": 0.9, "repeat_last_n": 64, "temperature": 0.8, "repeat_penalty": 1.1},
    **{"presence_penalty": 0.1, "frequency_penalty": 0.1, "mirostat": 2, "mirostat_tau": 5.0},
    **{"mirostat_eta": 0.1, "stop": ["far"], "num_ctx": 4096, "num_batch": 512, "num_gpu": 99},
}


async def pieces(stream: Any) -> list[Any]:
    return [one async for one in stream]


async def test_log_probabilities(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap, connect(lswap) as client:
        words = len(lab.sentence("alpha").split())
        asks: list[Any] = [
            lambda **more: client.chat("alpha", messages=HELLO, **more),
            lambda **more: client.generate("alpha", prompt="hi", **more),
            lambda **more: client.generate("alpha", prompt="hi", raw=True, **more),
        ]
        for ask in asks:
            whole = (await ask(logprobs=True, top_logprobs=3)).logprobs
            stream = await pieces(await ask(logprobs=True, top_logprobs=3, stream=True))
            streamed = [each for one in stream for each in one.logprobs or ()]
            for found in (whole, streamed):
                assert found is not None
                assert words <= len(found) <= words + 1
                text = "".join(one.token for one in found).replace("</s>", "")
                assert text.strip() == lab.sentence("alpha")
                assert all(len(one.top_logprobs or ()) == 3 for one in found)
                assert all(one.logprob <= 0 and math.isfinite(one.logprob) for one in found)
            alone = (await ask(logprobs=True)).logprobs
            assert alone is not None
            assert all(not one.top_logprobs for one in alone)
            assert (await ask(top_logprobs=3)).logprobs is None
            with pytest.raises(ollama.ResponseError, match="top_logprobs"):
                await ask(logprobs=True, top_logprobs=21)
        body = {"model": "alpha", "prompt": "hi", "logprobs": True, "stream": False}
        said = (await lswap.client.post("/api/generate", json=body)).json()
        assert bytes(said["logprobs"][0]["bytes"]).decode() == said["logprobs"][0]["token"]


async def test_a_context_carries_a_conversation_on(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap, connect(lswap) as client:
        first = await client.generate("alpha", prompt="one", system="be brief")
        assert first.context
        stream = await client.generate("alpha", prompt="two", context=first.context, stream=True)
        second = (await pieces(stream))[-1]
        assert second.prompt_eval_count > (first.prompt_eval_count or 0) + 5
        body = {"model": "alpha", "prompt": "three", "context": [*second.context]}
        shown = await lswap.client.post("/api/generate", json={**body, "_debug_render_only": True})
        said = lab.sentence("alpha")
        rendered = shown.json()["_debug_info"]["rendered_template"]
        turns = ("system: be brief", "user: one", said, "user: two", said, "user: three")
        places = [rendered.index(turn) for turn in turns[:3]]
        assert places == sorted(places)
        assert rendered.count(said) == 2
        assert rendered.index("user: two") < rendered.index("user: three")
        assert (await client.generate("alpha", prompt="x", raw=True)).context is None


async def test_a_prompt_is_shown_without_an_answer(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        body: dict[str, Any] = {"model": "alpha", "_debug_render_only": True}
        chat = {**body, "messages": [{"role": "USER", "content": "hi"}]}
        answer = (await lswap.client.post("/api/chat", json=chat)).json()
        shown = {"rendered_template": "user: hi\nassistant:", "image_count": 0}
        assert answer["_debug_info"] == shown
        raw = {**body, "prompt": "as it is", "raw": True}
        answer = (await lswap.client.post("/api/generate", json=raw)).json()
        assert answer["_debug_info"]["rendered_template"] == "as it is"


async def test_every_option_is_taken(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap, connect(lswap) as client:
        for option in OPTIONS:
            options = {option.name: WANTED.get(option.name, True)}
            said = await client.chat("alpha", messages=HELLO, options=options)
            assert said.done_reason == ("length" if option.name == "num_predict" else "stop")
            raw = await client.generate("alpha", prompt="hi", raw=True, options=options)
            assert raw.eval_count
        for endless in (0, -1, -2):
            options = {"num_predict": endless}
            said = await client.chat("alpha", messages=HELLO, options=options)
            assert said.message.content == lab.sentence("alpha")
        sneaky = {"messages": [], "model": "beta", "stream": True, "dry_multiplier": 0.5}
        said = await client.chat("alpha", messages=HELLO, options=sneaky)
        assert said.message.content == lab.sentence("alpha")


async def test_what_show_and_ps_say_of_the_context(lab: Lab) -> None:
    request = {"default": {"temperature": 0.5, "stop": ["a b", "c"], "cache_prompt": True}}
    models = {"alpha": lab.preset("alpha", request=request)}
    async with lab.lswap(models) as lswap, connect(lswap) as client:
        shown = await client.show("alpha")
        assert shown.parameters is not None
        lines = [line.split(maxsplit=1) for line in shown.parameters.splitlines()]
        assert ["temperature", "0.5"] in lines
        assert ["stop", '"a b"'] in lines
        assert lines[0][0] == "num_ctx"
        await client.chat("alpha", messages=HELLO)
        (running,) = (await client.ps()).models
        assert str(running.context_length) == lines[0][1]
        (listed,) = (await lswap.client.get("/api/tags")).json()["models"]
        assert listed["capabilities"] == shown.capabilities
        assert listed["details"]["context_length"] == 4096
        assert listed["details"]["embedding_length"] == 64
        headers = {"user-agent": "GitHubCopilotChat/0.30"}
        ask = {"model": "alpha:latest"}
        answer = await lswap.client.post("/api/show", json=ask, headers=headers)
        assert answer.json()["model_info"]["general.basename"] == "alpha:latest"


def methods() -> set[str]:
    return {name for name in vars(ollama.AsyncClient) if not name.startswith("_")}


async def test_every_method_of_the_client(lab: Lab) -> None:
    """Each answers, or is refused by name; none is forgotten."""
    models = {"alpha": lab.preset("alpha"), "emb": lab.preset("beta", args=EMBED)}
    async with lab.lswap(models) as lswap, connect(lswap) as client:
        answers: dict[str, Any] = {
            "chat": client.chat("alpha", messages=HELLO),
            "generate": client.generate("alpha", prompt="hi"),
            "embed": client.embed("emb", input=["z", "y"]),
            "embeddings": client.embeddings("emb", prompt="z"),
            "list": client.list(),
            "ps": client.ps(),
            "show": client.show("alpha"),
            "pull": client.pull("alpha"),
        }
        for name, answer in answers.items():
            assert await answer is not None, name
        blob = lab.folder / "blob"
        blob.write_bytes(b"GGUF")
        refused: dict[str, Any] = {
            "create": client.create("mine", from_="alpha"),
            "create_blob": client.create_blob(blob),
            "copy": client.copy("alpha", "mine"),
            "push": client.push("alpha"),
        }
        for name, answer in refused.items():
            with pytest.raises(ollama.ResponseError) as caught:
                await answer
            assert caught.value.status_code == 501, name
            assert "configuration" in str(caught.value), name
        with pytest.raises(ollama.ResponseError) as caught:
            await client.delete("alpha")
        assert caught.value.status_code in (400, 409, 501)
        assert (await lswap.client.head("/api/blobs/sha256:ab")).status_code == 501
        own = {"web_search", "web_fetch", "close"}  # of ollama.com, and of the client itself
        route = {"systemone", "delete"}  # /v1/systemone is llama-server's
        assert methods() == {*answers, *refused, *own, *route}
