"""Memory for other programs: `lswap reserve`, and the same over HTTP, beside real children."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.answers import error_of

if TYPE_CHECKING:
    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


async def reserve(lswap: Lswap, memory: dict[str, Any], **more: Any) -> Any:
    body = {"memory": memory, **more}
    return await lswap.client.post("/lswap/v1/reservations", json=body)


async def test_the_command_runs_while_its_memory_is_held(lab: Lab) -> None:
    models = {"alpha": lab.preset("alpha", size="150MiB")}
    async with lab.lswap(models) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        script = (
            "import json, os, sys, urllib.request as u;"
            f"state = json.load(u.urlopen('{lswap.url}/lswap/v1/state'));"
            "print(json.dumps([os.getpid(), state['reservations'], len(state['instances'])]));"
            "sys.exit(7)"
        )
        command = (sys.executable, "-c", script)
        done = await lab.cli("reserve", "120MiB", "--url", lswap.url, "--", *command)
        assert done.code == 7, done.err
        told = "lswap: waiting for 120MiB of host\nlswap: 120MiB of host are reserved\n"
        assert done.err == told, "and nothing of a connection that was closed"
        pid, reservations, instances = json.loads(done.out)
        (seen,) = reservations
        assert seen["memory"] == {"host": 120 << 20}
        assert seen["state"] == "held"
        assert seen["pid"] in (None, pid)
        assert instances == 0, "alpha was idle: it made room"
        await lswap.until(lambda state: not state.reservations)
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        why = [one.reason for one in await lswap.decisions("alpha")]
        assert any("makes room for reservation:" in one for one in why)


async def test_a_program_waits_for_a_stream_and_models_wait_for_the_program(lab: Lab) -> None:
    models = {"alpha": lab.endless("alpha", size="150MiB", drain_timeout="1m")}
    async with lab.lswap(models) as lswap:
        async with lswap.stream("alpha", max_tokens=100_000) as stream:
            await stream.read(3)
            asked = asyncio.create_task(reserve(lswap, {"host": "120MiB"}, name="comfy"))
            state = await lswap.until(lambda state: bool(state.reservations))
            assert state.reservations[0].state == "waiting"
        answer = await asked
        assert answer.status_code == 201
        assert answer.json()["heartbeat_seconds"] == 30
        (host,) = (await lswap.state()).devices
        assert host.reserved == 120 << 20
        waiting = asyncio.create_task(lswap.post_chat("alpha", max_tokens=3))
        await lswap.until(lambda state: state.models[0].waiting == 1)
        beat = await lswap.client.post("/lswap/v1/reservations/comfy/heartbeat")
        assert beat.status_code == 200
        listed = (await lswap.client.get("/lswap/v1/reservations")).json()["reservations"]
        assert [one["name"] for one in listed] == ["comfy"]
        gone = await lswap.client.delete("/lswap/v1/reservations/comfy")
        assert gone.json() == {"name": "comfy", "state": "released"}
        assert (await waiting).status_code == 200
        error = error_of(await lswap.client.delete("/lswap/v1/reservations/comfy"), 404)
        assert error["code"] == "not_found"


async def test_a_holder_that_is_killed_gives_its_memory_back(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha", size="150MiB")}) as lswap:
        body = json.dumps({"memory": {"host": "120MiB"}, "stream": True}).encode()
        async with lswap.client.stream("POST", "/lswap/v1/reservations", content=body) as answer:
            lines = answer.aiter_lines()
            assert json.loads(await anext(lines))["state"] == "waiting"
            assert json.loads(await anext(lines)) == {"state": "held"}
            waiting = asyncio.create_task(lswap.post_chat("alpha"))
            await lswap.until(lambda state: state.models[0].waiting == 1)
        assert (await waiting).status_code == 200
        await lswap.until(lambda state: not state.reservations)


async def test_what_cannot_be_reserved_says_why(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        error = error_of(await reserve(lswap, {"host": "1GiB"}), 409)
        assert error["code"] == "reservation_refused"
        assert "needs 1 GiB" in error["message"]
        assert "CUDA7" in error_of(await reserve(lswap, {"CUDA7": "1GiB"}), 400)["message"]
        assert "host" in error_of(await reserve(lswap, {"host": "much"}), 400)["message"]
        assert error_of(await reserve(lswap, {}), 400)["param"] == "memory"
        error = error_of(await reserve(lswap, {"host": 1}, colour="red"), 400)
        assert error["code"] == "bad_json"
        refused = await lab.cli("reserve", "9GiB", "--url", lswap.url, "--", "true")
        assert refused.code == 1
        assert "can never fit" in refused.err
        wrong = await lab.cli("reserve", "9", "--url", lswap.url, "--", "true")
        assert (wrong.code, wrong.out) == (2, "")
        assert wrong.err.startswith("lswap: SIZE: '9' is not a size: write a number with a unit")
        missing = await lab.cli("reserve", "1MiB", "--url", lswap.url, "--", "/no/such/program")
        assert missing.code == 127
        assert "/no/such/program: No such file" in missing.err
        assert not (await lswap.state()).reservations
