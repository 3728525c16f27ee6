"""Slow turns of the event loop: counted once, named by what ran; no beat where nothing is asked."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest

from llamaswap_py.api import body as body_module
from llamaswap_py.api import metrics
from llamaswap_py.api.app import App
from llamaswap_py.api.counters import Counters
from llamaswap_py.api.metrics import in_parts
from llamaswap_py.api.ollama import shared
from llamaswap_py.api.request import Call
from llamaswap_py.tasks import loop_lag as turns_module
from llamaswap_py.tasks.loop_lag import ELSEWHERE, SLOW, Turns
from tests.unit.api_fakes import FakeSupervisor, make_config, make_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio
JSON = b'{"a":[' + b",".join([b'{"a":"b"}'] * 400_000) + b"]}"
"""Some 100 ms of decoding, which lets no other thread run."""


def by_decoding() -> None:
    """Be busy inside of a function of lswap's that calls C code."""
    shared._object(JSON)


def by_waiting() -> None:
    """Be busy inside of a function of lswap's that calls what is not lswap's."""
    body_module._field(lambda *_: time.sleep(0.08), b"", b"")


@pytest.mark.parametrize(
    ("slow", "name"),
    [
        (by_decoding, "api.read_body.decode_large"),
        (by_waiting, "api.body._field"),
        (lambda: time.sleep(0.08), ELSEWHERE),
    ],
    ids=["decoding", "waiting", "elsewhere"],
)
async def test_a_slow_turn_is_counted_once_and_named(
    slow: Callable[[], None], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lswap")
    turns = Turns()
    async with turns.watched(lambda: True):
        turns.wake()
        await until(lambda: turns._beats > 2)
        for _ in range(2):
            asyncio.get_running_loop().call_soon(slow)
            enough = turns._beats + 3
            await until(partial(lambda most: turns._beats > most, enough))
    counted = turns.slow[name]
    assert counted == 2 or (name == ELSEWHERE and counted > 2)  # a busy machine adds to those
    assert turns.longest[name] >= SLOW
    said = [one for one in caplog.messages if f" {name} " in one]
    assert len(said) == 1


async def test_the_loop_is_watched_only_while_requests_are_in_flight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns_module, "_ROUND", 3)
    turns, busy = Turns(), [True]
    async with turns.watched(lambda: busy[0]):
        assert turns.asleep
        turns.wake()
        await until(lambda: turns._beats > 7)
        assert not turns.asleep
        busy[0] = False
        await until(lambda: turns.asleep)
        assert turns._timer is None
        assert not turns._awake.is_set()
        beats = turns._beats
        await asyncio.sleep(0.05)
        assert turns._beats == beats
        busy[0] = True
        turns.wake()
        await until(lambda: turns._beats > 3)
    turns._thread.join(60)
    assert not turns._thread.is_alive()


async def test_a_request_wakes_it() -> None:
    app = App(cast("Any", FakeSupervisor(make_config("models: {}"))))
    async with app.services.turns.watched(app.busy):
        assert app.services.turns.asleep
        Call(app.services, cast("Any", None), "r", cast("Any", None), cast("Any", None))
        assert not app.services.turns.asleep


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def test_what_is_counted_is_shown() -> None:
    turns = Turns()
    turns.slow["api.body.read_ask"] = 2
    turns.longest["api.body.read_ask"] = 0.25
    body = b"".join(in_parts(Counters(), make_snapshot([]), {}, {}, more=metrics._turns(turns)))
    text = body.decode()
    assert 'lswap_slow_turns_total{what="api.body.read_ask"} 2.0' in text
    assert 'lswap_slow_turn_seconds_max{what="api.body.read_ask"} 0.25' in text
