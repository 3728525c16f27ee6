"""How much work one request of Ollama's API can be: counted, and no search within a search."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from llamaswap_py.api import media_urls, read_body
from llamaswap_py.api.ollama import context
from llamaswap_py.api.ollama.answers import Clock, OllamaAnswer
from llamaswap_py.api.ollama.context import Said, read_context, write_context
from llamaswap_py.api.ollama.translate import (
    MOST_MESSAGES,
    MOST_OPTIONS,
    MOST_WITHIN,
    Calls,
    translate_chat,
    translate_generate,
)
from llamaswap_py.errors import ApiError
from tests.unit.api_fakes import FakeExchange, answer

pytestmark = pytest.mark.anyio


class Text(str):
    """A text that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Text.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def messages(count: int, within: str = "", each: Any = None) -> dict[str, Any]:
    asked: list[dict[str, Any]] = [{"role": "user", "content": "x"} for _ in range(count)]
    if within:
        asked[0][within] = [each] * (MOST_WITHIN + 1)
    return {"model": "alpha", "messages": asked}


@pytest.mark.parametrize(
    "ask",
    [
        messages(MOST_MESSAGES + 1),
        messages(1, "images", ""),
        messages(1, "tool_calls", {}),
    ],
    ids=["messages", "images", "calls"],
)
async def test_no_more_is_translated_than_takes_a_moment(ask: dict[str, Any]) -> None:
    exchange = FakeExchange("POST", "/api/chat", json.dumps(ask).encode())
    exchange.head.content_length = None
    await answer(exchange)
    assert exchange.status == 413
    assert "at most" in exchange.error


async def test_options_are_few() -> None:
    ask = {**messages(1), "options": {f"o{number}": 1 for number in range(MOST_OPTIONS + 1)}}
    with pytest.raises(ApiError, match="members"):
        translate_chat(ask)


@pytest.mark.parametrize("path", ["/api/chat", "/api/embed"])
@pytest.mark.parametrize("one", [b"0.5", b"1e300"])
async def test_decimals_are_few(path: str, one: bytes) -> None:
    many = b",".join([one] * (read_body.DECIMALS + 1))
    body = b'{"model":"alpha","messages":[{}],"input":"x","options":{"x":[' + many + b"]}}"
    exchange = FakeExchange("POST", path, body)
    exchange.head.content_length = None
    await answer(exchange)
    assert exchange.status == 413
    assert str(read_body.DECIMALS) in exchange.error


def test_an_answer_of_a_tool_is_not_searched_for() -> None:
    calls, many = Calls(), 500
    for number in range(many):
        calls.add(Text(f"id{number}"), Text(f"name{number}"))
    Text.compared = 0
    for _ in range(many):
        assert calls.answered(Text("none"), None) == "none"
        assert calls.answered(None, Text("none")) == "call"
    assert Text.compared < 20 * many


def test_answers_of_tools_find_their_calls() -> None:
    calls = Calls()
    for id, name in (("a", "f"), ("b", "g"), ("c", "f"), ("d", "g"), ("a", "h")):
        calls.add(id, name)
    assert calls.answered("b", "f") == "b"
    assert calls.answered(None, "g") == "d"
    assert calls.answered(None, None) == "a"
    assert calls.answered(None, "f") == "c"
    assert calls.answered("a", None) == "a"
    assert calls.answered("a", None) == "a"  # no call is left: its own id
    assert calls.answered(None, None) == "call"
    assert calls.answered(["x"], None) == "['x']"
    assert calls.answered(None, ["x"]) == "call"


def test_a_small_context_does_not_unpack_to_a_million_messages() -> None:
    bomb = write_context([Said("", "")] * (context._MOST_LISTS + 1))
    assert len(bomb) < 10_000
    with pytest.raises(ApiError, match="context"):
        read_context(bomb)
    many = write_context([Said("user", "")] * (MOST_MESSAGES + 1))
    with pytest.raises(ApiError, match="at most"):
        translate_generate({"prompt": "x", "context": many})


def test_a_conversation_that_is_very_long_gets_no_context() -> None:
    clock = Clock(now=lambda: "", elapsed=lambda: 0, load_ns=0)
    for length, there in ((100, True), (context.LONGEST + 1, False)):
        talk = [Said("user", "x" * length)]
        assert ("context" in OllamaAnswer("m", "generate", clock, 0, talk).figures()) is there


def test_others_have_their_turn_while_media_are_looked_for() -> None:
    many: Iterator[bool] = media_urls.looking([[]] * (5 * media_urls._STEP))
    assert list(many) == [False] * 5
