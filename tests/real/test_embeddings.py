"""Inputs of embedding models and rerankers, against real children."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
EMBED: Any = {"embeddings": True, "pooling": "mean", "ctx-size": 2048, "parallel": 1}
BYTE: Any = "z"
"""A letter that no word of the tiny models has: one token."""


async def test_an_input_may_be_as_long_as_the_context(lab: Lab) -> None:
    rank = {"reranking": True, "ctx-size": 2048, "parallel": 1}
    models = {"alpha": lab.preset("alpha", args=EMBED), "beta": lab.preset("beta", args=rank)}
    async with lab.lswap(models) as lswap:
        body = {"model": "alpha", "input": ["z" * 1500, "z"]}
        answer = await lswap.client.post("/v1/embeddings", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["prompt_tokens"] > 1500
        ranked = {"model": "beta", "query": "z", "documents": ["z" * 1500, "z"]}
        answer = await lswap.client.post("/v1/rerank", json=ranked)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["results"]) == 2


async def test_ollamas_embed_cuts_what_is_too_long(lab: Lab) -> None:
    models = {
        "alpha": lab.preset("alpha", args=EMBED),
        "small": lab.preset("beta", args={**EMBED, "ubatch-size": 512}),
        "last": lab.preset("alpha", args={**EMBED, "pooling": "last"}),
        "open": lab.preset("alpha", args={**EMBED, "ctx-size": 0, "parallel": 2}),
    }
    async with lab.lswap(models) as lswap:

        async def embed(**body: Any) -> tuple[int, Any]:
            answer = await lswap.client.post("/api/embed", json={"model": "alpha", **body})
            return answer.status_code, answer.json()

        # Beyond the context: cut to it. The first of the questions to the child loads it.
        status, said = await embed(input="z" * 5000, keep_alive=1e15)
        assert (status, said["prompt_eval_count"]) == (200, 2048)
        assert said["load_duration"] > 0
        listed = await lswap.client.get("/api/ps")
        assert listed.json()["models"][0]["expires_at"].startswith("9999")
        status, said = await embed(input="z" * 1500)
        assert (status, said["prompt_eval_count"] > 1500) == (200, True)
        status, said = await embed(input=["z", "z" * 9000, "z y" * 900, "y"])
        assert status == 200, said
        assert len(said["embeddings"]) == 4
        assert said["prompt_eval_count"] > 2 * 2048
        for model, most in (("alpha", 2048), ("small", 512), ("last", 2047), ("open", 2048)):
            status, said = await embed(model=model, input=["z" * 9000])
            assert (status, said.get("prompt_eval_count")) == (200, most), said
            status, said = await embed(model=model, input=["z", "z" * 9000], truncate=False)
            assert status == 400
            assert "exceeds the context length" in said["error"]
            assert str(most) in said["error"]
            answer = await lswap.client.post(
                "/api/embeddings", json={"model": model, "prompt": "z" * 9000}
            )
            assert answer.status_code == 200
            assert answer.json()["embedding"]
        status, said = await embed(input="z" * 9000, truncate="no")
        assert status == 400
        status, said = await embed(input="z", truncate=False)
        assert status == 200


async def test_ollamas_embed_of_nothing_loads_the_model(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha", args=EMBED)}) as lswap:
        empties: tuple[dict[str, Any], ...] = ({"input": []}, {"input": ""}, {}, {"input": None})
        for body in empties:
            answer = await lswap.client.post("/api/embed", json={"model": "alpha", **body})
            assert (answer.status_code, answer.json()["embeddings"]) == (200, [])
            assert [one.preset for one in (await lswap.state()).instances] == ["alpha"]
        answer = await lswap.client.post("/api/embeddings", json={"model": "alpha", "prompt": ""})
        assert (answer.status_code, answer.json()) == (200, {"embedding": []})
        answer = await lswap.client.post("/api/embed", json={"model": "alpha", "input": ["", "z"]})
        assert len(answer.json()["embeddings"]) == 2
        empty = {"model": "alpha", "input": [], "keep_alive": 0}
        assert (await lswap.client.post("/api/embed", json=empty)).status_code == 200
        await lswap.until(lambda state: not state.instances)


async def test_many_inputs_as_long_as_the_context(lab: Lab) -> None:
    args = {"embeddings": True, "pooling": "mean", "ctx-size": 2048}
    async with lab.lswap({"alpha": lab.preset("alpha", args=args)}) as lswap:
        body = {"model": "alpha", "input": ["z" * 5000] * 9}
        answer = await lswap.client.post("/api/embed", json=body)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["embeddings"]) == 9


async def test_a_context_that_was_shrunk_counts(lab: Lab) -> None:
    """The file names 2,048 tokens; the child runs with fewer, as fit may leave it."""
    engine = lab.engine_that_ends_with("--ctx-size 1024")
    models = {
        "alpha": lab.preset("alpha", args=EMBED, engine=engine),
        "last": lab.preset("alpha", args={**EMBED, "pooling": "last"}, engine=engine),
    }
    async with lab.lswap(models) as lswap:
        for model in models:
            body = {"model": model, "input": ["z", "z" * 1500, "z" * 3000]}
            answer = await lswap.client.post("/api/embed", json=body)
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["embeddings"]) == 3


async def test_a_model_that_does_not_embed_says_how_it_would(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        answer = await lswap.client.post("/api/embed", json={"model": "alpha", "input": "z"})
        assert answer.status_code == 501
        assert "embeddings: true" in answer.json()["error"]
