"""A large body reaches the child whole, whatever was made of it on the way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamaswap_py.api import inference
from llamaswap_py.api.body import Ask, Skim, read_ask
from tests.unit.api_fakes import FakeExchange, FakeSupervisor, answer, make_config

pytestmark = pytest.mark.anyio

IMAGE = "iVBORw0KGgo" * 60_000
CONFIG = "models: {alpha: {model: /a.gguf, request: {set: {seed: 1}, strip: [user]}}}"


async def sent(path: str, ask: dict[str, Any], config: str = "") -> bytes:
    """Return the body that the child gets of a chunked request."""
    supervisor = FakeSupervisor(make_config(config)) if config else FakeSupervisor()
    exchange = FakeExchange("POST", path, json.dumps(ask).encode())
    exchange.head.content_length = None
    await answer(exchange, supervisor)
    assert exchange.status == 200, exchange.answer
    body = exchange.relayed[0].body
    whole = body.join()
    assert body.size == len(whole)
    return whole


CHAT = {"model": "alpha", "user": "me", "messages": [{"role": "user", "content": IMAGE}]}


async def test_it_passes_as_it_is() -> None:
    assert await sent("/v1/chat/completions", CHAT) == json.dumps(CHAT).encode()


async def test_it_is_filtered() -> None:
    got = json.loads(await sent("/v1/chat/completions", CHAT, CONFIG))
    assert got == {"model": "alpha", "messages": CHAT["messages"], "seed": 1}


async def test_it_is_translated() -> None:
    told = {"role": "user", "content": "what is it?", "images": [IMAGE]}
    asked = {"name": "write", "arguments": {"path": "a\n", "text": "line\n" * 5000 + IMAGE}}
    called = {"role": "assistant", "tool_calls": [{"function": asked}]}
    ask = {"model": "alpha", "messages": [told, called], "stream": False}
    got = json.loads(await sent("/api/chat", ask))
    url = got["messages"][0]["content"][1]["image_url"]["url"]
    assert url == f"data:image/png;base64,{IMAGE}"
    call = got["messages"][1]["tool_calls"][0]["function"]
    assert json.loads(call["arguments"]) == asked["arguments"]


LINES = [{"role": "user", "content": f'line "{number}"\n' * 5} for number in range(20_000)]
MANY = {"user": "me", "messages": LINES, "model": "alpha", "stream": False}


async def test_very_many_short_texts_pass_as_they_are() -> None:
    assert await sent("/v1/chat/completions", MANY) == json.dumps(MANY).encode()


async def test_little_is_read_of_very_many_short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def spy(kind: bytes, text: bytes, skim: Skim | None) -> Ask:
        read.append(len(text))
        return read_ask(kind, text, skim)

    monkeypatch.setattr(inference, "read_ask", spy)
    whole = await sent("/v1/chat/completions", MANY)
    assert sum(read) < len(whole) // 2


async def test_very_many_short_texts_are_filtered() -> None:
    got = await sent("/v1/chat/completions", MANY, CONFIG)
    assert json.dumps(LINES).encode() in got  # byte for byte
    assert json.loads(got) == {"model": "alpha", "messages": LINES, "seed": 1, "stream": False}


async def test_very_many_short_texts_are_translated() -> None:
    got = json.loads(await sent("/api/chat", MANY))
    assert got["messages"] == LINES


async def test_what_is_wrong_in_it_is_told_with_its_place() -> None:
    body = json.dumps(CHAT).encode()[:-1] + b",,}"
    exchange = FakeExchange("POST", "/v1/chat/completions", body)
    exchange.head.content_length = None
    await answer(exchange)
    assert exchange.error["code"] == "bad_json"
    assert f"at byte {len(body) - 2}" in exchange.error["message"]
