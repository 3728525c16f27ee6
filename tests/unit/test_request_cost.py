"""How many functions of lswap a request calls, and in which folders, however busy the machine is.

Each limit is what a release took and a few more: raise it knowingly, for what has to be done.
"""

from __future__ import annotations

import asyncio
import sys
from itertools import count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest

import llamaswap_py
from tests.proxy.harness import connected
from tests.unit.test_plain_requests import request, staged

if TYPE_CHECKING:
    from types import FrameType

    from tests.proxy.harness import Client

pytestmark = pytest.mark.anyio
_MANY = 50
_BACKGROUND = {"telemetry", "Estimating", "Remembering", "ReadingAhead", "RememberingStrangers"}
_OWN = llamaswap_py.__path__[0]
BODY = {"model": "alpha", "messages": [{"role": "user", "content": "a line\nand one \u2014 more"}]}


def _in_background() -> bool:
    """Return whether no request is the reason: the devices are measured each second."""
    task = asyncio.current_task()
    return task is not None and task.get_name() in _BACKGROUND


@pytest.mark.parametrize(
    ("headers", "cut", "limit"),
    [("", 0, 109), ("X-Request-Id: %d\r\n", 0, 119), ("", 64, 144), ("X-Own: %d\r\n", 0, 195)],
    ids=["the same head", "one that varies", "in two writes", "one that has to be parsed"],
)
async def test_a_request_calls_few_functions(
    short_dir: Path, headers: str, cut: int, limit: float
) -> None:
    calls = 0
    costs: list[int] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls
        own = event == "call" and frame.f_code.co_filename.startswith(_OWN)
        calls += own and not _in_background()

    numbers = count(1)

    async def ask(client: Client) -> int:
        number = next(numbers)
        data = request(BODY, headers=headers.replace("%d", str(number)))
        start = len(data) - cut
        await client.send(data[:start])
        if cut:
            await asyncio.sleep(0.002)
            await client.send(data[start:])
        return (await client.answer()).status

    async with staged(short_dir) as stage, connected(stage.endpoint) as client:
        for _ in range(5):
            await ask(client)
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            for _ in range(_MANY):
                before_it = calls
                assert await ask(client) == 200
                costs.append(calls - before_it)
        finally:
            sys.setprofile(before)
        assert all(stage.at_once[1:])
        assert median(costs) < limit  # now and then something else runs beside a request


async def test_a_request_enters_few_folders(short_dir: Path) -> None:
    """A part that it enters besides has to be read by everybody who wants to follow a request."""
    entered: list[set[str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        place = Path(frame.f_code.co_filename)
        if event == "call" and place.is_relative_to(_OWN) and not _in_background():
            entered[-1].add(place.relative_to(_OWN).parts[0])

    async with staged(short_dir) as stage, connected(stage.endpoint) as client:
        assert (await client.ask(request(BODY))).status == 200
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            for _ in range(5):
                entered.append(set())
                assert (await client.ask(request(BODY))).status == 200
        finally:
            sys.setprofile(before)
    by_each = set.intersection(*entered)  # now and then something else runs beside a request
    assert {"proxy", "api", "supervisor", "scheduler"} <= by_each
    assert by_each <= {"proxy", "api", "supervisor", "scheduler", "llamacpp", "units.py"}
