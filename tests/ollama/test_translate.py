"""Ollama's requests and answers, translated both ways, wherever a stream is cut."""

from __future__ import annotations

import base64
import json
import zlib
from itertools import pairwise
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswap_py.api.ollama.answers import Clock, LineStream, OllamaAnswer, embed_answer
from llamaswap_py.api.ollama.context import Said, read_context, write_context
from llamaswap_py.api.ollama.translate import (
    read_keep_alive,
    texts_to_embed,
    translate_chat,
    translate_generate,
)
from llamaswap_py.errors import ApiError

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(60)).decode()
JPEG = base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(60)).decode()
USER = {"role": "user", "content": "hi"}


def clock() -> Clock:
    return Clock(now=lambda: "2026-01-01T00:00:00Z", elapsed=lambda: 7, load_ns=3)


@pytest.mark.parametrize(
    ("ask", "want"),
    [
        ({}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"stream": False}, {"stream": False}),
        ({"format": "json"}, {"response_format": {"type": "json_object"}}),
        (
            {"format": {"type": "object"}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                }
            },
        ),
        (
            {"options": {"temperature": 0.5, "num_predict": 9, "num_ctx": 4096, "top_k": 3}},
            {"temperature": 0.5, "max_tokens": 9, "top_k": 3},
        ),
        ({"options": {"num_predict": -1, "stop": ["x"]}}, {"stop": ["x"]}),
        ({"think": False}, {"chat_template_kwargs": {"enable_thinking": False}}),
        (
            {"think": "high"},
            {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "high"},
        ),
        ({"tools": [{"type": "function"}]}, {"tools": [{"type": "function"}]}),
        ({"think": "max"}, {"reasoning_effort": "max", "chat_template_kwargs": ANY}),
        ({"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"logprobs": True}, {"logprobs": True, "top_logprobs": 1}),
        ({"top_logprobs": 2}, {}),
        ({"options": {"seed": 42.0, "temperature": 1.0}}, {"seed": 42, "temperature": 1.0}),
        ({"options": {"num_predict": 0}}, {}),
        ({"options": {"messages": [], "dry_base": 2}}, {"dry_base": 2}),
    ],
)
def test_what_a_chat_asks_for(ask: dict[str, Any], want: dict[str, Any]) -> None:
    made = translate_chat({"messages": [USER], **ask})
    assert made.path == "/v1/chat/completions"
    assert made.shape == "chat"
    assert made.body["messages"] == [USER]
    assert {name: made.body[name] for name in want} == want
    allowed = {"messages", "stream", "stream_options", *want}
    assert set(made.body) <= allowed


def test_an_answer_of_generate_carries_its_conversation_on() -> None:
    asked = translate_generate({"prompt": "one", "system": "be brief"})
    answer = OllamaAnswer("m", "generate", clock(), talk=asked.talk)
    answer.parts({"choices": [{"delta": {"content": "un"}}]})
    context = answer.last()[-1]["context"]
    again = translate_generate({"prompt": "two", "system": "be long", "context": context})
    assert [(one["role"], one["content"]) for one in again.body["messages"]] == [
        ("system", "be long"),
        ("user", "one"),
        ("assistant", "un"),
        ("user", "two"),
    ]


