"""lswap itself is killed, stopped or asked to end, while clients ask."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.faults.checks import check_all
from tests.faults.crowd import Crowd
from tests.faults.faults import SIZE, gated, stubborn
from tests.real.answers import instance_of, instances_of

if TYPE_CHECKING:
    from tests.real.harness import Lswap
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


def suffering(lab: Lab, how: str) -> Preset:
    """Return a preset whose child has a fault of its own."""
    if how == "ignores-stop":
        return stubborn(lab, "victim")
    if how == "loading":
        return gated(lab, "victim")
    return lab.endless("victim", size=SIZE)


async def strike(server: Lswap, how: str) -> int:
    """Bring the victim into its trouble; return the pid of its child."""
    states = ("loading",) if how == "loading" else ("ready",)
    state = await server.until(
        lambda now: any(one.pid and one.state in states for one in instances_of(now, "victim"))
    )
    (pid, *_) = (one.pid for one in instances_of(state, "victim"))
    assert pid is not None
    if how == "stopped":
        os.kill(pid, signal.SIGSTOP)
    return pid


@pytest.mark.parametrize("how", ["ignores-stop", "loading", "stopped"])
async def test_killed_while_a_child_is_in_trouble(lab: Lab, how: str) -> None:
    """The kernel ends also who would not go, and who cannot move; a restart has everything."""
    config = lab.write_config({**models_of(lab), "victim": suffering(lab, how)})
    sentences = sentences_of(lab)
    first = lab.server(config)
    async with first.running(), asyncio.TaskGroup() as tasks:
        ask = tasks.create_task(_outlived(first, "victim"))
        await strike(first, how)
        crowd = Crowd(first, sentences, frozenset({"long"}), may_lose_connection=True)
        async with crowd.asking():
            await crowd.until_answered(2)
            first.signal(signal.SIGKILL)
            assert await first.exited() == -signal.SIGKILL
            await first.until_no_process_is_left(seconds=2.0)
        await ask
        assert not crowd.wrongs
    (lab.folder / "gate-victim").touch()
    second = lab.server(config)
    async with second.running():
        sentences["victim"] = lab.sentence("victim")
        endless = frozenset({"long", "victim"} if how == "stopped" else {"long"})
        crowd = Crowd(second, sentences, endless)
        async with crowd.asking():
            await crowd.until_answered(4)
        await check_all(second, crowd)
        await second.stop()


async def _outlived(server: Lswap, model: str) -> None:
    """Ask for a model, and lose the connection."""
    with suppress(httpx.TransportError):
        await server.post_chat(model)


@pytest.mark.parametrize("how", ["ignores-stop", "loading", "stopped"])
async def test_asked_to_end_while_a_child_is_in_trouble(lab: Lab, how: str) -> None:
    """It waits for what can finish, kills what cannot, and says goodbye with 0."""
    models = {**models_of(lab), "victim": suffering(lab, how)}
    models["victim"] |= {"stop_timeout": "1s", "liveness": "1s"}
    policy = {"shutdown_timeout": "15s"}
    server = lab.server(lab.write_config(models, policy=policy))
    async with server.running(), asyncio.TaskGroup() as tasks:
        ask = tasks.create_task(_outlived(server, "victim"))
        await strike(server, how)
        async with server.stream("long", max_tokens=60) as stream:
            await stream.read(3)
            server.signal(signal.SIGTERM)
            await stream.rest()
            assert stream.error is None
            assert stream.done
        assert await server.exited() == 0
        await ask
        await server.until_no_process_is_left()
        assert not any("Traceback" in line for line in server.log)


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


@pytest.mark.parametrize("who", ["lswap", "all"])
async def test_held_up_itself(lab: Lab, who: str) -> None:
    """A suspended machine, a debugger: no child is taken for hung that was only not looked at."""
    models = models_of(lab)
    models["long"]["liveness"] = "1s"
    async with lab.lswap(models) as lswap:
        crowd = Crowd(lswap, sentences_of(lab), frozenset({"long"}))
        async with lswap.stream("long", max_tokens=2_000) as stream:
            await stream.read(3)
            pid = instance_of(await lswap.state(), "long").pid
            children = [one.pid for one in (await lswap.state()).instances if one.pid is not None]
            stopped = [lswap.pid, *(children if who == "all" else ())]
            for one in stopped:
                os.kill(one, signal.SIGSTOP)
            try:
                await asyncio.to_thread(time.sleep, 3)
            finally:
                for one in stopped:
                    os.kill(one, signal.SIGCONT)
            await stream.read(100)
            assert stream.error is None
        assert instance_of(await lswap.state(), "long").pid == pid
        await check_all(lswap, crowd)
