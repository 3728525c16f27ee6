"""Children that break, while clients ask for them and for others."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.checks import check_all
from tests.faults.crowd import Crowd
from tests.real.answers import instances_of, model_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.real.harness import Lswap
    from tests.real.lab import Lab, Preset

pytestmark = pytest.mark.anyio
SIZE = "60MiB"
"""Of four models three fit: loads and evictions go on all the time."""


@dataclass(slots=True)
class Scene:
    """One fault about to happen: who plays, where, and what it needs."""

    lab: Lab
    lswap: Lswap
    crowd: Crowd
    folder: Path
    asks: list[asyncio.Task[Any]] = field(default_factory=list)

    async def pid_of(self, model: str, *states: str) -> int:
        """Have a model loaded, and return the pid of its child once it is in one of `states`."""
        state = await self.lswap.until(
            lambda now: any(one.pid and one.state in states for one in instances_of(now, model))
        )
        (pid, *_) = (one.pid for one in instances_of(state, model) if one.state in states)
        assert pid is not None
        return pid

    async def signal(self, model: str, number: signal.Signals, *states: str) -> None:
        """Send a signal to the child of a model."""
        with suppress(ProcessLookupError):
            os.kill(await self.pid_of(model, *states), number)

    async def until_failed(self, model: str) -> None:
        """Wait until a client was told that a model does not work."""
        await self.crowd.until_failed(model)


@dataclass(frozen=True, slots=True)
class Fault:
    """What breaks (`victim` becomes the fourth model), how, and what the log must say."""

    name: str
    inject: Callable[[Scene], Awaitable[None]]
    victim: Callable[[Lab], Preset] = lambda lab: lab.preset("victim", size=SIZE)
    says: tuple[str, ...] = ()
    keys: dict[str, Any] = field(default_factory=dict)
    hits: bool = True

    def __str__(self) -> str:
        return self.name


async def killed_loading(scene: Scene) -> None:
    await scene.signal("victim", signal.SIGKILL, "loading")
    await scene.until_failed("victim")


async def killed_idle(scene: Scene) -> None:
    for _ in range(3):
        await scene.signal("victim", signal.SIGKILL, "ready")
        await scene.crowd.until_answered(2)


async def killed_streaming(scene: Scene) -> None:
    for _ in range(2):
        async with scene.lswap.stream("long") as stream:
            await stream.read(3)
            await scene.signal("long", signal.SIGKILL, "ready", "draining")
            await stream.rest()
            assert stream.error is not None


async def stopped_loading(scene: Scene) -> None:
    await scene.signal("victim", signal.SIGSTOP, "loading")
    await scene.lswap.says("load stall")
    (scene.folder / "gate").touch()


async def stopped_serving(scene: Scene) -> None:
    async with scene.lswap.stream("victim", max_tokens=100_000) as stream:
        await stream.read(3)
        await scene.signal("victim", signal.SIGSTOP, "ready", "draining")
        await stream.rest()
        assert stream.error is not None


async def ignores_stop(scene: Scene) -> None:
    await scene.pid_of("victim", "ready")
    answer = await scene.lswap.client.post("/lswap/v1/models/victim/unload")
    assert answer.status_code in (200, 202), answer.text
    await scene.lswap.says("stop victim#")


async def until_failed_once(scene: Scene) -> None:
    """Let it fail until somebody was told, then open the gate that makes it work."""
    await scene.until_failed("victim")
    (scene.folder / "gate").touch()


def wrapped(lab: Lab, line: str, preset: Preset) -> Preset:
    """Run the real engine after a line of shell, whose `$gate` exists once the fault is over."""
    asked = "--version | --help) ;;"
    line = f'gate={lab.folder}/gate; case "$1" in {asked} *) {line} ;; esac'
    return {**preset, "engine": lab._engine(line, lab.engine)}


def without_a_place(lab: Lab) -> Preset:
    """Put a file where it wants to bind."""
    take = 'for word; do case "$word" in *.sock) [ -e $gate ] || : > "$word" ;; esac; done'
    return wrapped(lab, take, lab.preset("victim", size=SIZE))


def spoiled(spoil: Callable[[Path, bytes], None]) -> Callable[[Scene], Awaitable[None]]:
    """Return a fault that replaces the model's file for a while, as a bad download would."""

    async def inject(scene: Scene) -> None:
        path = scene.lab.folder / "victim-own.gguf"
        whole = path.read_bytes()
        path.unlink()  # whoever maps the old file keeps it
        spoil(path, whole)
        await scene.lswap.client.post("/lswap/v1/models/victim/unload?force=true")
        await scene.until_failed("victim")
        path.unlink(missing_ok=True)
        path.write_bytes(whole)

    return inject


