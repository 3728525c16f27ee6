"""What `capture` keeps of a request."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from llamaswap_py.api.capture import Tap


def _record(tap: Tap) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(msgspec.json.encode(tap.record()))
    return told


def test_json_stays_json_and_framing_is_taken_off() -> None:
    tap = Tap()
    tap.ask([b'{"a"', b":\n 1}\n"])
    tap(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n[1, 2\r\n")
    tap(b"1\r\n]\r\n0\r\n\r\n")
    assert _record(tap) == {"request": {"a": 1}, "answer": [1, 2], "complete": True}


def test_what_is_cut_is_said_to_be() -> None:
    tap = Tap()
    tap.ask([b"not json"])
    tap(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
    assert _record(tap) == {"request": "not json", "answer": "half", "complete": False}
    nothing = Tap()
    assert _record(nothing) == {"request": "", "answer": "", "complete": False}
    garbage = Tap()
    garbage(b"\0\1\2")
    assert not _record(garbage)["complete"]


def test_no_more_than_a_mebibyte_is_kept() -> None:
    tap = Tap()
    tap.ask([b"x" * 700_000] * 100)
    tap(b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n")
    for _ in range(9):
        tap(b"y" * 1_000_000)
    told = _record(tap)
    assert len(told["request"]) == 1 << 20
    assert 1_000_000 < len(told["answer"]) <= 1 << 20
    assert not told["complete"]
