"""Writes that are put off to the end of a turn of the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from llamaswap_py.proxy.backpressure import Outbox
from llamaswap_py.tasks import guard

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio


async def test_they_are_done_in_order_before_what_is_asked_for_later() -> None:
    loop = asyncio.get_running_loop()
    outbox, done = Outbox(loop), list[bytes]()
    outbox.open = 2
    outbox.put(done.append, b"1")
    loop.call_soon(done.append, b"later")
    outbox.put(done.append, b"2")
    assert done == []
    await asyncio.sleep(0)
    assert done == [b"1", b"2", b"later"]
    outbox.put(done.append, b"3")
    await asyncio.sleep(0)
    assert done[3:] == [b"3"]


async def test_what_a_write_puts_off_is_done_in_the_next_turn() -> None:
    outbox, done = Outbox(asyncio.get_running_loop()), list[bytes]()
    outbox.open = 2

    def write(data: bytes) -> None:
        done.append(data)
        outbox.put(done.append, b"again")

    outbox.put(write, b"first")
    await asyncio.sleep(0)
    assert done == [b"first"]
    await asyncio.sleep(0)
    assert done == [b"first", b"again"]


async def test_who_is_alone_is_not_put_off() -> None:
    outbox, done = Outbox(asyncio.get_running_loop()), list[bytes]()
    outbox.open = 1
    outbox.put(done.append, b"1")
    assert done == [b"1"]
    outbox.open = 2
    outbox.put(done.append, b"2")
    outbox.open = 1
    outbox.put(done.append, b"3")  # not before the one that waits
    assert done == [b"1"]
    await asyncio.sleep(0)
    assert done == [b"1", b"2", b"3"]


async def test_a_write_that_fails_keeps_no_other_back() -> None:
    outbox, done = Outbox(asyncio.get_running_loop()), list[bytes]()
    outbox.open = 2

    def fail(_: bytes) -> None:
        raise ValueError("a bug")

    before = guard.failures["write"]
    outbox.put(fail, b"1")
    outbox.put(done.append, b"2")
    await asyncio.sleep(0)
    assert done == [b"2"]
    assert guard.failures["write"] == before + 1


async def test_writes_whose_call_was_lost_are_done_with_the_next_one() -> None:
    class Clock:
        now = 10.0

        def time(self) -> float:
            return self.now

        def call_soon(self, _: Callable[[], None]) -> None:
            pass

    clock, done = Clock(), list[bytes]()
    outbox = Outbox(cast("Any", clock))
    outbox.open = 2
    outbox.put(done.append, b"1")
    outbox.put(done.append, b"2")
    assert done == []
    clock.now = 11.0
    outbox.put(done.append, b"3")
    assert done == [b"1", b"2", b"3"]
