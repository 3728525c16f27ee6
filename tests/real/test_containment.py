"""What a child starts ends with the child, however far it went from it, in each way there is.

The ways are forced with a variable: the cgroups of both versions, where this system has them, and
a keeper for each child, which every Linux has.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from llamaswap_py.children import keeper
from llamaswap_py.children.cgroups import SWITCH, Home, group_of
from llamaswap_py.children.family import family_of
from tests.fakes import fake_program
from tests.real.answers import error_of, model_of
from tests.real.harness import is_keeper, poll
from tests.unit.child_runs import alive

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.snapshot import Snapshot
    from tests.real.harness import Lswap
    from tests.real.lab import Lab, Preset

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
]


def offered(way: str) -> frozenset[str] | None:
    """Return the limits that a way of cgroups can enforce here; None where it cannot be used."""
    home = Home.open(way)
    if home is None:
        return None
    home.close()
    return home.can


OFFERED = {way: found for way in ("cgroup2", "cgroup1") if (found := offered(way)) is not None}
WAYS = [*OFFERED, "subreaper"]
each_way = pytest.mark.parametrize("way", WAYS)

# Becomes a server after it has started a helper that leaves its session and parent, closes all
# files, and (unless told to keep it) has an empty environment.
START_HELPER = """
import os, sys
folder, keep, program, *words = sys.argv[1:]
if not os.fork():
    os.setsid()
    if not os.fork():
        with open(folder + "/helper.part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(folder + "/helper.part", folder + "/helper")
        os.closerange(0, 100)
        os.execve("/bin/sleep", ["sleep", "600"], os.environ if keep == "keep" else {})
    os._exit(0)
os.wait()
os.execv(sys.executable, [sys.executable, program, *words])
"""
# Becomes a server. Told to, processes start processes, each in a session of its own, as fast as
# they can, up to a number.
BOMB = """
import os, sys, time
folder, most, program, *words = sys.argv[1:]
count = folder + "/bomb"
def explode():
    while os.stat(count).st_size < int(most):
        try:
            child = os.fork()
        except OSError:
            open(folder + "/refused", "w").close()
            time.sleep(0.05)
            continue
        if not child:
            os.setsid()
            with open(count, "ab") as file:
                file.write(b".")
open(count, "w").close()
if not os.fork():
    while not os.path.exists(folder + "/go"):
        time.sleep(0.01)
    explode()
    time.sleep(600)
os.execv(sys.executable, [sys.executable, program, *words])
"""


def with_helper(lab: Lab, keep: str = "") -> Preset:
    words = [sys.executable, "-c", START_HELPER, str(lab.folder), keep, fake_program.__file__]
    return {"cmd": [*words, "{port}"], "memory": {"host": "40MiB"}}


async def load(lswap: Lswap, model: str) -> None:
    answer = await lswap.client.post("/v1/audio/speech", json={"model": model})
    assert answer.status_code == 200, answer.text


async def helper_of(lab: Lab, lswap: Lswap) -> int:
    """Load `talk`, and return its helper, which is not below it and yet of its family."""
    await load(lswap, "talk")
    helper = int((lab.folder / "helper").read_text())
    (child,) = (one.pid for one in (await lswap.state()).instances if one.preset == "talk")
    assert child is not None
    assert helper not in {one.pid for one in psutil.Process(child).children(recursive=True)}
    assert os.getsid(helper) not in (child, os.getsid(lswap.pid))
    assert {child, helper} <= set(await asyncio.to_thread(family_seen_by, lswap.pid, child))
    return helper


def family_seen_by(supervisor: int, child: int) -> list[int]:
    """Return the family of a child as its supervisor sees it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: supervisor)
        return family_of(child)


async def until_gone(*pids: int, seconds: float = 3.0) -> None:
    await until(lambda: not any(map(alive, pids)), seconds)


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async def holds() -> bool:
        return condition()

    await poll(holds, seconds=seconds)


def ignored_by(pid: int) -> set[int]:
    """Return the signals that a process ignores."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigIgn"))
    return {number for number in range(1, 64) if mask >> (number - 1) & 1}


def watchers(lswap: Lswap) -> list[psutil.Process]:
    """Return the processes of lswap's own that end children when it is gone."""
    return [
        one
        for one in psutil.Process(lswap.pid).children()
        if is_keeper(one) or "cgroup.kill" in " ".join(one.cmdline())
    ]


