"""How many functions of lswap a request calls, which no noise of a machine changes.

Each limit is what a release took and a few more: raise it knowingly, for what has to be done.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import pytest

import llamaswap_py
from tests.unit.test_express import ask, request, staged
from tests.wire.harness import connected

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

pytestmark = pytest.mark.anyio
_MANY = 50
_BACKGROUND = {"telemetry", "Estimating", "Remembering", "ReadingAhead"}
_OWN = llamaswap_py.__path__[0]
BODY = {"model": "alpha", "messages": [{"role": "user", "content": "a line\nand one \u2014 more"}]}


def _in_background() -> bool:
    """Return whether no request is the reason: the devices are measured each second."""
    task = asyncio.current_task()
    return task is not None and task.get_name() in _BACKGROUND


@pytest.mark.parametrize(
    ("headers", "short", "limit"),
    [("", True, 104), ("X-Request-Id: one\r\n", False, 192)],
    ids=["short way", "long way"],
)
async def test_a_request_calls_few_functions(
    short_dir: Path, headers: str, *, short: bool, limit: float
) -> None:
    calls = 0

    def count(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls
        own = event == "call" and frame.f_code.co_filename.startswith(_OWN)
        calls += own and not _in_background()

    data = request(BODY, headers=headers)
    async with staged(short_dir) as stage, connected(stage.endpoint) as client:
        for _ in range(5):
            await ask(client, data)
        before = sys.getprofile()
        sys.setprofile(count)
        try:
            for _ in range(_MANY):
                assert (await ask(client, data)).status == 200
        finally:
            sys.setprofile(before)
        assert stage.begun[-1] is short
        assert calls / _MANY < limit