def test_images_and_tools_in_messages() -> None:
    messages = [
        {"role": "user", "content": "look", "images": [PNG, JPEG]},
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [
                {"function": {"name": "add", "arguments": {"a": 1}}},
                {"function": {"name": "say", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "done", "tool_name": "say"},
        {"role": "tool", "content": "2"},
    ]
    user, assistant, said, added = translate_chat({"messages": messages}).body["messages"]
    assert user["content"][0] == {"type": "text", "text": "look"}
    assert user["content"][1]["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    assert user["content"][2]["image_url"]["url"] == f"data:image/jpeg;base64,{JPEG}"
    assert assistant["reasoning_content"] == "hm"
    assert [call["id"] for call in assistant["tool_calls"]] == ["call_0", "call_1"]
    assert assistant["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert said["tool_call_id"] == "call_1"
    assert added["tool_call_id"] == "call_0"


def test_sounds_come_as_images_do() -> None:
    sounds = {"wav": b"RIFF\0\0\0\0WAVEfmt " + bytes(48), "mp3": b"ID3" + bytes(61)}
    for kind, data in sounds.items():
        given = base64.b64encode(data).decode()
        (message,) = translate_chat({"messages": [{**USER, "images": [given]}]}).body["messages"]
        audio = {"data": given, "format": kind}
        assert message["content"][1] == {"type": "input_audio", "input_audio": audio}


@given(st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_a_context_is_read_as_it_was_written(turns: list[tuple[str, str]]) -> None:
    talk = [Said(*turn) for turn in turns]
    numbers = write_context(talk)
    assert all(isinstance(number, int) and 0 <= number < 1 << 31 for number in numbers)
    assert read_context(numbers) == talk


@given(st.one_of(st.lists(st.integers(), min_size=1), st.text(min_size=1), st.integers(1)))
def test_a_context_of_another_server_is_refused(numbers: Any) -> None:
    with pytest.raises(ApiError, match="`context`"):
        read_context(numbers)


def test_a_context_that_was_changed_is_refused() -> None:
    numbers = write_context([Said("user", "hello " * 50)])
    for at in range(1, len(numbers)):
        broken = [*numbers]
        broken[at] ^= 1
        with pytest.raises(ApiError):
            read_context(broken)
    bomb = zlib.compress(b" " * (17 << 20))
    pieces = [int.from_bytes(bomb[at : at + 3], "big") for at in range(0, len(bomb), 3)]
    with pytest.raises(ApiError):
        read_context([numbers[0], len(bomb), *pieces])


def test_generate_is_a_chat_a_raw_completion_or_a_filling_in() -> None:
    chat = translate_generate({"prompt": "hi", "system": "be brief", "images": [PNG]})
    assert chat.shape == "generate"
    assert chat.body["messages"][0] == {"role": "system", "content": "be brief"}
    assert chat.body["messages"][1]["content"][0]["text"] == "hi"
    raw = translate_generate({"prompt": "hi", "raw": True, "options": {"num_predict": 5}})
    assert (raw.path, raw.shape) == ("/completion", "native")
    assert raw.body == {"prompt": "hi", "n_predict": 5, "stream": True}
    fill = translate_generate({"prompt": "def f(", "suffix": "return", "stream": False})
    assert fill.path == "/infill"
    assert fill.body == {"input_prefix": "def f(", "input_suffix": "return", "stream": False}


@pytest.mark.parametrize(
    ("translate", "ask"),
    [
        (translate_chat, {"messages": "hi"}),
        (translate_chat, {"messages": ["hi"]}),
        (translate_chat, {"messages": [USER], "tools": {}}),
        (translate_chat, {"messages": [USER], "format": "xml"}),
        (translate_chat, {"messages": [USER], "options": []}),
        (translate_chat, {"messages": [USER], "think": "much"}),
        (translate_chat, {"messages": [USER], "top_logprobs": 21}),
        (translate_chat, {"messages": [USER], "logprobs": "yes"}),
        (translate_generate, {"prompt": "x", "raw": True, "system": "y"}),
        (translate_generate, {"prompt": "x", "raw": True, "format": "xml"}),
        (translate_generate, {"prompt": "x", "width": 512}),
        (translate_chat, {"messages": [{"role": "user", "images": [3]}]}),
        (translate_chat, {"messages": [{"role": "user", "images": "x"}]}),
        (translate_generate, {"prompt": 3}),
        (translate_generate, {"prompt": "x", "context": [1]}),
        (translate_generate, {"prompt": "x", "template": "{{ .Prompt }}"}),
        (texts_to_embed, {"input": 3}),
        (texts_to_embed, {"input": ["a", 3]}),
    ],
)
def test_what_cannot_be_translated_is_refused_by_name(translate: Any, ask: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        translate(ask)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("value", "want"),
    [
        *((None, None), ("5m", 300.0), (0, 0.0), ("0", 0.0), ("0s", 0.0), (90, 90.0)),
        *(("500ms", 0.5), ("1.5h", 5400.0), (".5s", 0.5), ("+5m", 300.0), ("-1m30s", -1.0)),
        *(
            ("1d", 86400.0),
            ("100us", 1e-4),
            ("1µs", 1e-6),
            ("10ns", 1e-8),
            ("1m 30s", 90.0),
            ("2000000h", -1.0),
        ),
        *((1e300, -1.0), (2**70, -1.0), ("9" * 400, -1.0)),
        *(("1h30m", 5400.0), (-1, -1.0), ("-1", -1.0), ("-1m", -1.0), (1.5, 1.5), ("", None)),
    ],
)
def test_keep_alive(value: Any, want: float | None) -> None:
    assert read_keep_alive(value) == (want if want is None else pytest.approx(want))


@pytest.mark.parametrize(
    "value", ["soon", "5x", [], True, float("nan"), "1m-", "--5m", "1h-5m", "٣"]
)
def test_a_keep_alive_that_is_none(value: Any) -> None:
    with pytest.raises(ApiError):
        read_keep_alive(value)


EVENTS = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]},
    {"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]},
    {"choices": [{"index": 0, "delta": {"content": "Grüße, "}}]},
    {"choices": [{"index": 0, "delta": {"content": "Welt"}}]},
    {
        "choices": [
            {
                "index": 0,
                "delta": {
                    "tool_calls": [{"index": 0, "function": {"name": "add", "arguments": '{"a":'}}]
                },
            }
        ]
    },
    {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": " 1}"}}]}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    {
        "choices": [],
        "usage": {"prompt_tokens": 11, "completion_tokens": 5},
        "timings": {"prompt_ms": 2.5, "predicted_ms": 4.0},
    },
]
STREAM = (
    b": lswap says something\n\n"
    + b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in EVENTS)
    + b"data: [DONE]\n\n"
)


def lines(stream: bytes) -> list[Any]:
    return [json.loads(line) for line in stream.splitlines()]


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_a_stream_is_the_same_wherever_it_is_cut(cuts: list[int]) -> None:
    translator = LineStream(OllamaAnswer("m", "chat", clock()))
    edges = [0, *sorted(cuts), len(STREAM)]
    made = b"".join(translator.feed(STREAM[a:b]) for a, b in pairwise(edges))
    got = lines(made + translator.end())
    assert [one.get("message") for one in got] == [
        {"role": "assistant", "content": "", "thinking": "hm"},
        {"role": "assistant", "content": "Grüße, "},
        {"role": "assistant", "content": "Welt"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"index": 0, "name": "add", "arguments": {"a": 1}}}],
        },
        {"role": "assistant", "content": ""},
    ]
    assert all(one["model"] == "m" for one in got)
    last = got[-1]
    assert last["done"] is True
    assert last["done_reason"] == "stop"
    assert last["prompt_eval_count"] == 11
    assert last["eval_count"] == 5
    assert last["prompt_eval_duration"] == 2_500_000
    assert (last["total_duration"], last["load_duration"]) == (7, 3)


