"""Whose conversations are remembered and kept: no owner pushes out another's."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from llamaswap_py.children.ask import HttpAnswer
from llamaswap_py.supervisor import resumable_streams
from llamaswap_py.supervisor.resumable_streams import ResumableStream, ResumableStreams, id_in_child
from tests.unit.api_fakes import FakeLease

pytestmark = pytest.mark.anyio


def some() -> ResumableStreams:
    return ResumableStreams(asyncio.TaskGroup(), lambda _: None, lambda *_: True)


async def begin(these: ResumableStreams, owner: str, name: str) -> ResumableStream:
    return await these.begin(owner, name, "alpha", f"{owner}-{name}", lambda: None)


def test_no_name_of_one_owner_is_the_id_of_another() -> None:
    assert id_in_child("", "x") == "x"
    ids = {id_in_child(owner, "x") for owner in ("", "key a", "key b")}
    assert len(ids) == 3
    assert id_in_child("key a", id_in_child("key b", "x")) not in ids


async def test_a_child_is_asked_for_a_conversation_as_its_build_wants_it() -> None:
    stream = await begin(some(), "", "a::b/c")
    assert stream.target() == "/v1/stream?conv_id=a%3A%3Ab%2Fc"
    assert stream.target(7) == "/v1/stream?conv_id=a%3A%3Ab%2Fc&from=7"
    stream.lease = cast("Any", FakeLease(stream_in_path=True))
    assert stream.target() == "/v1/stream/a%3A%3Ab%2Fc"
    assert stream.target(7) == "/v1/stream/a%3A%3Ab%2Fc?from=7"


async def test_of_the_owner_that_has_most_the_oldest_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resumable_streams, "_KEPT", 4)
    these = some()
    await begin(these, "key ann", "x")
    for number in range(100):
        await begin(these, "key bob", f"{number}")
    assert these.find("key ann", "x") is not None
    assert these.find("key bob", "x") is None
    found = [number for number in range(100) if these.find("key bob", f"{number}") is not None]
    assert found == [97, 98, 99]
    assert these.find("key boss", "x", of_all=True) is these.find("key ann", "x")


async def test_of_the_owner_that_keeps_most_the_oldest_answer_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def ask(*_: Any, **__: Any) -> Any:
        return HttpAnswer(200, b"x" * 100)

    monkeypatch.setattr(resumable_streams, "ask", ask)
    monkeypatch.setattr(resumable_streams, "_KEPT_BYTES", 400)
    these, lease = some(), cast("Any", FakeLease())
    for owner, name in (("key ann", "x"), *(("key bob", f"{number}") for number in range(9))):
        await these._keep_whole(await begin(these, owner, name), lease)
    kept = [(one.owner, one.name) for one in these._known.values() if one.whole]
    assert kept == [("key ann", "x"), *(("key bob", f"{number}") for number in (6, 7, 8))]
