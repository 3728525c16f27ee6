"""Children that are killed from outside, in every state."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.fakes import fake_program
from tests.real.answers import chat_body, error_of, instance_of, model_of
from tests.real.harness import poll

if TYPE_CHECKING:
    from llamaswap_py.snapshot import Snapshot
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


def kill(state: Snapshot, name: str, number: signal.Signals = signal.SIGKILL) -> int:
    """Send a signal to the only instance of a model; return its epoch."""
    instance = instance_of(state, name)
    assert instance.pid is not None
    os.kill(instance.pid, number)
    return instance.epoch


def end(state: Snapshot, name: str, number: signal.Signals) -> int:
    """Do so to a llama-server, and let it be gone after some seconds.

    Told to end while it generates, it can lock itself up: its signal handler takes a mutex that
    the thread it has interrupted may hold (`server_queue::terminate`). `liveness` would find that.
    """
    process = psutil.Process(instance_of(state, name).pid)

    def be_gone() -> None:
        with suppress(psutil.NoSuchProcess):
            process.kill()

    asyncio.get_running_loop().call_later(5, be_gone)
    return kill(state, name, number)


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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_while_streaming(lab: Lab, number: signal.Signals) -> None:
    """The stream ends with an error event, not with a cut; the other model goes on."""
    models = {name: lab.endless(name, size="90MiB") for name in ("alpha", "beta")}
    async with (
        lab.lswap(models) as lswap,
        lswap.stream("alpha") as broken,
        lswap.stream("beta") as whole,
    ):
        await broken.read(5)
        await whole.read(1)
        end(await lswap.state(), "alpha", number)
        await broken.rest()
        assert broken.error is not None
        assert broken.error["code"] == "upstream_failed"
        assert not broken.done
        assert broken.finish is None
        await whole.read(len(whole.words) + 30)
        assert whole.text.startswith(lab.sentence("beta"))
        assert whole.error is None
        assert (await lswap.chat("alpha", max_tokens=5)).startswith("alpha says hello")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_before_the_first_byte(lab: Lab, number: signal.Signals) -> None:
    """The request is sent again to a fresh instance, unseen."""
    async with (
        lab.lswap({"alpha": lab.endless("alpha")}) as lswap,
        asyncio.TaskGroup() as tasks,
    ):
        await lswap.chat("alpha", max_tokens=1)
        ask = tasks.create_task(lswap.post_chat("alpha", max_tokens=400))
        state = await lswap.until(lambda now: model_of(now, "alpha").leases == 1)
        end(state, "alpha", number)
        answer = await ask
        text = answer.json()["choices"][0]["message"]["content"]
        assert text.startswith((lab.sentence("alpha") + " ") * 20)
        assert answer.json()["usage"]["completion_tokens"] == 400
        assert (await lswap.state()).loads_total == 2


async def test_told_to_end_from_outside_under_load(lab: Lab) -> None:
    """llama-server refuses connections long before it is gone: nobody meets that."""
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap, asyncio.TaskGroup() as tasks:
        await lswap.chat("alpha")
        over = asyncio.Event()

        async def ask() -> None:
            while not over.is_set():
                assert await lswap.chat("alpha") == lab.sentence("alpha")

        for _ in range(6):
            tasks.create_task(ask())
        for _ in range(4):
            epoch = end(await lswap.state(), "alpha", signal.SIGTERM)
            await lswap.until(
                lambda now, epoch=epoch: (
                    [  # type: ignore[misc]
                        (one.epoch, one.state) for one in now.instances
                    ]
                    == [(epoch + 1, "ready")]
                )
            )
            for _ in range(5):
                assert await lswap.chat("alpha") == lab.sentence("alpha")
        over.set()


async def test_a_program_that_closes_its_door_and_stays(lab: Lab) -> None:
    """What it has begun it may end; the next request waits for the next one. Then it is killed."""
    gate = lab.folder / "gate"
    preset = {
        "cmd": [sys.executable, fake_program.__file__, "{port}"],
        "env": {"PROGRAM_LINGERS": "1", "PROGRAM_HANG": "lines", "PROGRAM_GATE": str(gate)},
        "memory": {"host": "50MiB"},
        "concurrency": 2,
        "stop_timeout": "10s",
    }
    body = {"model": "talk", "input": "abc"}
    async with lab.lswap({"talk": preset}) as lswap, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(lswap.client.post("/v1/audio/speech", json=body))
        await lswap.until_logged("talk", "still at it")  # the program has it
        state = await lswap.until(lambda now: model_of(now, "talk").leases == 1)
        kill(state, "talk", signal.SIGTERM)
        await lswap.until_logged("talk", "told to end")
        second = tasks.create_task(lswap.client.post("/v1/audio/speech", json=body))
        await lswap.until(
            lambda now: (
                [(one.state, one.leases) for one in now.instances]
                == [("draining", 1), ("ready", 1)]
            )
        )
        gate.touch()
        for one in (first, second):
            answer = await one
            assert answer.status_code == 200, answer.text
        await lswap.until(lambda now: [one.epoch for one in now.instances] == [2])


async def test_a_socket_that_is_taken_away(lab: Lab) -> None:
    """Its child can be reached by nobody: another one answers, and it is stopped."""
    async with lab.lswap({"alpha": lab.preset("alpha", size="50MiB")}) as lswap:
        await lswap.chat("alpha")
        instance = instance_of(await lswap.state(), "alpha")
        assert instance.pid is not None
        for path in lab.folder.rglob(f"{instance.epoch}.sock"):
            path.unlink()
        asked = [lswap.chat("alpha") for _ in range(4)]
        assert set(await asyncio.gather(*asked)) == {lab.sentence("alpha")}
        state = await lswap.until(lambda now: len(now.instances) == 1)
        assert instance_of(state, "alpha").epoch == instance.epoch + 1


def close_door(lab: Lab, epoch: int, how: str) -> None:
    """Let nobody connect to a child any more: its socket is `gone`, or has no listener."""
    for path in lab.folder.rglob(f"{epoch}.sock"):
        path.unlink()
        if how == "refuses":
            with socket.socket(socket.AF_UNIX) as door:
                door.bind(str(path))


@pytest.mark.parametrize("how", ["gone", "refuses"])
@pytest.mark.parametrize("who", ["metrics", "lookup"])
async def test_what_lswap_itself_asks_tells_too(lab: Lab, who: str, how: str) -> None:
    """A child that refuses lswap's own question is replaced before any request meets it."""
    conversation = "a1::alpha"
    async with lab.lswap({"alpha": lab.preset("alpha", preload=True)}) as lswap:
        headers = {"X-Conversation-Id": conversation}
        async with lswap.stream("alpha", headers=headers) as stream:
            await stream.rest()
        epoch = instance_of(await lswap.state(), "alpha").epoch
        close_door(lab, epoch, how)
        if who == "metrics":
            await lswap.client.get("/metrics")
        else:
            ids = {"conversation_ids": [conversation]}
            await lswap.client.post("/v1/streams/lookup", json=ids)
        await lswap.until(
            lambda now: all(one.epoch > epoch or one.state != "ready" for one in now.instances)
        )
        assert await lswap.chat("alpha") == lab.sentence("alpha")