@each_way
@pytest.mark.parametrize("end", ["unload", "stop", "kill", "die"])
async def test_nothing_that_it_starts_outlives_a_child(lab: Lab, way: str, end: str) -> None:
    models = {"talk": with_helper(lab), "alpha": lab.preset("alpha", size="40MiB")}
    async with lab.server(lab.write_config(models), **{SWITCH: way}).running() as lswap:
        helper = await helper_of(lab, lswap)
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        group = group_of(helper)
        assert (group is None) == (way == "subreaper")
        if end == "unload":
            await lswap.client.post("/lswap/v1/models/talk/unload")
            await lswap.until_state("talk", "unloaded")
            assert not alive(helper)
        elif end == "die":
            os.kill(model_child(await lswap.state(), "talk"), signal.SIGKILL)
            await until_gone(helper)
        elif end == "kill":
            lswap.signal(signal.SIGKILL)
            assert await lswap.exited() == -signal.SIGKILL
            await until_gone(helper, seconds=2.0)
        else:
            await lswap.stop()
            assert not alive(helper)
        if end in ("unload", "die"):
            assert await lswap.chat("alpha") == lab.sentence("alpha")
            await lswap.stop()
    if group is not None:
        home = Path(group.folders[0]).parent
        await until(lambda: not home.exists(), 3.0)  # after SIGKILL the guard removes it


def failure_of(state: Snapshot, preset: str) -> str:
    failure = model_of(state, preset).failure
    return failure.summary if failure is not None else ""


def model_child(state: Snapshot, preset: str) -> int:
    (pid,) = (one.pid for one in state.instances if one.preset == preset)
    assert pid is not None
    return pid


@each_way
async def test_the_next_start_finds_what_is_left(lab: Lab, way: str) -> None:
    """lswap and what would end its children are killed together; a neighbour is left alone."""
    keep = "keep" if way == "subreaper" else ""
    config = lab.write_config({"talk": with_helper(lab, keep)})
    env = {SWITCH: way}
    neighbour = lab.write_config({"alpha": lab.preset("alpha")}, name="neighbour")
    async with lab.server(neighbour, **env).running() as beside:
        assert await beside.chat("alpha") == lab.sentence("alpha")
        first = lab.server(config, **env)
        async with first.running():
            helper = await helper_of(lab, first)
            for one in (psutil.Process(first.pid), *watchers(first)):
                one.suspend()
            for one in (*watchers(first), psutil.Process(first.pid)):
                one.kill()
            assert await first.exited() == -signal.SIGKILL
            assert alive(helper)
            async with lab.server(config, **env).running() as second:
                assert "talk#1" in await second.says("left behind by an earlier lswap")
                assert not alive(helper)
                await load(second, "talk")
                await second.stop()
        assert await beside.chat("alpha") == lab.sentence("alpha")
        await beside.stop()


@each_way
async def test_a_fork_bomb(lab: Lab, way: str) -> None:
    """It is bounded where the system can do that, and ends with its child in any case."""
    bounded = "tasks_max" in OFFERED.get(way, ())
    most = "100000" if bounded else "60"
    words = [sys.executable, "-c", BOMB, str(lab.folder), most, fake_program.__file__]
    bomb = {"cmd": [*words, "{port}"], "memory": {"host": "40MiB"}, "tasks_max": 50}
    models = {"bomb": bomb, "alpha": lab.preset("alpha", size="40MiB")}
    async with lab.server(lab.write_config(models), **{SWITCH: way}).running() as lswap:
        assert any("tasks_max: the system cannot enforce" in line for line in lswap.log) != bounded
        await load(lswap, "bomb")
        (lab.folder / "go").touch()
        refused, count = lab.folder / "refused", lab.folder / "bomb"
        await until(refused.exists if bounded else lambda: count.stat().st_size >= 60)
        family = family_seen_by(lswap.pid, model_child(await lswap.state(), "bomb"))
        assert len(family) >= 40
        assert not bounded or len(family) <= 50
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        await lswap.client.post("/lswap/v1/models/bomb/unload")
        await lswap.until_state("bomb", "unloaded")
        assert not any(map(alive, family))
        assert len(lswap.descendants()) == 1
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        await lswap.stop()


@pytest.mark.parametrize(
    "way", [way for way, can in OFFERED.items() if "memory_max" in can] or [""]
)
async def test_a_child_that_takes_more_memory_than_it_may(lab: Lab, way: str) -> None:
    if not way:  # no cgroups that count memory: the limit is reported, see below
        return
    hungry = f"exec {sys.executable} -c 'x = bytearray(400 << 20)'"
    preset = {**lab.preset("alpha"), "engine": lab.recording_engine(hungry), "memory_max": "150MiB"}
    async with lab.server(lab.write_config({"alpha": preset}), **{SWITCH: way}).running() as lswap:
        refused = await lswap.post_chat("alpha")
        assert refused.status_code == 503
        error = error_of(refused, 503)
        assert error["failure"] == "oom_killed"
        assert "memory_max" in failure_of(await lswap.state(), "alpha")
        await lswap.stop()


