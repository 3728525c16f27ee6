"""A child that accepts and never answers is found and replaced; one that works is left alone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.fakes import fake_program
from tests.real.answers import error_of, instance_of

if TYPE_CHECKING:
    from tests.real.lab import Lab, Preset

pytestmark = pytest.mark.anyio

_ELSEWHERE: Final = "import os, sys, time; os.symlink(*sys.argv[2:0:-1]); time.sleep(600)"
"""A program whose socket is another's: connecting to it reaches a process that is not its child."""


@pytest.mark.parametrize("how", ["silent", "deaf"])
async def test_a_child_that_never_answers(lab: Lab, how: str) -> None:
    """Its requests are told, it is replaced, and the log says why; /health would have said ok."""
    env = {"FAKE_STALL": how, "FAKE_STALL_GATE": str(lab.folder / "gate")}
    async with lab.lswap({"alpha": lab.fake("alpha", env=env, liveness="1s")}) as lswap:
        asked = [lswap.client.post("/completion", json={"model": "alpha"}) for _ in range(2)]
        for answer in await asyncio.gather(*asked):
            error = error_of(answer, 502)
            assert error["code"] == "upstream_failed"
            assert "alpha hung: it gave no sign of life" in error["message"]
        said = await lswap.says("failed alpha#1")
        assert "for 1 s no byte of an answer, no processor time, no change in /slots" in said
        (lab.folder / "gate").touch()
        assert await lswap.fake_answer("alpha") == "t0t1t2"
        assert (await lswap.state()).loads_total == 2


async def test_a_child_that_hangs_every_time_gets_a_rest(lab: Lab) -> None:
    """The first time is forgiven; then its requests are told when to come again."""
    preset = lab.fake("alpha", env={"FAKE_STALL": "deaf"}, liveness="500ms")
    async with lab.lswap({"alpha": preset}) as lswap:
        for _ in range(2):
            error_of(await lswap.client.post("/completion", json={"model": "alpha"}), 502)
        refused = await lswap.client.post("/completion", json={"model": "alpha"})
        error = error_of(refused, 503)
        assert (error["code"], error["failure"]) == ("model_failed", "timeout")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await lswap.state()).loads_total == 2


async def test_a_child_that_spins(lab: Lab) -> None:
    """Processor time alone keeps it for thirty times its patience, and no longer."""
    env = {"FAKE_STALL": "cpu", "FAKE_STALL_GATE": str(lab.folder / "gate")}
    async with lab.lswap({"alpha": lab.fake("alpha", env=env, liveness="1s")}) as lswap:
        answer = await lswap.client.post("/completion", json={"model": "alpha"})
        assert "alpha hung" in error_of(answer, 502)["message"]
        said = await lswap.says("failed alpha#1")
        assert "processor time, but no byte of an answer" in said
        (lab.folder / "gate").touch()
        assert await lswap.fake_answer("alpha") == "t0t1t2"


async def test_children_that_are_at_work(lab: Lab) -> None:
    """Any one sign of life is enough, for three times as long as a silent one would get."""
    gate = lab.folder / "gate"
    models = {
        how: lab.fake(
            how,
            size="30MiB",
            liveness="1s",
            env={"FAKE_STALL": how, "FAKE_STALL_GATE": str(gate)},
        )
        for how in ("cpu", "log", "slots", "trickle")
    }
    async with lab.lswap(models) as lswap, asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(lswap.client.post("/completion", json={"model": how}))
            for how in models
        ]
        await lswap.until(lambda now: all(one.leases == 1 for one in now.models))
        await asyncio.sleep(3)
        assert not any(one.done() for one in asked)
        gate.touch()
        assert {(await one).status_code for one in asked} == {200}
        assert (await lswap.state()).loads_total == len(models)


async def test_a_stopped_child_in_the_middle_of_a_stream(lab: Lab) -> None:
    """The stream ends with an event that says so; who waits is served by the next instance."""
    preset = lab.endless("alpha", liveness="1s", concurrency=1)
    async with lab.lswap({"alpha": preset}) as lswap, asyncio.TaskGroup() as tasks:
        async with lswap.stream("alpha") as stream:
            await stream.read(3)
            pid = instance_of(await lswap.state(), "alpha").pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            waiting = tasks.create_task(lswap.chat("alpha", max_tokens=5))
            await stream.rest()
        assert stream.error is not None
        assert stream.error["code"] == "upstream_failed"
        assert "no sign of life" in stream.error["message"]
        assert (await waiting).startswith("alpha says hello")
        assert instance_of(await lswap.state(), "alpha").pid != pid


