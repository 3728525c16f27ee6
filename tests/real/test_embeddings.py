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
