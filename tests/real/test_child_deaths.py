"""Children that are killed from outside, in every state."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.real.answers import error_of, instance_of, model_of

if TYPE_CHECKING:
    from llamaswap_py.snapshot import Snapshot
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


def kill(state: Snapshot, name: str) -> int:
    """SIGKILL the only instance of a model; return its epoch."""
    instance = instance_of(state, name)
    assert instance.pid is not None
    os.kill(instance.pid, signal.SIGKILL)
    return instance.epoch


@pytest.mark.parametrize("engine", ["real", "fake"])
async def test_while_loading(lab: Lab, engine: str) -> None:
    """Its waiters are told; the next try comes after the back-off, and works."""
    gate = lab.folder / "gate"
    if engine == "fake":
        preset = lab.fake("alpha", env={"FAKE_LOAD_GATE": str(gate)})
    else:
        preset = lab.heavy("alpha", mib=256)
    async with lab.lswap({"alpha": preset}) as lswap, asyncio.TaskGroup() as tasks:
        asks = [tasks.create_task(lswap.post_chat("alpha")) for _ in range(3)]
        state = await lswap.until(
            lambda now: model_of(now, "alpha").waiting == 3 and now.instances[0].pid is not None
        )
        kill(state, "alpha")
        for ask in asks:
            error = error_of(await ask, 503)
            assert (error["code"], error["failure"]) == ("model_failed", "killed")
            assert error["exit_code"] == -9
            assert "SIGKILL" in error["message"]
            assert 1 <= int(ask.result().headers["retry-after"]) <= 60
        view = await lswap.model("alpha")
        assert view.state == "failed"
        assert view.failure is not None
        assert view.failure.retry_at is not None
        gate.touch()
        answer = await lswap.post_chat("alpha")
        while answer.status_code == 503:  # the back-off of one second
            await asyncio.sleep(0.1)
            answer = await lswap.post_chat("alpha")
        assert answer.status_code == 200
        assert (await lswap.model("alpha")).failure is None


async def test_while_idle(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        epoch = kill(await lswap.state(), "alpha")
        await lswap.until(lambda now: not now.instances)
        last = (await lswap.decisions("alpha"))[-1]
        assert last.kind == "failed"
        assert "SIGKILL" in last.reason
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        assert instance_of(await lswap.state(), "alpha").epoch > epoch


async def test_a_request_that_comes_in_the_moment_of_death(lab: Lab) -> None:
    """Killed and asked at once: a fresh instance answers, the client sees nothing of it."""
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        for _ in range(3):
            await lswap.chat("alpha")
            kill(await lswap.state(), "alpha")
            assert await lswap.chat("alpha") == lab.sentence("alpha")


async def test_while_streaming(lab: Lab) -> None:
    """The stream ends with an error event, not with a cut; the other model goes on."""
    models = {name: lab.endless(name, size="90MiB") for name in ("alpha", "beta")}
    async with (
        lab.lswap(models) as lswap,
        lswap.stream("alpha") as broken,
        lswap.stream("beta") as whole,
    ):
        await broken.read(5)
        await whole.read(1)
        kill(await lswap.state(), "alpha")
        await broken.rest()
        assert broken.error is not None
        assert broken.error["code"] == "upstream_failed"
        assert not broken.done
        assert broken.finish is None
        await whole.read(len(whole.words) + 30)
        assert whole.text.startswith(lab.sentence("beta"))
        assert whole.error is None
        assert (await lswap.chat("alpha", max_tokens=5)).startswith("alpha says hello")


async def test_before_the_first_byte(lab: Lab) -> None:
    """The request is sent again to a fresh instance, unseen."""
    async with (
        lab.lswap({"alpha": lab.endless("alpha")}) as lswap,
        asyncio.TaskGroup() as tasks,
    ):
        await lswap.chat("alpha", max_tokens=1)
        ask = tasks.create_task(lswap.post_chat("alpha", max_tokens=400))
        state = await lswap.until(lambda now: model_of(now, "alpha").leases == 1)
        kill(state, "alpha")
        answer = await ask
        text = answer.json()["choices"][0]["message"]["content"]
        assert text.startswith((lab.sentence("alpha") + " ") * 20)
        assert answer.json()["usage"]["completion_tokens"] == 400
        assert (await lswap.state()).loads_total == 2


async def test_before_the_first_byte_and_again(lab: Lab) -> None:
    """Retried once: after the second death the client is told, and the model is given a rest."""
    async with lab.lswap({"alpha": lab.endless("alpha")}) as lswap, asyncio.TaskGroup() as tasks:
        ask = tasks.create_task(lswap.post_chat("alpha", max_tokens=5000))
        for epoch in (1, 2):
            state = await lswap.until(
                lambda now, epoch=epoch: any(  # type: ignore[misc]
                    (one.epoch, one.leases) == (epoch, 1) for one in now.instances
                )
            )
            kill(state, "alpha")
        error = error_of(await ask, 502)
        assert error["code"] == "upstream_failed"
        refused = error_of(await lswap.post_chat("alpha"), 503)
        assert (refused["code"], refused["failure"]) == ("model_failed", "killed")
        assert (await lswap.state()).loads_total == 2


async def test_a_child_that_crashes_as_soon_as_it_is_ready(lab: Lab) -> None:
    preset = lab.fake("alpha", env={"FAKE_CRASH": "ready:11"})
    async with lab.lswap({"alpha": preset}) as lswap:
        answer = await lswap.client.post("/completion", json={"model": "alpha"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) in (
            (502, "upstream_failed"),
            (503, "model_failed"),
        )
        failure = (await lswap.model("alpha")).failure
        assert failure is not None
        assert failure.kind == "crashed"
        assert "SIGSEGV" in failure.summary
        assert (await lswap.state()).loads_total <= 2


async def test_a_crash_in_the_middle_of_an_answer(lab: Lab) -> None:
    preset = lab.fake("alpha", env={"FAKE_CUT_AFTER": "2", "FAKE_TOKENS": "9"})
    async with lab.lswap({"alpha": preset}) as lswap:
        answer = await lswap.client.post("/completion", json={"model": "alpha", "stream": True})
        assert answer.status_code == 200
        assert '"t1"' in answer.text
        assert answer.text.rstrip().rpartition("\n\n")[2].startswith('data: {"error":')
