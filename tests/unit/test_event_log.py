"""The feed: numbered, replayed, and never held up by a slow reader."""

from __future__ import annotations

import asyncio

import pytest

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Note
from llamaswap_py.scheduler.types import Decision, InstanceKey, PresetId
from llamaswap_py.supervisor.event_log import KEPT, EventLog, EventRecord

pytestmark = pytest.mark.anyio
A = PresetId("a")


async def read(feed: EventLog, count: int, after: int | None = None) -> list[EventRecord]:
    found: list[EventRecord] = []
    records = feed.follow(after)
    async for record in records:
        found.append(record)
        if len(found) == count:
            break
    await records.aclose()
    return found


async def test_records_are_numbered_and_replayed_from_an_id() -> None:
    feed = EventLog(kept=3)
    for number in range(5):
        feed.publish("x", {"n": number})
    assert (feed.first, feed.last) == (3, 5)
    assert [one.id for one in await read(feed, 2, after=3)] == [4, 5]
    assert [one.id for one in await read(feed, 3, after=0)] == [3, 4, 5]


async def test_a_follower_gets_what_comes_and_lets_go() -> None:
    feed = EventLog()
    feed.publish("old", {})
    task = asyncio.create_task(read(feed, 2))
    while not feed.followed:  # noqa: ASYNC110 (it takes one turn of the loop)
        await asyncio.sleep(0)
    feed.publish("one", {})
    feed.publish("two", {})
    assert [one.event for one in await task] == ["one", "two"]
    assert not feed.followed


async def test_a_reader_that_is_too_slow_is_told_and_dropped_alone() -> None:
    feed = EventLog()
    slow, quick = feed.follow(), feed.follow()
    first = asyncio.ensure_future(anext(slow)), asyncio.ensure_future(anext(quick))
    await asyncio.sleep(0)
    feed.publish("x", 0)
    await asyncio.gather(*first)
    got = 1
    for number in range(KEPT + 1_500):
        feed.publish("x", number)
        await anext(quick)
        got += 1
    rest = [record async for record in slow]
    assert [one.event for one in rest] == ["dropped"]
    assert got == KEPT + 1_501
    await quick.aclose()
    assert not feed.followed


async def test_decisions_become_states() -> None:
    feed = EventLog()
    key = InstanceKey(A, 3)
    notes = [Note(Decision(1, 0.0, kind, A, 3, "because")) for kind in ("load", "ready", "refused")]
    feed.record(ev.InstanceProgressed(key, 0.5), notes)
    records = await read(feed, 6, after=0)
    assert [one.event for one in records] == [
        *("progress", "decision", "state", "decision", "state", "decision"),
    ]
    assert records[0].data["fraction"] == 0.5
    assert [one.data["state"] for one in records if one.event == "state"] == ["loading", "ready"]
