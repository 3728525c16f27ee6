"""Every guarded task and callback raises once, under load; and no file is opened on the loop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.fakes import chaos
from tests.real.answers import chat_body

if TYPE_CHECKING:
    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
_WRAPPER = (sys.executable, chaos.__file__)
_OWN = ("serves.json", "/instances/", "/bin/llama-server at process.py")
"""Small files of the runtime folder, in memory; the engine's program, which a spawn executes on the
loop's thread (the parent-death signal follows that thread)."""


async def _mixed(lswap: Lswap, over: asyncio.Event, bad: list[str]) -> None:
    """Ask both models, streamed and not, and lswap itself, one after the other."""
    number = 0
    while not over.is_set():
        number += 1
        name = ("alpha", "beta")[number % 2]
        body = chat_body(name, stream=number % 3 == 0)
        try:
            async with asyncio.timeout(60):
                answer = await lswap.client.post("/v1/chat/completions", json=body)
                if answer.status_code != 200:
                    bad.append(answer.text)
                for path in ("/v1/models", "/lswap/v1/state", "/metrics"):
                    await lswap.client.get(path)
        except (httpx.HTTPError, TimeoutError) as error:
            bad.append(repr(error))


@pytest.mark.parametrize("seed", ["1", "2"])
async def test_every_task_and_callback_raises_once(lab: Lab, seed: str) -> None:
    models = {name: lab.preset(name, size="60MiB") for name in ("alpha", "beta")}
    config = lab.write_config(models, log={"dir": str(lab.folder / "logs")})
    server = lab.server(config, FAKE_CHAOS=seed)
    server.wrapper = _WRAPPER
    async with server.running() as lswap:
        over, bad = asyncio.Event(), list[str]()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(_mixed(lswap, over, bad))
            for _ in range(40):
                await asyncio.sleep(0.25)
                if sum(line.startswith("chaos: ") for line in lswap.log) >= 25:
                    break
            lswap.signal(signal.SIGHUP)
            over.set()
        lswap.signal(signal.SIGUSR2)  # from here on everything has to be answered
        await lswap.says("the chaos is over")
        faults = [line for line in lswap.log if line.startswith("chaos: ")]
        assert len(faults) >= 15, faults
        assert len(bad) <= 4 * len(faults), bad
        for _ in range(10):
            for name in models:
                for _ in range(30):  # a model that failed rests for a moment
                    answer = await lswap.post_chat(name)
                    if answer.status_code == 200:
                        break
                    await asyncio.sleep(0.2)
                assert answer.status_code == 200, answer.text
        state = await lswap.state()
        assert not any(one.leases for one in state.instances)
        metrics = (await lswap.client.get("/metrics")).text
        assert "lswap_task_failures_total{" in metrics
        await lswap.stop()


async def test_no_file_is_opened_on_the_loop(lab: Lab) -> None:
    models = {name: lab.preset(name, size="60MiB") for name in ("alpha", "beta")}
    config = lab.write_config(models, log={"dir": str(lab.folder / "logs")})
    server = lab.server(config, FAKE_AUDIT="1")
    server.wrapper = _WRAPPER
    async with server.running() as lswap:
        over, bad = asyncio.Event(), list[str]()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_mixed(lswap, over, bad))
            for _ in range(2):
                await lswap.chat("alpha")
                await lswap.client.post("/lswap/v1/models/alpha/unload")
                await lswap.chat("alpha")
            config.write_text(config.read_text() + "\n")
            os.utime(config)
            await lswap.says("the file is taken over")
            over.set()
        assert not bad, bad
        opened = {line for line in lswap.log if line.startswith("chaos: opened")}
        assert not {one for one in opened if not any(own in one for own in _OWN)}
        await lswap.stop()