def own_file(lab: Lab) -> Preset:
    preset = lab.preset("victim", size=SIZE)
    path = lab.folder / "victim-own.gguf"
    with open(preset["model"], "rb") as file:
        path.write_bytes(file.read())
    return {**preset, "model": str(path)}


def leave_missing(path: Path, whole: bytes) -> None:
    assert not path.exists()


def write_half(path: Path, whole: bytes) -> None:
    path.write_bytes(whole[: len(whole) // 2])


def write_foreign(path: Path, whole: bytes) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(10_000))


async def bad_argument(scene: Scene) -> None:
    config = scene.lswap.config
    text = config.read_text()
    await scene.until_failed("victim")
    config.write_text(text.replace("--no-such-flag", "--verbose"))
    answer = await scene.lswap.client.post("/lswap/v1/reload")
    assert answer.status_code == 200, answer.text


def too_little_memory(lab: Lab) -> Preset:
    """Let the allocation of the weights fail, in the middle of the load."""
    limit = "[ -e $gate ] || ulimit -v 600000"
    return wrapped(lab, limit, lab.heavy("victim", mib=512, size=SIZE))


def gated(lab: Lab, **keys: Any) -> Preset:
    """Load for as long as the gate is closed."""
    wait = "while [ ! -e $gate ]; do sleep 0.05; done"
    return wrapped(lab, wait, lab.preset("victim", size=SIZE, **keys))


async def killed_at_the_gate(scene: Scene) -> None:
    await killed_loading(scene)
    (scene.folder / "gate").touch()


async def flood(scene: Scene) -> None:
    await scene.crowd.until_answered(2, "victim")


def flooding(lab: Lab) -> Preset:
    flood = "head -c 20000000 /dev/zero | tr '\\0' 'x' | fold -w 100 >&2"
    return wrapped(lab, flood, lab.preset("victim", size=SIZE))


async def disk_full(scene: Scene) -> None:
    """No file grows any more: the children's logs, the records, what was learned."""
    while not list(scene.folder.rglob("logs/*.log")):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    limits = resource.prlimit(scene.lswap.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(scene.lswap.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    await scene.lswap.client.post("/lswap/v1/models/victim/unload")
    await scene.crowd.until_answered(3, "victim")
    await scene.lswap.until_logged("victim", "File too large; it will lack lines")
    resource.prlimit(scene.lswap.pid, resource.RLIMIT_FSIZE, limits)
    await scene.crowd.until_answered(3, "victim")


async def config_invalid(scene: Scene) -> None:
    config = scene.lswap.config
    text = config.read_text()
    config.write_text(text.replace("models:", "modles:", 1))
    scene.lswap.signal(signal.SIGHUP)
    await scene.lswap.says("modles")
    await scene.crowd.until_answered(4)
    config.write_text(text)
    scene.lswap.signal(signal.SIGHUP)
    await scene.crowd.until_answered(2)


def both(*faults: Callable[[Scene], Awaitable[None]]) -> Callable[[Scene], Awaitable[None]]:
    """Return a fault that is all of `faults` at once."""

    async def inject(scene: Scene) -> None:
        async with asyncio.TaskGroup() as tasks:
            for one in faults:
                tasks.create_task(_await(one(scene)))

    return inject


async def _await(one: Awaitable[None]) -> None:
    await one


def stubborn(lab: Lab) -> Preset:
    """Run the real one below a shell that heeds no SIGTERM and no word on its stdin."""
    preset = lab.preset("victim", size=SIZE, stop_timeout="1s")
    script = lab.folder / "stubborn"
    script.write_text(
        '#!/bin/sh\ntrap "" TERM\n"$@" < /dev/null &\nwhile :; do wait; sleep 1; done\n'
    )
    script.chmod(0o755)
    return {
        **preset,
        "engine": lab._engine("unset LLAMA_SERVER_ROUTER_PORT", f"{script} {lab.engine}"),
    }


def endless_victim(lab: Lab) -> Preset:
    return lab.endless("victim", size=SIZE, liveness="1s")


FAULTS = (
    Fault("killed-loading", killed_at_the_gate, gated, (r"failed victim#\d+: .*SIGKILL",)),
    Fault("killed-idle", killed_idle, says=(r"failed victim#\d+: .*SIGKILL",)),
    Fault("killed-streaming", killed_streaming, says=(r"failed long#\d+: .*SIGKILL",)),
    Fault(
        "stopped-loading",
        stopped_loading,
        lambda lab: gated(lab, load_stall="1s"),
        (r"failed victim#\d+: no sign of progress for 1 s",),
    ),
    Fault(
        "stopped-serving", stopped_serving, endless_victim, (r"failed victim#\d+: for 1 s no byte",)
    ),
    Fault("ignores-stop", ignores_stop, stubborn, (r"stop victim#\d+",), hits=False),
    Fault(
        "cannot-bind",
        until_failed_once,
        without_a_place,
        (r"failed victim#\d+: .*could not listen",),
    ),
    Fault("file-missing", spoiled(leave_missing), own_file, (r"failed victim#\d+: ",)),
    Fault("file-truncated", spoiled(write_half), own_file, (r"failed victim#\d+: .*cut short",)),
    Fault("file-foreign", spoiled(write_foreign), own_file, (r"failed victim#\d+: ",)),
    Fault(
        "bad-argument",
        bad_argument,
        lambda lab: lab.preset("victim", size=SIZE, extra=["--no-such-flag"]),
        (r"failed victim#\d+: .*--no-such-flag",),
    ),
    Fault("memory-gone", until_failed_once, too_little_memory, (r"failed victim#\d+: .*memory",)),
    Fault("log-flood", flood, flooding, hits=False),
    Fault("disk-full", disk_full, keys={"log": {"dir": "logs"}}, hits=False),
    Fault("config-invalid", config_invalid, says=("modles",), hits=False),
    Fault(
        "killed-and-disk-full",
        both(disk_full, killed_streaming),
        keys={"log": {"dir": "logs"}},
        says=(r"failed long#\d+: .*SIGKILL",),
    ),
    Fault(
        "stopped-and-config-invalid",
        both(stopped_serving, config_invalid),
        endless_victim,
        (r"failed victim#\d+: for 1 s no byte", "modles"),
    ),
)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_a_fault(lab: Lab, fault: Fault) -> None:
    victim = fault.victim(lab)
    endless = frozenset({"long"} | ({"victim"} if "endless" in victim["model"] else set()))
    models = {
        "alpha": lab.preset("alpha", size=SIZE),
        "beta": lab.preset("beta", size=SIZE),
        "long": lab.endless("long", size=SIZE),
        "victim": victim,
    }
    sentences = {name: lab.sentence(name) for name in models}
    async with lab.lswap(models, **fault.keys) as lswap:
        crowd = Crowd(lswap, sentences, endless)
        async with asyncio.timeout(60), crowd.asking():
            await crowd.until_answered(4)
            await fault.inject(Scene(lab, lswap, crowd, lab.folder))
            await crowd.until_answered(2)
        hit = {"victim", "long"} if fault.hits else set()
        await check_all(lswap, crowd, hit=hit, says=fault.says)
        assert model_of(await lswap.state(), "beta").failure is None