@pytest.mark.parametrize("how", ["gone", "refuses"])
async def test_a_question_without_a_client_meets_a_closed_door(lab: Lab, how: str) -> None:
    """Its page was reloaded while it waited: the next instance is asked, and keeps the answer."""
    name = "a1::alpha"
    preset = lab.endless("alpha", concurrency=1)
    async with lab.lswap({"alpha": preset}) as lswap, asyncio.TaskGroup() as tasks:
        async with lswap.stream("alpha", max_tokens=1500) as stream:
            await stream.read(1)
            body = chat_body("alpha", stream=True, max_tokens=5)
            headers = {"X-Conversation-Id": name}
            ask = lswap.client.post("/v1/chat/completions", json=body, headers=headers)
            asked = tasks.create_task(ask)
            await lswap.until(lambda now: model_of(now, "alpha").waiting == 1)
            asked.cancel()
            await asyncio.wait([asked])
            epoch = instance_of(await lswap.state(), "alpha").epoch
            close_door(lab, epoch, how)
            await stream.rest()
            assert stream.finish == "length"
        found = await lswap.client.get("/v1/stream", params={"conv_id": name})
        async with asyncio.timeout(60):
            while found.status_code == 503:
                await asyncio.sleep(0.05)
                found = await lswap.client.get("/v1/stream", params={"conv_id": name})
        assert found.status_code == 200, found.text
        assert found.text.rstrip().endswith("data: [DONE]")
        assert instance_of(await lswap.state(), "alpha").epoch == epoch + 1
        await lswap.until_idle()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_child_that_closes_each_connection_at_once(lab: Lab, how: str) -> None:
    """It is replaced; one whose successors do the same gets a rest. No request hangs."""
    gate = lab.folder / "gate"
    preset = {
        "cmd": [sys.executable, fake_program.__file__, "{port}"],
        "env": {"PROGRAM_SLAMS": how, "PROGRAM_GATE": str(gate)},
        "memory": {"host": "50MiB"},
        "stop_timeout": "1s",
    }
    body = {"model": "talk", "input": "abc"}
    async with lab.lswap({"talk": preset}) as lswap, asyncio.timeout(60):
        assert (await lswap.client.post("/v1/audio/speech", json=body)).status_code == 200
        gate.touch()
        asked = [
            asyncio.create_task(lswap.client.post("/v1/audio/speech", json=body)) for _ in range(3)
        ]
        await lswap.until(lambda now: not any(one.state == "ready" for one in now.instances))
        gate.unlink()
        for one in asked:
            answer = await one
            assert answer.status_code in (200, 502), answer.text

        async def answered() -> bool:  # a model that failed twice rests for a moment
            again = await lswap.client.post("/v1/audio/speech", json=body)
            return again.status_code == 200

        await poll(answered)
        await lswap.until(lambda now: [one.epoch > 1 for one in now.instances] == [True])


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
        state = await lswap.until(lambda now: model_of(now, "alpha").failure is not None)
        failure = model_of(state, "alpha").failure
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