def _program(lab: Lab, how: str, *words: str, **keys: Any) -> Preset:
    env = {"PROGRAM_HANG": how, "PROGRAM_GATE": str(lab.folder / "gate")}
    command = [*words, sys.executable, fake_program.__file__, "{port}"]
    return {"cmd": command, "env": env, "memory": {"host": "50MiB"}, "liveness": "1s", **keys}


@pytest.mark.parametrize("how", ["mute", "stream"])
@pytest.mark.parametrize("words", [(), ("sh", "-c", '"$@"; :', "sh")])
async def test_another_program_that_hangs(lab: Lab, how: str, words: tuple[str, ...]) -> None:
    """Also as the child of a script. Its health path would have said that all is well."""
    async with lab.lswap({"alpha": _program(lab, how, *words)}) as lswap:
        body = {"model": "alpha", "messages": [], "stream": True}
        answer = await lswap.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == (502 if how == "mute" else 200)
        assert "alpha hung: it gave no sign of life" in answer.text
        said = await lswap.says("failed alpha#1")
        assert "for 1 s no byte of an answer, no processor time, no log line" in said
        (lab.folder / "gate").touch()
        again = await lswap.client.post("/v1/chat/completions", json=body)
        assert "backwards" in again.json()
        assert (await lswap.state()).loads_total == 2


@pytest.mark.parametrize("how", ["works", "lines", "elsewhere", "never", "owes nothing"])
async def test_another_program_that_is_silent_and_does_not_hang(lab: Lab, how: str) -> None:
    """Its child works, it writes lines, or what serves is not a process of its own: a container."""
    keys = {"liveness": "never"} if how == "never" else {}
    preset = _program(lab, how if how in ("works", "lines") else "mute", **keys)
    async with asyncio.TaskGroup() as tasks:
        if how == "elsewhere":
            preset["cmd"] = [
                sys.executable,
                "-c",
                _ELSEWHERE,
                "{socket}",
                str(lab.folder / "far.sock"),
            ]
            far = [sys.executable, fake_program.__file__, str(lab.folder / "far.sock")]
            env = {**os.environ, **preset["env"]}
            process = await asyncio.create_subprocess_exec(*far, env=env)
        async with lab.lswap({"alpha": preset}) as lswap:
            path = "/v1/chat/completions" if how != "owes nothing" else "/upstream/alpha/x"
            ask = lswap.client.post(path, json={"model": "alpha"})
            asked = tasks.create_task(ask)
            await lswap.until(lambda now: bool(now.instances) and now.instances[0].leases == 1)
            await asyncio.sleep(3.5)  # three times its patience
            assert not asked.done()
            (lab.folder / "gate").touch()
            assert "backwards" in (await asked).json()
            assert (await lswap.state()).loads_total == 1
        if how == "elsewhere":
            process.kill()
            await process.wait()


async def test_clients_that_give_up_first_do_not_hide_it(lab: Lab) -> None:
    preset = lab.endless("alpha", liveness="1s")
    async with lab.lswap({"alpha": preset}) as lswap:
        await lswap.chat("alpha", max_tokens=2)
        pid = instance_of(await lswap.state(), "alpha").pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(60):
            while True:
                ask = asyncio.create_task(lswap.chat("alpha", max_tokens=5))
                if (await asyncio.wait([ask], timeout=0.3))[0]:
                    break
                ask.cancel()
                await asyncio.wait([ask])
            # The one that was open got the error; or it came just after, and got an answer.
            if ask.exception() is None:
                assert ask.result().startswith("alpha says hello")
        assert (await lswap.chat("alpha", max_tokens=5)).startswith("alpha says hello")
        assert instance_of(await lswap.state(), "alpha").pid != pid


async def test_a_client_that_does_not_read_is_no_sign_of_a_hung_child(lab: Lab) -> None:
    """Its stream stands still because it lets it; the child is well and keeps its place."""
    preset = lab.endless("alpha", liveness="1s", layers=1, args={"n-predict": 200_000})
    async with lab.lswap({"alpha": preset}) as lswap:
        epoch = None
        async with lswap.stream("alpha") as stream:
            await stream.read(1)
            epoch = instance_of(await lswap.state(), "alpha").epoch
            await asyncio.sleep(3)
            assert instance_of(await lswap.state(), "alpha").epoch == epoch
        assert (await lswap.chat("alpha", max_tokens=5)).startswith("alpha says hello")
        assert instance_of(await lswap.state(), "alpha").epoch == epoch
