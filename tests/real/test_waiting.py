"""`waiting.json: whitespace`: blanks keep an answer in one piece alive while it waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.answers import chat_body

if TYPE_CHECKING:
    import httpx

    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
WAITING = {"notice": "10ms", "json": "whitespace"}


async def _chat(lswap: Lswap, model: str, path: str = "/v1/chat/completions") -> httpx.Response:
    return await lswap.client.post(path, json=chat_body(model, max_tokens=20))


def _error(answer: httpx.Response) -> dict[str, Any]:
    """Return the error of an answer that had to promise status 200."""
    assert answer.status_code == 200
    assert answer.text.startswith(" ")
    error: dict[str, Any] = answer.json()["error"]
    return error


async def test_blanks_come_before_the_answer(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.heavy("alpha", mib=1000)}, waiting=WAITING) as lswap:
        answer = await _chat(lswap, "alpha")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.text.startswith(" ")
        assert answer.json()["choices"][0]["message"]["content"] == lab.sentence("alpha")
        at_once = await _chat(lswap, "alpha")
        assert at_once.text.startswith("{")


async def test_failures_come_as_json_too(lab: Lab) -> None:
    broken = lab.heavy("alpha", mib=800)
    broken["args"]["cache-type-k"] = "nonsense"
    slow = lab.fake("beta", env={"FAKE_LOAD_SECONDS": "100"}, load_stall="500ms")
    async with lab.lswap({"alpha": broken, "beta": slow}, waiting=WAITING) as lswap:
        refused = await _chat(lswap, "alpha")  # before the first blank, or after it
        assert refused.json()["error"]["code"] == "model_failed"
        stalled = await _chat(lswap, "beta")
        assert _error(stalled)["code"] == "model_failed"
        told = await _chat(lswap, "beta", "/v1/messages")
        assert told.status_code in (200, 503)
        assert told.json()["type"] == "error"


async def test_a_child_s_own_refusal_is_passed_on(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.heavy("alpha", mib=1000)}, waiting=WAITING) as lswap:
        body = {"model": "alpha", "messages": "nonsense"}
        answer = await lswap.client.post("/v1/chat/completions", json=body)
        assert _error(answer)["message"]


async def test_one_who_waits_is_moved_unseen(lab: Lab) -> None:
    """Its lease is revoked after blanks, before a byte of its answer: it waits again."""
    models = {"alpha": lab.endless("alpha", drain_timeout="300ms"), "beta": lab.preset("beta")}
    async with lab.lswap(models, waiting=WAITING, policy={"max_wait": "0s"}) as lswap:
        await lswap.chat("beta")
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(
                lswap.client.post("/v1/chat/completions", json=chat_body("alpha", max_tokens=2000))
            )
            await lswap.until_state("alpha", "ready")
            await lswap.until_slots_are_busy("alpha")
            assert await lswap.chat("beta") == lab.sentence("beta")
            await lswap.until_state("alpha", "ready")
            await lswap.until_slots_are_busy("alpha")
            await lswap.client.post("/lswap/v1/models/alpha/unload", params={"force": "true"})
        assert _error(first.result())["code"] == "unloaded"
