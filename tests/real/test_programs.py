"""Programs behind `cmd`: a small HTTP server, and the real llama-server started by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from llamaswap_py.children.cgroups import SWITCH
from tests.fakes import fake_client, fake_container, fake_program
from tests.fakes.usurper import usurping
from tests.real.answers import error_of
from tests.real.test_containment import each_way
from tests.unit.child_runs import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.real.harness import Lswap
    from tests.real.lab import Lab, Preset

pytestmark = pytest.mark.anyio
HOST = {"host": "100MiB"}
SERVED = {"memory": HOST, "served_by": "container"}


def program(*words: str, **keys: Any) -> Preset:
    return {"cmd": [sys.executable, fake_program.__file__, "{port}", *words], **keys}


async def env_of(lswap: Lswap, name: str) -> dict[str, Any]:
    """Return what the program of a model says of itself."""
    answer = await lswap.client.get(f"/upstream/{name}/env?autoload=true")
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_a_program_is_supervised_like_a_model(lab: Lab) -> None:
    models = {
        "talk": program(
            memory=HOST,
            aliases=["speech"],
            env={"MINE": "1"},
            metadata={"note": "no llama"},
            ready={"line": "up and running"},
        ),
        "socket": {
            "cmd": [sys.executable, fake_program.__file__, "{socket}"],
            "memory": HOST,
            "device": "host",
        },
        "alpha": lab.preset("alpha"),
    }
    async with lab.lswap(models) as lswap:
        body = {"model": "speech", "input": "abc"}
        answer = await lswap.client.post("/v1/audio/speech", json=body)
        assert answer.status_code == 200, answer.text
        assert json.loads(answer.json()["backwards"][::-1]) == body
        told = await env_of(lswap, "talk")
        assert told["env"]["MINE"] == "1"
        assert told["cwd"] == str(lab.folder)
        listed = (await lswap.client.get("/v1/models")).json()["data"]
        assert {each["id"]: each.get("metadata") for each in listed}["talk"] == {"note": "no llama"}
        # It leaves for a model, and comes back.
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        await lswap.until_state("talk", "unloaded")
        assert "told to end" in await lswap.logs("talk")
        hidden = (await env_of(lswap, "socket"))["env"]
        assert hidden["CUDA_VISIBLE_DEVICES"] == "-1"
        again = await env_of(lswap, "talk")
        assert again["pid"] != told["pid"]


async def test_what_a_program_takes_is_measured_and_kept(lab: Lab) -> None:
    models = {"big": program(env={"PROGRAM_MEMORY": "64"})}
    room = {"devices": {"host": "2GiB"}}
    async with lab.lswap(models, memory=room) as lswap:
        assert (await lswap.model("big")).footprint is None
        await env_of(lswap, "big")
        view = (await lswap.until(lambda now: now.models[0].footprint is not None)).models[0]
        assert view.footprint_source == "measured"
        assert view.footprint is not None
        assert 64 << 20 < view.footprint["host"] < 256 << 20
        await lswap.stop()
    async with lab.lswap(models, memory=room) as lswap:
        view = (await lswap.until(lambda now: now.models[0].footprint is not None)).models[0]
        assert view.footprint_source == "measured"


async def test_a_program_that_ends_is_a_failure_with_its_words(lab: Lab) -> None:
    models = {"bad": program(memory=HOST, env={"PROGRAM_EXIT": "3"})}
    async with lab.lswap(models) as lswap:
        answer = await lswap.client.post("/v1/audio/speech", json={"model": "bad"})
        error = error_of(answer, 503)
        assert error["code"] == "model_failed"
        assert "ended with exit code 3: error: there is no such weight" in error["message"]
        assert "llama-server" not in error["message"]


async def test_requests_finish_before_a_program_is_stopped(lab: Lab) -> None:
    slow = program(memory=HOST, concurrency=4)
    async with lab.lswap({"talk": slow}) as lswap:
        asked = [
            lswap.client.post("/v1/audio/speech", json={"model": "talk", "n": n}) for n in range(8)
        ]
        answers = await asyncio.gather(*asked)
        assert {answer.status_code for answer in answers} == {200}
        done = await lab.cli("unload", "talk", "--url", lswap.url)
        assert done.out == "talk is unloaded\n"


async def test_the_real_llama_server_can_be_a_program(lab: Lab) -> None:
    path = lab.write_model("alpha", lab.sentence("alpha"))
    words = [lab.engine, "-m", str(path), "--port", "{port}", "-np", "3", "-c", "1536"]
    models = {
        "by-hand": {"cmd": words, "memory": HOST},
        "by-line": {"cmd": words, "memory": HOST, "ready": {"line": r"listening on http://\S+"}},
    }
    async with lab.lswap(models) as lswap:
        for name in models:
            assert await lswap.chat(name) == lab.sentence("alpha")
            (instance,) = (await lswap.state()).instances[-1:]
            assert (instance.slots, instance.n_ctx) == (3, 512)
            done = await lab.cli("unload", name, "--url", lswap.url)
            assert done.code == 0, done.err
        assert lswap.child_pids() == set()


@asynccontextmanager
async def containers(lab: Lab) -> AsyncIterator[None]:
    """Run what starts containers: nothing below lswap does."""
    with fake_container.engine(lab.folder):
        yield


def container(lab: Lab, *stop: str, **keys: Any) -> Preset:
    """Return a preset of a container that heeds no SIGTERM, and the command that stops it."""
    words = [sys.executable, fake_container.__file__]
    how = stop or (*words, "stop", str(lab.folder), "box")
    run = [*words, "run", str(lab.folder), "box", "{port}"]
    return {"cmd": run, "stop_cmd": list(how), "ready": {"http": "/"}, **SERVED, **keys}


async def test_a_container_is_stopped_by_its_own_command(lab: Lab) -> None:
    """It is gone when its memory is given to another, and when lswap has stopped."""
    file = lab.folder / "box.pid"
    models = {"box": container(lab), "alpha": lab.preset("alpha")}
    async with containers(lab), lab.lswap(models) as lswap:
        for _ in range(2):
            answer = await lswap.client.get("/upstream/box/?autoload=true")
            assert answer.status_code == 200, answer.text
            assert fake_container.running(file)
            assert await lswap.chat("alpha") == lab.sentence("alpha")
            assert not fake_container.running(file)
        answer = await lswap.client.get("/upstream/box/?autoload=true")
        assert answer.status_code == 200, answer.text
    assert not fake_container.running(file)


async def test_the_memory_of_a_container_is_its_models(lab: Lab) -> None:
    """It is measured with the model, though no process of it is below lswap."""
    box = container(lab)
    box["cmd"] = [*box["cmd"], "200"]
    del box["memory"]
    room = {"devices": {"host": "2GiB"}}
    async with containers(lab), lab.lswap({"box": box}, memory=room) as lswap:
        answer = await lswap.client.get("/upstream/box/?autoload=true")
        assert answer.status_code == 200, answer.text
        view = (await lswap.until(lambda now: now.models[0].footprint is not None)).models[0]
        assert view.footprint_source == "measured"
        assert view.footprint is not None
        assert 200 << 20 < view.footprint["host"] < 300 << 20


@each_way
async def test_what_a_program_detached_is_its_own(lab: Lab, way: str) -> None:
    """Its memory counts for the model without a word in the file, so it makes room when idle."""
    file = lab.folder / "box.pid"
    box = [sys.executable, fake_client.__file__, "{port}", "300", str(file)]
    models = {
        "box": {"cmd": box, "ready": {"http": "/"}, "stop_timeout": "1s"},
        "other": program(memory={"host": "800MiB"}),
    }
    room = {"devices": {"host": "1GiB"}, "margin": {"host": "0"}}
    config = lab.write_config(models, memory=room)
    async with lab.server(config, **{SWITCH: way}).running() as lswap:
        for _ in range(2):
            answer = await lswap.client.get("/upstream/box/?autoload=true")
            assert answer.status_code == 200, answer.text
            pid = fake_client.running(file)
            assert pid is not None
            await lswap.until(
                lambda now: (now.models[0].footprint or {}).get("host", 0) > 300 << 20
            )
            await env_of(lswap, "other")
            await lswap.until_state("box", "unloaded")
            assert fake_client.running(file) is None
        await lswap.stop()


async def test_a_container_without_a_stop_command_is_ended_with_its_model(lab: Lab) -> None:
    """Its client passes SIGTERM on, which it does not heed; then lswap kills the client."""
    file = lab.folder / "box.pid"
    box = container(lab, stop_timeout="1s")
    del box["stop_cmd"]
    models = {"box": box, "alpha": lab.preset("alpha")}
    async with containers(lab), lab.lswap(models) as lswap:
        for _ in range(2):  # the second load meets no name that is in use
            answer = await lswap.client.get("/upstream/box/?autoload=true")
            assert answer.status_code == 200, answer.text
            pid = fake_container.running(file)
            assert await lswap.chat("alpha") == lab.sentence("alpha")
            assert not fake_container.running(file)
            assert f"process {pid} (" in await lswap.logs("box")


async def test_the_next_load_waits_for_the_end_of_a_container(lab: Lab) -> None:
    """Both would have one name. There is memory for two."""
    file = lab.folder / "box.pid"
    box = container(lab, stop_timeout="1s")
    del box["stop_cmd"]
    async with containers(lab), lab.lswap({"box": box}) as lswap:
        answer = await lswap.client.get("/upstream/box/?autoload=true")
        first = fake_container.running(file)
        await lswap.client.post("/lswap/v1/models/box/unload")
        answer = await lswap.client.get("/upstream/box/?autoload=true")
        assert answer.status_code == 200, answer.text
        assert fake_container.running(file) not in (None, first)
        kinds = [one.kind for one in await lswap.decisions("box")]
        assert kinds.index("gone") < len(kinds) - 1 - kinds[::-1].index("load")
        assert "failed" not in kinds


async def test_a_stop_command_that_fails_is_said_and_the_program_still_ends(lab: Lab) -> None:
    words = ("sh", "-c", "echo no such container {pid} >&2; exit 3")
    models = {
        "talk": program(memory=HOST) | {"stop_cmd": list(words)},
        "gone": program(memory=HOST) | {"stop_cmd": ["no-such-program", "stop"]},
    }
    async with lab.lswap(models) as lswap:
        pid = (await env_of(lswap, "talk"))["pid"]
        said = (await lab.cli("unload", "talk", "--url", lswap.url)).out
        await lswap.until_state("talk", "unloaded")
        problem = f"stop_cmd failed: exit code 3: no such container {pid}"
        assert said == f"talk is unloaded, but {problem}\n"
        noted = [one for one in await lswap.decisions("talk") if one.kind == "stop failed"]
        assert [one.reason for one in noted] == [problem]
        log = await lswap.logs("talk")
        assert f"stop_cmd failed: exit code 3: no such container {pid}" in log
        assert "told to end" in log
        message = error_of(await lswap.client.get("/upstream/gone/env?autoload=true"), 503)
        assert "there is no program no-such-program on the PATH" in message["message"]


async def test_a_container_that_outlives_its_command_is_said(lab: Lab) -> None:
    """Nothing that lswap started is left, so its port tells; then lswap ends what held that."""
    file = lab.folder / "box.pid"
    keys = {"stop_timeout": "1s"}
    models = {"box": container(lab, "true", **keys), "talk": program(memory=HOST)}
    async with containers(lab), lab.lswap(models) as lswap:
        answer = await lswap.client.get("/upstream/box/?autoload=true")
        assert answer.status_code == 200, answer.text
        pid = fake_container.running(file)
        assert pid is not None
        await env_of(lswap, "talk")
        try:
            for model in models:
                await lab.cli("unload", model, "--url", lswap.url)
                await lswap.until_state(model, "unloaded")
            assert "still answers: what cmd started runs on" in await lswap.logs("box")
            assert "still answers" not in await lswap.logs("talk")
            assert f"process {pid} (" in await lswap.logs("box")
            assert not fake_container.running(file)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def test_what_a_stop_command_leaves_is_killed(lab: Lab) -> None:
    keys = {"stop_timeout": "1s", "env": {"PROGRAM_IGNORE_TERM": "1"}}
    models = {"talk": program(memory=HOST, **keys) | {"stop_cmd": ["sleep", "60"]}}
    async with lab.lswap(models) as lswap:
        await env_of(lswap, "talk")
        await lab.cli("unload", "talk", "--url", lswap.url)
        await lswap.until_state("talk", "unloaded")
        log = await lswap.logs("talk")
        assert "did not stop within 1 s: killed" in log
        assert "stop_cmd failed: it took longer than 1 s" in log


async def test_a_prompt_never_goes_to_somebody_who_took_the_port(lab: Lab) -> None:
    """Its server has ended inside of it, so lswap has not been told that it is gone."""
    models = {"talk": program(memory=HOST, env={"PROGRAM_INSIDE": "orphan"})}
    async with lab.lswap(models) as lswap:
        told = await env_of(lswap, "talk")
        body = {"model": "talk", "input": "a secret"}
        with usurping(int(told["argv"][1]), lab.folder) as usurper:
            os.kill(told["pid"], signal.SIGKILL)
            await asyncio.to_thread(usurper.wait)
            asked = [lswap.client.post("/v1/audio/speech", json=body) for _ in range(4)]
            *answers, metrics = await asyncio.gather(*asked, lswap.client.get("/metrics"))
            assert metrics.status_code == 200
            for answer in answers:
                assert answer.status_code == 200, answer.text
                assert json.loads(answer.json()["backwards"][::-1]) == body
            assert usurper.heard == b""
            assert (await env_of(lswap, "talk"))["pid"] != told["pid"]
            said = await lswap.says("is held by process")
            assert f"process {usurper.pid} (" in said
            assert usurper.heard == b""


async def test_a_port_that_somebody_took_first_is_said(lab: Lab) -> None:
    gate = lab.folder / "gate"
    models = {"talk": program(memory=HOST, env={"PROGRAM_GATE_FIRST": str(gate)})}
    async with lab.lswap(models) as lswap:
        asked = asyncio.create_task(lswap.client.post("/v1/audio/speech", json={"model": "talk"}))
        now = await lswap.until(lambda now: bool(now.instances and now.instances[0].pid))
        words = psutil.Process(now.instances[0].pid).cmdline  # `setpriv …` becomes the program
        await until(lambda: words()[1:2] == [fake_program.__file__])
        with usurping(int(words()[2]), lab.folder) as usurper:
            error = error_of(await asked, 503)
            assert f"is held by process {usurper.pid} (" in error["message"]
            assert error["failure"] == "port"
            assert usurper.heard == b""
            gate.touch()
        again = await lswap.client.post("/v1/audio/speech", json={"model": "talk"})
        while again.status_code == 503:
            await asyncio.sleep(0.1)
            again = await lswap.client.post("/v1/audio/speech", json={"model": "talk"})
        assert again.status_code == 200, again.text
