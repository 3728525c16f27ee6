"""lswap itself is killed, stopped or asked to end, while clients ask."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.checks import check_all
from tests.faults.crowd import Crowd
from tests.real.answers import instance_of

if TYPE_CHECKING:
    from tests.real.lab import Lab, Preset

pytestmark = pytest.mark.anyio


def models_of(lab: Lab) -> dict[str, Preset]:
    return {
        "alpha": lab.preset("alpha", size="80MiB"),
        "beta": lab.preset("beta", size="80MiB"),
        "long": lab.endless("long", size="80MiB"),
    }


def sentences_of(lab: Lab) -> dict[str, str]:
    return {name: lab.sentence(name) for name in ("alpha", "beta", "long")}


async def test_killed_under_load(lab: Lab) -> None:
    """No orphan after a second; a restart has everything again."""
    config = lab.write_config(models_of(lab))
    first = lab.server(config)
    async with first.running():
        crowd = Crowd(first, sentences_of(lab), frozenset({"long"}), may_lose_connection=True)
        async with crowd.asking():
            await crowd.until_answered(6)
            assert first.descendants()
            first.signal(signal.SIGKILL)
            assert await first.exited() == -signal.SIGKILL
            await first.until_no_process_is_left(seconds=1.0)
        assert not crowd.wrongs
    second = lab.server(config)
    async with second.running():
        crowd = Crowd(second, sentences_of(lab), frozenset({"long"}))
        async with crowd.asking():
            await crowd.until_answered(6)
        await check_all(second, crowd)
        await second.stop()
    assert not list(lab.folder.glob("lswap/*/instances/*"))


async def test_asked_to_end_under_load(lab: Lab) -> None:
    """What runs may finish, what waits is told `draining`, nothing is cut."""
    server = lab.server(lab.write_config(models_of(lab)))
    async with server.running():
        crowd = Crowd(server, sentences_of(lab), frozenset({"long"}), may_lose_connection=True)
        async with crowd.asking():
            await crowd.until_answered(4)
            async with server.stream("long", max_tokens=400) as stream:
                await stream.read(3)
                server.signal(signal.SIGTERM)
                await stream.rest()
                assert stream.error is None
                assert stream.done
            assert await server.exited() == 0
        assert not crowd.wrongs
        assert {code for _, code in crowd.errors} <= {"draining"}
        await server.until_no_process_is_left()


async def test_held_up_itself(lab: Lab) -> None:
    """A suspended machine, a debugger: no child is taken for hung that was only not looked at."""
    models = models_of(lab)
    models["long"]["liveness"] = "1s"
    async with lab.lswap(models) as lswap:
        crowd = Crowd(lswap, sentences_of(lab), frozenset({"long"}))
        async with lswap.stream("long", max_tokens=2_000) as stream:
            await stream.read(3)
            pid = instance_of(await lswap.state(), "long").pid
            lswap.signal(signal.SIGSTOP)
            try:
                await asyncio.to_thread(time.sleep, 3)
            finally:
                lswap.signal(signal.SIGCONT)
            await stream.read(100)
            assert stream.error is None
        assert instance_of(await lswap.state(), "long").pid == pid
        await check_all(lswap, crowd)
