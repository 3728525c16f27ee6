"""SIGKILL of lswap: its children die with it, and the next start finds nothing in its way."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from tests.real.answers import instance_of, model_of
from tests.real.harness import Lswap

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


# Runs a program that the kernel does not kill with its parent (prctl 1 is PR_SET_PDEATHSIG): what
# happens to one that gains privileges, and on systems without that signal to all.
FORGET_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)


async def die(lswap: Lswap) -> None:
    """SIGKILL it; within a second no process of its may be left."""
    assert lswap.descendants()
    lswap.signal(signal.SIGKILL)
    assert await lswap.exited() == -signal.SIGKILL
    await lswap.until_no_process_is_left(seconds=1.0)


async def ask_in_vain(lswap: Lswap, model: str) -> None:
    with pytest.raises(httpx.TransportError):
        await lswap.post_chat(model)


async def test_children_of_every_state_die_with_it(lab: Lab) -> None:
    """Idle, streaming, and one that is still loading: nobody reads its stdin yet."""
    models = {
        "idle": lab.preset("idle", size="40MiB"),
        "busy": lab.endless("busy", size="40MiB"),
        "loading": lab.heavy("loading", mib=1024, size="40MiB"),
        "hung": lab.fake("hung", size="40MiB", env={"FAKE_HANG": "1"}),
    }
    server = lab.server(lab.write_config(models))
    async with server.running(), asyncio.TaskGroup() as tasks:
        assert await server.chat("idle") == lab.sentence("idle")
        async with server.stream("busy") as stream:
            await stream.read(2)
            for name in ("loading", "hung"):
                tasks.create_task(ask_in_vain(server, name))
            await server.until(
                lambda now: (
                    [one.state for one in now.instances if one.pid]
                    == ["ready", "ready", "loading", "loading"]
                )
            )
            await die(server)


async def test_without_child_mode_too(lab: Lab) -> None:
    models = {
        "idle": lab.preset("idle", size="90MiB"),
        "loading": lab.heavy("loading", mib=1024, size="90MiB"),
    }
    server = lab.server(lab.write_config(models, engine=lab.old_engine()))
    async with server.running(), asyncio.TaskGroup() as tasks:
        assert await server.chat("idle") == lab.sentence("idle")
        tasks.create_task(ask_in_vain(server, "loading"))
        await server.until(lambda now: model_of(now, "loading").state == "loading")
        await die(server)


async def test_a_restart_finds_nothing_in_its_way(lab: Lab) -> None:
    """The listening socket, the children's sockets, the lock and the records are all stale."""
    path = lab.folder / "lswap.sock"
    config = lab.write_config({"alpha": lab.preset("alpha")}, listen=f"unix:{path}")
    first = lab.server(config)
    async with first.running():
        assert await first.chat("alpha") == lab.sentence("alpha")
        endpoint = instance_of(await first.state(), "alpha").endpoint
        await die(first)
    assert path.exists()
    records = list(lab.folder.glob("lswap/*/instances/*.json"))
    assert len(records) == 1
    second = lab.server(config)
    async with second.running():
        assert not records[0].exists()
        assert await second.chat("alpha") == lab.sentence("alpha")
        assert instance_of(await second.state(), "alpha").endpoint == endpoint
        await second.stop()
    assert not list(lab.folder.glob("lswap/*/instances/*"))


async def test_what_a_script_started_ends_with_the_supervisor(lab: Lab) -> None:
    """The kernel ends the script only; the rest, which heeds no other word, ends all the same."""
    line = "trap '' TERM HUP; sleep 600 & sleep 600 & :"
    preset = {**lab.preset("alpha"), "engine": lab.recording_engine(line)}
    async with lab.server(lab.write_config({"alpha": preset})).running() as lswap:
        assert (await lswap.client.post("/tokenize", json={"model": "alpha"})).status_code == 200
        assert sum(one.name() == "sleep" for one in lswap.descendants()) == 2
        await lswap.client.post("/lswap/v1/models/alpha/unload")
        await lswap.until_state("alpha", "unloaded")
        assert len(psutil.Process(lswap.pid).children()) <= 1
        assert lswap.descendants() == []
        assert (await lswap.client.post("/tokenize", json={"model": "alpha"})).status_code == 200
        await die(lswap)


async def test_an_orphan_that_outlived_its_supervisor_is_killed_at_the_next_start(
    lab: Lab,
) -> None:
    """A child that lost its parent-death signal, and its guard, is found by its record."""
    gate = lab.folder / "gate"
    engine = lab.fake_engine(wrapper=FORGET_PARENT)
    env = {"FAKE_LOAD_GATE": str(gate), "FAKE_IGNORE_EXIT": "1"}
    config = lab.write_config({"alpha": {**lab.fake("alpha", env=env), "engine": engine}})
    first = lab.server(config)
    async with first.running(), asyncio.TaskGroup() as tasks:
        tasks.create_task(ask_in_vain(first, "alpha"))
        await first.until_logged("alpha", "initializing")
        known = first.child_pids()
        for one in psutil.Process(first.pid).children():
            if one.pid not in known:  # the guard of all, or its keeper
                one.kill()
        first.signal(signal.SIGKILL)
        assert await first.exited() == -signal.SIGKILL
        (orphan,) = first.descendants()
        second = lab.server(config)
        async with second.running():
            line = await second.says("alpha#1")
            assert str(orphan.pid) in line
            assert not orphan.is_running() or orphan.status() == "zombie"
            gate.touch()
            assert await second.fake_answer("alpha") == "t0t1t2"
            await second.stop()
