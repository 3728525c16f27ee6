"""`capture: on` stores prompts and answers, and only then."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.answers import chat_body

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


def _files(lab: Lab) -> list[Path]:
    return list((lab.folder / "lswap" / "captures").glob("*"))


async def test_it_keeps_what_was_asked_and_said(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}, capture="on") as lswap:
        await lswap.chat("alpha")
        async with lswap.stream("alpha") as stream:
            await stream.rest()
        ollama = {"model": "alpha", "messages": [{"role": "user", "content": "hi"}]}
        await lswap.client.post("/api/chat", json=ollama)
        await lswap.client.post("/tokenize", json={"model": "alpha", "content": "hi"})
        await lswap.client.post("/v1/chat/completions", json=chat_body("beta"))
        await lswap.says("capture is on: prompts and answers are written to")
    (file,) = _files(lab)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    records: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    assert [one["path"] for one in records] == [
        *("/v1/chat/completions", "/v1/chat/completions", "/api/chat")
    ]
    whole, streamed, translated = records
    assert whole["request"]["messages"][0]["content"] == "hi"
    said = whole["answer"]["choices"][0]["message"]["content"]
    assert said == lab.sentence("alpha")
    assert (whole["status"], whole["model"], whole["complete"]) == (200, "alpha", True)
    assert streamed["answer"].startswith("data: ")
    assert streamed["answer"].rstrip().endswith("data: [DONE]")
    assert streamed["complete"]
    assert '"done":true' in translated["answer"]
    assert {one["client"] for one in records} == {"127.0.0.1"}


async def test_off_is_the_default(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        await lswap.chat("alpha")
    assert _files(lab) == []
