"""What the log says of a child's refusal, and what it never says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamaswap_py.api.sending import is_failure, reason_of

TOO_LONG = (
    "request (2012 tokens) exceeds the available context size (256 tokens), try increasing it"
)


def body(message: Any, kind: Any = "invalid_request_error") -> bytes:
    return json.dumps({"error": {"code": 400, "message": message, "type": kind}}).encode()


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        (body(TOO_LONG, "exceed_context_size_error"), f"exceed_context_size_error: {TOO_LONG}"),
        (
            b'data: {"choices":[]}\n\ndata: ' + body("Oops. More", "server_error") + b"\n\n",
            "server_error: Oops",
        ),
        (b'{"type":"error",' + body("no", "api_error")[1:], "api_error: no"),
        (b'{"error": "only a text"}', "only a text"),
        (b'{"detail": "x"}', ""),
        (b"<html>no JSON</html>", ""),
        (b'ut off: SECRET","type":"server_error"}}', "server_error"),
        (body("x", ["no name"]), "x"),
        (body("a" * 999), "invalid_request_error: " + "a" * 200),
    ],
)
def test_what_is_said(tail: bytes, said: str) -> None:
    assert reason_of(tail, quotes=True) == said


@pytest.mark.parametrize(
    "message",
    [
        "Failed to parse messages: no content; messages = [SECRET]",
        "syntax error; last read: '\"SECRET'",
        "invalid value 'SECRET'",
        'invalid value "SECRET"',
        "line one\nSECRET",
        "unknown role: SECRET",
        "template failed {SECRET}",
        "[json.exception.parse_error.101] SECRET",
    ],
)
def test_nothing_of_a_request_is_said(message: str) -> None:
    said = reason_of(body(message), quotes=True)
    assert said.startswith("invalid_request_error")
    assert "SECRET" not in said


def test_of_another_program_only_the_kind_is_said() -> None:
    assert reason_of(body("SECRET"), quotes=False) == "invalid_request_error"
    assert reason_of(body("SECRET", "SECRET prompt"), quotes=False) == ""


@pytest.mark.parametrize(
    ("status", "tail", "streams", "failed"),
    [
        (200, b'data: {"error":{}}\n\n', True, True),
        (200, b'data: {"error":{}}\n\n', False, False),
        (200, b"data: [DONE]\n\n", True, False),
        (400, b"", False, True),
        (500, b"", False, True),
        (304, b"", False, False),
    ],
)
def test_what_counts_as_a_failure(status: int, tail: bytes, streams: bool, failed: bool) -> None:
    assert is_failure(status, tail, streams=streams) is failed
