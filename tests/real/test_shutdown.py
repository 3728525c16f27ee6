"""SIGTERM and Ctrl-C: what runs may end, what waits is told, nothing is left."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.real.answers import error_of, model_of

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_running_streams_finish(lab: Lab, number: signal.Signals) -> None:
    models = {name: lab.endless(name, size="90MiB") for name in ("alpha", "beta")}
    async with lab.lswap(models) as lswap:
        await asyncio.gather(*(lswap.chat(name, max_tokens=1) for name in models))
        async with (
            lswap.stream("alpha", max_tokens=300) as one,
            lswap.stream("beta", max_tokens=300) as two,
        ):
            await one.read(1)
            await two.read(1)
            lswap.signal(number)
            await lswap.says("stopping: 2 requests may take up to 30 s")
            with pytest.raises(httpx.ConnectError):
                async with httpx.AsyncClient(trust_env=False) as stranger:
                    await stranger.get(f"{lswap.url}/health")
            for name, stream in (("alpha", one), ("beta", two)):
                await stream.rest()
                assert stream.error is None
                assert (stream.finish, stream.done) == ("length", True)
                assert stream.text.startswith((lab.sentence(name) + " ") * 15)
        assert await lswap.exited() == 0
        assert "stopped" in lswap.log[-2]


async def test_streams_past_the_deadline_end_with_an_error_event(lab: Lab) -> None:
    policy = {"shutdown_timeout": "300ms"}
    async with (
        lab.lswap({"alpha": lab.endless("alpha")}, policy=policy) as lswap,
        lswap.stream("alpha") as stream,
    ):
        await stream.read(3)
        lswap.signal(signal.SIGTERM)
        await stream.rest()
        assert stream.error is not None
        assert "lswap is stopping" in stream.error["message"]
        assert not stream.done
        assert await lswap.exited() == 0


async def test_waiting_requests_are_refused(lab: Lab) -> None:
    """One waits for memory, one for a slot; both learn it at once, the stream goes on."""
    models = {"alpha": lab.endless("alpha", args={"parallel": 1}), "beta": lab.preset("beta")}
    async with lab.lswap(models) as lswap, asyncio.TaskGroup() as tasks:
        async with lswap.stream("alpha", max_tokens=500) as stream:
            await stream.read(1)
            asks = [tasks.create_task(lswap.post_chat(name)) for name in models]
            await lswap.until(lambda now: now.requests_open == 3)
            lswap.signal(signal.SIGTERM)
            for ask in asks:
                answer = await ask
                assert error_of(answer, 503)["code"] == "draining"
                assert int(answer.headers["retry-after"]) > 0
            await stream.rest()
            assert stream.finish == "length"
        assert await lswap.exited() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_stops_at_once(lab: Lab, number: signal.Signals) -> None:
    async with (
        lab.lswap({"alpha": lab.endless("alpha")}) as lswap,
        lswap.stream("alpha") as stream,
    ):
        await stream.read(3)
        lswap.signal(number)
        await lswap.says("stopping: 1 requests")
        lswap.signal(number)
        assert await lswap.exited() == 0
        await lswap.until_no_process_is_left()
        assert any("stopping at once" in line for line in lswap.log)


async def test_while_a_model_is_loading(lab: Lab) -> None:
    preset = lab.fake("alpha", env={"FAKE_HANG": "1"})
    async with lab.lswap({"alpha": preset}) as lswap, asyncio.TaskGroup() as tasks:
        ask = tasks.create_task(lswap.post_chat("alpha"))
        await lswap.until(lambda now: model_of(now, "alpha").state == "loading")
        lswap.signal(signal.SIGTERM)
        assert error_of(await ask, 503)["code"] == "draining"
        assert await lswap.exited() == 0


async def test_a_child_that_will_not_stop(lab: Lab) -> None:
    """It is killed after `stop_timeout`, and the processes it started with it."""
    note = lab.folder / "grandchild"
    env = {"FAKE_IGNORE_TERM": "1", "FAKE_IGNORE_EXIT": "1", "FAKE_GRANDCHILD": str(note)}
    preset = lab.fake("alpha", env=env, stop_timeout="300ms")
    async with lab.lswap({"alpha": preset}) as lswap:
        assert await lswap.fake_answer("alpha") == "t0t1t2"
        assert len(lswap.child_pids()) == 2
        lswap.signal(signal.SIGTERM)
        assert await lswap.exited() == 0
        await lswap.until_no_process_is_left()


async def test_idle_connections_do_not_hold_it_up(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        host, _, port = lswap.url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await lswap.stop()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_a_unix_listener_is_gone_afterwards(lab: Lab) -> None:
    path = lab.folder / "lswap.sock"
    async with lab.lswap({"alpha": lab.preset("alpha")}, listen=f"unix:{path}") as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        await lswap.stop()
        assert not path.exists()
