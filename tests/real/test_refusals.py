"""What a model refuses: the client's error, a line of the log, and what is kept of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

SECRET = "xyzzy"
LONG = f"{SECRET} " * 2000
CHAT = {"messages": [{"role": "user", "content": LONG}], "max_tokens": 4}
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/v1/completions", {"prompt": LONG}),
    ("/completion", {"prompt": LONG}),
    ("/v1/messages", CHAT),
    ("/api/chat", {**CHAT, "stream": True}),
    ("/api/generate", {"prompt": LONG, "stream": False}),
    ("/upstream/alpha/v1/chat/completions", CHAT),
]


async def test_a_line_says_what_a_model_refused(lab: Lab) -> None:
    """Each request twice: the second takes the short way where there is one."""
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        for path, body in WAYS * 2:
            answer = await lswap.client.post(path, json={"model": "alpha", **body})
            assert answer.status_code == 400
            line = await lswap.says(f"(POST {path}, request {answer.headers['x-request-id']})")
            assert "INFO" in line
            assert "refused alpha#1: 400 exceed_context_size_error: request (" in line
            assert "exceeds the available context size" in line
        assert sum("refused alpha#1" in line for line in lswap.log) == 2 * len(WAYS)
        assert SECRET not in "".join(lswap.log)


async def test_what_a_template_refuses_is_not_quoted(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        for messages in ([{"role": "user", SECRET: SECRET}], SECRET, [SECRET]):
            body = {"model": "alpha", "messages": messages}
            answer = await lswap.client.post("/v1/chat/completions", json=body)
            assert answer.status_code >= 400
            await lswap.says(f", request {answer.headers['x-request-id']})")
        assert SECRET not in "".join(lswap.log)


async def test_capture_says_that_it_was_refused(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}, capture="on") as lswap:
        await lswap.post_chat("alpha")
        await lswap.client.post("/v1/chat/completions", json={"model": "alpha", **CHAT})
        await lswap.client.post("/api/chat", json={"model": "alpha", **CHAT})
        await lswap.stop()
    (path,) = (lab.folder / "lswap" / "captures").glob("*.jsonl")
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(one["status"], one["outcome"]) for one in kept] == [
        (200, "ok"),
        (400, "refused"),
        (400, "refused"),
    ]
