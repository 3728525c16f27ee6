"""SIGTERM and Ctrl-C: what runs may end, what waits is told, nothing is left."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.real.answers import error_of, model_of

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

_ACTIVATE = """
import os, socket, sys
listening = socket.create_server(("127.0.0.1", 0))
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Hands over a socket as systemd does, and becomes the command that follows."""


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
            for name, stream in (("alpha", one), ("beta", two)):
                await stream.rest()
                assert stream.error is None
                assert (stream.finish, stream.done) == ("length", True)
                assert stream.text.startswith((lab.sentence(name) + " ") * 15)
        assert await lswap.exited() == 0
        assert "stopped" in lswap.log[-2]


async def test_stop_waits_for_requests_and_now_does_not(lab: Lab) -> None:
    """A second `lswap stop` waits as the first does; a request for `--now` ends what runs."""
    async with lab.lswap({"alpha": lab.endless("alpha")}) as lswap:
        async with lswap.stream("alpha", max_tokens=100_000) as stream:
            await stream.read(3)
            stops = [asyncio.create_task(lab.cli("stop"))]
            await lswap.says("stopping: 1 request ")
            stops.append(asyncio.create_task(lab.cli("stop", "--url", lswap.url)))
            status = (await lab.cli("status", "--json")).json()[0]
            assert (status["state"], status["loaded"]) == ("stopping", ["alpha (draining)"])
            await stream.read(len(stream.words) + 50)
            assert not any("stopping at once" in line for line in lswap.log)
            stops.append(asyncio.create_task(lab.cli("stop", "--now")))
            await stream.rest()
            assert stream.error is not None
        for stop in stops:
            done = await stop
            assert (done.code, done.out) == (0, f"lswap (pid {lswap.pid}) has stopped\n")
        assert "1 request may end first; `lswap stop --now` does not wait" in stops[0].result().err
        assert await lswap.exited() == 0


@pytest.mark.parametrize("inherited", [False, True])
async def test_who_comes_while_it_drains_is_told(lab: Lab, inherited: bool) -> None:
    """Each family in its own words, on new connections, until the running requests have ended."""
    models = {"alpha": lab.endless("alpha"), "beta": lab.preset("beta", size="50MiB")}
    server = lab.server(lab.write_config(models))
    if inherited:
        server.wrapper = (sys.executable, "-c", _ACTIVATE)
    async with server.running() as lswap, lswap.stream("alpha", max_tokens=100_000) as stream:
        await stream.read(3)
        lswap.signal(signal.SIGTERM)
        await lswap.says("stopping: 1 request ")
        chat = {"model": "beta", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        async with httpx.AsyncClient(base_url=lswap.url, trust_env=False) as stranger:
            assert (await stranger.get("/livez")).status_code == 200
            for method, path, body in (
                ("GET", "/readyz", None),
                ("POST", "/v1/chat/completions", chat),
                ("POST", "/v1/completions", {**chat, "model": "alpha", "prompt": "x"}),
                ("POST", "/v1/messages", chat),
                ("POST", "/api/chat", chat),
                ("POST", "/models/load", {"model": "beta"}),
                ("POST", "/lswap/v1/models/beta/load", None),
                ("POST", "/lswap/v1/reservations", {"memory": {"host": "1MiB"}}),
                ("POST", "/lswap/v1/reload", None),
                ("POST", "/api/pull", {"model": "beta"}),
                ("GET", "/slots?model=beta&autoload=true", None),
                ("GET", "/slots?model=beta", None),
            ):
                answer = await stranger.request(method, path, json=body)
                assert answer.status_code == 503, (path, answer.text)
                assert int(answer.headers["retry-after"]) > 0, path
                assert "lswap is" in answer.text, (path, answer.text)
            said = (await stranger.post("/v1/messages", json=chat)).json()
            assert (said["type"], said["error"]["type"]) == ("error", "overloaded_error")
            assert isinstance((await stranger.post("/api/chat", json=chat)).json()["error"], str)
            state = (await stranger.get("/lswap/v1/state")).json()
            assert state["state"] == "draining"
            assert (await stranger.get("/v1/models")).status_code == 200
            assert (await stranger.get("/slots", params={"model": "alpha"})).status_code == 200
            (one,) = (await stranger.get("/lswap/v1/requests")).json()["requests"]
            await stranger.post(f"/lswap/v1/requests/{one['id']}/cancel")
        assert await lswap.exited() == 0


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
        assert "lswap is stopping, and its shutdown_timeout" in stream.error["message"]
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
        await lswap.says("stopping: 1 request ")
        lswap.signal(number)
        assert await lswap.exited() == 0
        await lswap.until_no_process_is_left()
        assert any("stopping at once" in line for line in lswap.log)
        await stream.rest()
        assert stream.error is not None
        assert "lswap is stopping at once" in stream.error["message"]


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