async def test_a_limit_that_cannot_be_enforced_is_said(lab: Lab) -> None:
    config = lab.write_config({"alpha": {**lab.preset("alpha"), "memory_max": "4GiB"}})
    env = {**lab.environment(), SWITCH: "subreaper"}
    check = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "llamaswap_py",
        "check",
        str(config),
        env=env,
        stdout=asyncio.subprocess.PIPE,
    )
    said = (await check.communicate())[0].decode()
    assert check.returncode == 0
    assert "models.alpha.memory_max: the system cannot enforce this limit here" in said


FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.mark.parametrize("way", [one for one in WAYS if one != "cgroup1"])
async def test_a_child_that_hangs_in_the_kernel(lab: Lab, way: str) -> None:
    """One that SIGKILL does not end holds up neither other models nor the end of lswap.

    A freezer of version 1 stands for the disk or the driver that hangs: what is in it is in state D
    and cannot be killed. Where there is none, see unit/test_child.py.
    """
    if not os.access(FREEZER, os.W_OK):
        return
    stuck = {**with_helper(lab), "stop_timeout": "500ms"}
    models = {"talk": stuck, "alpha": lab.preset("alpha", size="40MiB")}
    config = lab.write_config(models)
    freezer = FREEZER / f"test-{os.getpid()}"
    freezer.mkdir()
    try:
        async with lab.server(config, **{SWITCH: way}).running() as lswap:
            helper = await helper_of(lab, lswap)
            child = model_child(await lswap.state(), "talk")
            for pid in (child, helper):
                (freezer / "cgroup.procs").write_text(str(pid))
            (freezer / "freezer.state").write_text("FROZEN")
            unload = lswap.client.post("/lswap/v1/models/talk/unload")
            waits = asyncio.create_task(unload)  # as long as it takes
            assert await lswap.chat("alpha") == lab.sentence("alpha")
            await lswap.client.post("/lswap/v1/models/alpha/unload")
            await lswap.until_state("alpha", "unloaded")
            waits.cancel()
            await lswap.stop()
            assert any("does not end: it hangs in the kernel" in line for line in lswap.log)
            assert alive(child)
            (freezer / "freezer.state").write_text("THAWED")
            await until_gone(child, helper)
    finally:
        (freezer / "freezer.state").write_text("THAWED")
        await until(lambda: not (freezer / "cgroup.procs").read_text())
        freezer.rmdir()


@each_way
async def test_doctor_says_which(lab: Lab, way: str) -> None:
    doctor = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "llamaswap_py", "engine", "doctor", "--json"),
        env={**lab.environment(), SWITCH: way},
        stdout=asyncio.subprocess.PIPE,
    )
    checks = json.loads((await doctor.communicate())[0])["checks"]
    (check,) = (one for one in checks if one["group"] == "children")
    words = {"cgroup2": "version 2", "cgroup1": "version 1", "subreaper": "keeper"}
    assert words[way] in check["detail"]
    for name in ("tasks_max", "memory_max"):
        held = check["detail"].partition("; not enforced: ")[0]
        assert (name in held) == (name in OFFERED.get(way, ()))


@each_way
async def test_its_environment_signals_and_exit_are_its_own(lab: Lab, way: str) -> None:
    """Also with variables that a shell would drop, and without those that Python sets."""
    preset = {**lab.preset("alpha"), "env": {"odd.name": "1"}}
    server = lab.server(lab.write_config({"alpha": preset}), **{SWITCH: way, "LC_ALL": "C"})
    async with server.running() as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        child = psutil.Process(model_child(await lswap.state(), "alpha"))
        assert child.environ()["odd.name"] == "1"
        assert "LC_CTYPE" not in child.environ()
        assert not ignored_by(child.pid) & {signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD}
        assert (group_of(child.pid) is None) == (way == "subreaper")
        child.send_signal(signal.SIGSEGV)
        await lswap.until(lambda now: "SIGSEGV" in failure_of(now, "alpha"))
        await lswap.stop()


def test_a_keeper_says_why_a_program_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as raised:
        keeper.pid_of(b"error 2\n")
    assert raised.value.errno == 2