@given(st.binary(max_size=200))
def test_no_bytes_break_a_stream(noise: bytes) -> None:
    translator = LineStream(OllamaAnswer("m", "generate", clock()))
    got = lines(translator.feed(b"data: " + noise + b"\n") + translator.end())
    assert "error" in got[-1] or got[-1]["done"] is True


class Piece(bytes):
    """Knows how often it was looked at."""

    looked = 0

    def split(self, *given: Any) -> list[bytes]:
        Piece.looked += len(self)
        return super().split(*given)


def test_a_line_without_end_is_looked_at_once_and_refused() -> None:
    translator = LineStream(OllamaAnswer("m", "chat", clock()))
    Piece.looked = 0
    piece = Piece(b"x" * 2**16)
    for _ in range(256):
        assert translator.feed(piece) == b""
    assert Piece.looked == 256 * len(piece)
    with pytest.raises(ValueError, match="16 MiB"):
        translator.feed(piece)


def test_an_event_of_very_many_values_is_not_decoded() -> None:
    translator = LineStream(OllamaAnswer("m", "chat", clock()))
    event = b'data: {"error": "no", "a": [' + b"[]," * 200_000 + b"[]]}\n"
    assert translator.feed(event) == b""


def test_an_error_in_a_stream_is_its_last_line() -> None:
    translator = LineStream(OllamaAnswer("m", "chat", clock()))
    made = translator.feed(b'data: {"error": {"message": "out of slots", "code": 500}}\n\n')
    assert lines(made + translator.end()) == [{"error": "out of slots"}]


def test_a_native_answer() -> None:
    answer = OllamaAnswer("m", "native", clock())
    whole = answer.whole(
        {
            "content": "abc",
            "stop": True,
            "stop_type": "limit",
            "timings": {"prompt_n": 2, "predicted_n": 3, "prompt_ms": 1, "predicted_ms": 1},
        }
    )
    assert whole["response"] == "abc"
    assert whole["done_reason"] == "length"
    assert (whole["prompt_eval_count"], whole["eval_count"]) == (2, 3)


def test_vectors_are_cut_and_made_unit_length_again() -> None:
    said = {"data": [{"index": 1, "embedding": [0.0, 1.0]}, {"index": 0, "embedding": [3, 4, 12]}]}
    made = embed_answer(said, clock(), "m", 2)
    assert made["embeddings"] == [[0.6, 0.8], [0.0, 1.0]]
    assert embed_answer({}, clock(), "m", None)["embeddings"] == []
