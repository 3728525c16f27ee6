"""The faults: what breaks, how, for whom, and what the log must say of it.

Each has a model of its own, its victim, so that any two can happen at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httpx
import psutil

from tests.faults.attackers import (
    ATTACKS,
    attackers,
    event_readers,
    full_queue,
    half_sent_bodies,
    half_sent_heads,
    write_keys,
)
from tests.real.answers import PATIENCE, chat_body, instances_of
from tests.real.harness import poll
from tests.real.lab import ASKED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.faults.attackers import Attacker
    from tests.faults.conftest import FakeClock
    from tests.faults.crowd import Crowd
    from tests.real.answers import Stream
    from tests.real.harness import Lswap
    from tests.real.lab import Lab, Preset

SIZE = "60MiB"
"""Of four models three fit: loads and evictions go on all the time."""
LIMIT = 8
"""How many may wait for a model, in a burst."""


@dataclass(slots=True)
class Scene:
    """One fault about to happen: who plays, where, and what it needs."""

    lab: Lab
    lswap: Lswap
    crowd: Crowd
    folder: Path
    victim: str
    clock: FakeClock | None = None
    """What tells the time, where it can be set."""

    @property
    def gate(self) -> Path:
        """Exists once the victim may work."""
        return self.folder / f"gate-{self.victim}"

    async def pid_of(self, model: str, *states: str) -> int:
        """Have a model loaded, and return the pid of its child once it is in one of `states`."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(httpx.TransportError):  # whoever else breaks something
                    for one in instances_of(await self.lswap.state(), model):
                        if one.pid and one.state in states:
                            return one.pid
                await asyncio.sleep(0.01)

    async def signal(self, model: str, number: signal.Signals, *states: str) -> None:
        """Send a signal to the child of a model."""
        with suppress(ProcessLookupError):
            os.kill(await self.pid_of(model, *states), number)

    @asynccontextmanager
    async def streaming(self, model: str) -> AsyncIterator[Stream]:
        """Read the beginning of a stream, however often that takes while something else breaks."""
        async with asyncio.timeout(PATIENCE), AsyncExitStack() as stack:
            while True:
                one = self.lswap.stream(model, max_tokens=100_000)
                with suppress(httpx.TransportError, StopAsyncIteration):
                    stream = await stack.enter_async_context(one)
                    if stream.response.status_code == HTTPStatus.OK:
                        await stream.read(3)
                        break
                await stack.aclose()
                await asyncio.sleep(0.1)
            yield stream

    async def post(self, path: str) -> int:
        """Ask lswap something until it answers; return the status."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(httpx.TransportError):
                    return (await self.lswap.client.post(path)).status_code
                await asyncio.sleep(0.1)

    def edit_config(self, old: str, new: str) -> None:
        """Change the file, and nothing else in it."""
        config = self.lswap.config
        config.write_text(config.read_text().replace(old, new))

    async def until_failed(self, model: str) -> None:
        """Wait until a client was told that a model does not work."""
        await self.crowd.until_failed(model)


@dataclass(frozen=True, slots=True)
class Fault:
    """What breaks (`victim` makes its model), how, and what the log must say ($ is the victim).

    `hits` are the models that may notice; "*" stands for all of them.
    """

    name: str
    inject: Callable[[Scene], Awaitable[None]]
    victim: Callable[[Lab, str], Preset] = lambda lab, name: lab.preset(name, size=SIZE)
    says: tuple[str, ...] = ()
    keys: dict[str, Any] = field(default_factory=dict)
    hits: tuple[str, ...] = ("$",)
    instead: str = ""
    """What the log may say of any other victim, which may have failed of this instead."""
    clock: bool = False
    """It takes a clock that can be set."""
    keyed: bool = False
    """It takes API keys: the crowd's, and an attacker's (attackers.py)."""
    descriptors: int = 0
    """lswap may open so many files; 0: as many as the system lets it."""

    def __str__(self) -> str:
        return self.name


async def killed_loading(scene: Scene) -> None:
    await scene.signal(scene.victim, signal.SIGKILL, "loading")
    await scene.until_failed(scene.victim)


async def killed_idle(scene: Scene) -> None:
    for _ in range(3):
        await scene.signal(scene.victim, signal.SIGKILL, "ready")
        await scene.crowd.until_answered(2)


async def killed_streaming(scene: Scene) -> None:
    for _ in range(2):
        async with scene.streaming("long") as stream:
            await scene.signal("long", signal.SIGKILL, "ready", "draining")
            await stream.rest()
            assert stream.error is not None


async def stopped_loading(scene: Scene) -> None:
    await scene.signal(scene.victim, signal.SIGSTOP, "loading")
    await scene.lswap.says("load stall")
    scene.gate.touch()


async def stopped_serving(scene: Scene) -> None:
    async with scene.streaming(scene.victim) as stream:
        await scene.signal(scene.victim, signal.SIGSTOP, "ready", "draining")
        await stream.rest()
        assert stream.error is not None


async def ignores_stop(scene: Scene) -> None:
    await scene.pid_of(scene.victim, "ready")
    assert await scene.post(f"/lswap/v1/models/{scene.victim}/unload") in (200, 202)
    await scene.lswap.says(f"stop {scene.victim}#")


async def until_failed_once(scene: Scene) -> None:
    """Let it fail until somebody was told, then open the gate that makes it work."""
    await scene.until_failed(scene.victim)
    scene.gate.touch()


def wrapped(lab: Lab, name: str, line: str, preset: Preset) -> Preset:
    """Run the real engine after a line of shell, whose `$gate` exists once the fault is over."""
    asked = f"{ASKED}) ;;"
    line = f'gate={lab.folder}/gate-{name}; case "$1" in {asked} *) {line} ;; esac'
    return {**preset, "engine": lab._engine(line, lab.engine)}


def without_a_place(lab: Lab, name: str) -> Preset:
    """Put a file where it wants to bind."""
    take = 'for word; do case "$word" in *.sock) [ -e $gate ] || : > "$word" ;; esac; done'
    return wrapped(lab, name, take, lab.preset(name, size=SIZE))


def spoiled(spoil: Callable[[Path, bytes], None]) -> Callable[[Scene], Awaitable[None]]:
    """Return a fault that replaces the model's file for a while, as a bad download would."""

    async def inject(scene: Scene) -> None:
        path = scene.folder / f"{scene.victim}-own.gguf"
        whole = path.read_bytes()
        path.unlink()  # whoever maps the old file keeps it
        spoil(path, whole)
        await scene.post(f"/lswap/v1/models/{scene.victim}/unload?force=true")
        await scene.until_failed(scene.victim)
        path.unlink(missing_ok=True)
        path.write_bytes(whole)

    return inject


def own_file(lab: Lab, name: str) -> Preset:
    preset = lab.preset(name, size=SIZE)
    path = lab.folder / f"{name}-own.gguf"
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
    await scene.until_failed(scene.victim)
    scene.edit_config("--no-such-flag", "--verbose")
    async with asyncio.timeout(PATIENCE):
        while await scene.post("/lswap/v1/reload") != HTTPStatus.OK:  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # something else in it is wrong just now


def too_little_memory(lab: Lab, name: str) -> Preset:
    """Let the allocation of the weights fail, in the middle of the load."""
    limit = "[ -e $gate ] || ulimit -v 600000"
    return wrapped(lab, name, limit, lab.heavy(name, mib=512, size=SIZE))


def gated(lab: Lab, name: str, **keys: Any) -> Preset:
    """Load for as long as the gate is closed."""
    wait = "while [ ! -e $gate ]; do sleep 0.05; done"
    return wrapped(lab, name, wait, lab.preset(name, size=SIZE, **keys))


async def killed_at_the_gate(scene: Scene) -> None:
    await killed_loading(scene)
    scene.gate.touch()


async def flood(scene: Scene) -> None:
    await scene.crowd.until_answered(2, scene.victim)


def flooding(lab: Lab, name: str) -> Preset:
    flood = "head -c 20000000 /dev/zero | tr '\\0' 'x' | fold -w 100 >&2"
    return wrapped(lab, name, flood, lab.preset(name, size=SIZE))


@contextmanager
def limited(scene: Scene, what: int, most: int) -> Iterator[None]:
    """Take from lswap what it may use of something."""
    if sys.platform != "linux":
        raise NotImplementedError
    old = resource.prlimit(scene.lswap.pid, what)
    resource.prlimit(scene.lswap.pid, what, (most, old[1]))
    try:
        yield
    finally:
        resource.prlimit(scene.lswap.pid, what, old)


async def disk_full(scene: Scene) -> None:
    """No file grows any more: the children's logs, the records, what was learned."""
    while not list(scene.folder.rglob("logs/*.log")):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    with limited(scene, resource.RLIMIT_FSIZE, 0):
        await scene.post(f"/lswap/v1/models/{scene.victim}/unload")
        await scene.crowd.until_answered(3, scene.victim)
        await scene.lswap.until_logged(scene.victim, "; it will lack lines")
    await scene.crowd.until_answered(3, scene.victim)


async def config_invalid(scene: Scene) -> None:
    scene.edit_config("\nmodels:", "\nmodles:")
    async with asyncio.timeout(PATIENCE):
        while not any("modles" in line for line in scene.lswap.log):
            scene.lswap.signal(signal.SIGHUP)  # once may not be enough if it cannot open the file
            await asyncio.sleep(0.5)
    await scene.crowd.until_answered(4)
    scene.edit_config("\nmodles:", "\nmodels:")
    scene.lswap.signal(signal.SIGHUP)
    await scene.crowd.until_answered(2)


async def no_file_descriptors(scene: Scene) -> None:
    """Nothing can be opened, nobody else can connect; who is connected gets an answer of a kind."""
    scene.crowd.may_lose_connection = True
    for _ in range(2):
        with limited(scene, resource.RLIMIT_NOFILE, 24):
            await asyncio.sleep(0.5)
        await scene.crowd.until_answered(2)
    await asyncio.sleep(0.5)  # connections that were never accepted are now
    scene.crowd.may_lose_connection = False


def address_of(lswap: Lswap) -> tuple[str, int]:
    host, _, port = lswap.url.removeprefix("http://").rpartition(":")
    return host, int(port)


async def bad_clients(scene: Scene) -> None:
    """They say half a request, read nothing, or vanish at every point."""
    body = json.dumps({"model": "long", "stream": True, "max_tokens": 10**6, "messages": []})
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    whole = (head + body).encode()
    with ExitStack() as stack:
        for cut in (0, 10, len(head) - 1, len(head) + 5, len(whole)):
            sock = stack.enter_context(socket.create_connection(address_of(scene.lswap)))
            sock.sendall(whole[:cut])
        for cut in range(0, len(whole), 9):
            with socket.create_connection(address_of(scene.lswap)) as gone:
                gone.sendall(whole[:cut])
        await scene.crowd.until_answered(4)


async def burst(scene: Scene) -> None:
    """Ten times what may wait, at once."""

    async def ask() -> int:
        with suppress(httpx.TransportError):
            return (await scene.lswap.post_chat(scene.victim, max_tokens=12)).status_code
        assert scene.crowd.may_lose_connection
        return 0

    statuses = Counter(await asyncio.gather(*(ask() for _ in range(10 * LIMIT))))
    assert statuses.keys() <= {0, 200, 429, 502, 503}, statuses
    assert statuses[200] or statuses.keys() & {0, 502, 503}, "whoever was let in is answered"


async def clock_jumps(scene: Scene) -> None:
    """A day and ten years ahead and back: a machine learns the time; children see it too."""
    assert scene.clock is not None
    for days in (1, -1, 3_650, -3_650, 0):
        scene.clock.move(days * 86_400)
        await scene.post(f"/lswap/v1/models/{scene.victim}/unload?force=true")
        await scene.crowd.until_answered(3)
        now = (await scene.lswap.state()).now
        assert abs(now - time.time() - days * 86_400) < 3_600, "it did not see the clock jump"


def attacked(attack: Callable[[Attacker], Awaitable[None]]) -> Fault:
    """Return a fault in which a client attacks again and again; nobody may notice."""

    async def inject(scene: Scene) -> None:
        async with attackers(scene.lswap, (scene.victim, "alpha"), 1) as (one,):
            for _ in range(3):
                await one.attack(attack)
            await scene.crowd.until_answered(4)
            await one.attack(attack)
            assert not one.wrongs, one.wrongs

    few = 512 if attack in (half_sent_heads, half_sent_bodies, event_readers) else 0
    queue = {"policy": {"queue": {"limit": LIMIT}}} if attack is full_queue else {}
    name = attack.__name__.replace("_", "-")
    return Fault(name, inject, keys=queue, hits=(), keyed=True, descriptors=few)


async def told_to_end(scene: Scene) -> None:
    """SIGTERM from another hand, while it streams: it refuses others, or hangs, and is ended."""
    for _ in range(2):
        async with scene.streaming(scene.victim) as stream:
            await scene.signal(scene.victim, signal.SIGTERM, "ready", "draining")
            await stream.rest()
            assert stream.error is not None
    await scene.crowd.until_answered(2)


def with_a_helper(lab: Lab, name: str) -> Preset:
    """Start a process in a session of its own first, until the gate is open."""
    helper = "[ -e $gate ] || setsid sleep 600 < /dev/null > /dev/null 2>&1 &"
    return wrapped(lab, name, helper, lab.preset(name, size=SIZE))


async def helper_stays(scene: Scene) -> None:
    """What a child started in a session of its own ends with it."""

    def helpers() -> list[psutil.Process]:
        found = []
        for one in scene.lswap.descendants():
            with suppress(psutil.Error):
                found += [one] if one.name() == "sleep" else []
        return found

    async def there() -> bool:
        return bool(helpers())

    async def gone() -> bool:
        return not helpers()

    await scene.pid_of(scene.victim, "ready")
    await poll(there)
    scene.gate.touch()
    assert await scene.post(f"/lswap/v1/models/{scene.victim}/unload") in (200, 202)
    await poll(gone)
    await scene.crowd.until_answered(2, scene.victim)


async def suspended(scene: Scene) -> None:
    """All of it stops for a while, as when a machine sleeps; nobody is blamed for the time."""
    everything = [scene.lswap.pid, *(one.pid for one in scene.lswap.descendants())]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in everything:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if number == signal.SIGSTOP:
            await asyncio.sleep(4)
    await scene.crowd.until_answered(4)


async def odd_files(scene: Scene) -> None:
    """Files that no model can have appear in a folder of models, and go again."""
    folder = scene.folder / "odd"
    name = os.fsencode(folder) + b"/\xff\xfe.gguf"
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    os.mkfifo(folder / "pipe.gguf")
    (folder / "self.gguf").symlink_to("self.gguf")
    (folder / "folder.gguf").mkdir()
    (folder / "not-a-model.gguf").write_bytes(b"x" * 100)
    assert await scene.post("/lswap/v1/reload") == HTTPStatus.OK
    await scene.crowd.until_answered(4)
    os.unlink(name)
    for one in ("pipe.gguf", "self.gguf", "not-a-model.gguf"):
        (folder / one).unlink()
    (folder / "folder.gguf").rmdir()
    assert await scene.post("/lswap/v1/reload") == HTTPStatus.OK


def beside_odd_files(lab: Lab, name: str) -> Preset:
    (lab.folder / "odd").mkdir(exist_ok=True)
    return lab.preset(name, size=SIZE)


async def key_revoked(scene: Scene) -> None:
    """A key goes while its answer streams: the answer ends, and the key opens nothing more."""
    async with attackers(scene.lswap, (scene.victim,), 1) as (one,):
        body = chat_body("long", stream=True, max_tokens=100_000)
        async with one.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code == HTTPStatus.OK:
                write_keys(scene.folder, mallory=False)
                scene.lswap.signal(signal.SIGHUP)
                async with asyncio.timeout(PATIENCE):
                    with suppress(httpx.TransportError):
                        await answer.aread()
        write_keys(scene.folder, mallory=False)
        scene.lswap.signal(signal.SIGHUP)

        async def revoked() -> bool:
            return (await one.client.get("/v1/models")).status_code == HTTPStatus.UNAUTHORIZED

        await poll(revoked)
    write_keys(scene.folder)
    scene.lswap.signal(signal.SIGHUP)
    await scene.crowd.until_answered(2)


def stubborn(lab: Lab, name: str) -> Preset:
    """Run the real one below a shell that heeds no SIGTERM and no word on its stdin."""
    preset = lab.preset(name, size=SIZE, stop_timeout="1s")
    script = lab.folder / f"stubborn-{name}"
    script.write_text(
        '#!/bin/sh\ntrap "" TERM\n"$@" < /dev/null &\nwhile :; do wait; sleep 1; done\n'
    )
    script.chmod(0o755)
    return {
        **preset,
        "engine": lab._engine("unset LLAMA_SERVER_ROUTER_PORT", f"{script} {lab.engine}"),
    }


def endless_victim(lab: Lab, name: str) -> Preset:
    return lab.endless(name, size=SIZE, liveness="1s")


FAULTS = (
    Fault("killed-loading", killed_at_the_gate, gated, (r"failed $#\d+: .*SIGKILL",)),
    Fault("killed-idle", killed_idle, says=(r"failed $#\d+: .*SIGKILL",)),
    Fault(
        "killed-streaming", killed_streaming, says=(r"failed long#\d+: .*SIGKILL",), hits=("long",)
    ),
    Fault(
        "stopped-loading",
        stopped_loading,
        lambda lab, name: gated(lab, name, load_stall="1s"),
        (r"failed $#\d+: no sign of progress for 1 s",),
    ),
    Fault("stopped-serving", stopped_serving, endless_victim, (r"failed $#\d+: for 1 s no byte",)),
    Fault("ignores-stop", ignores_stop, stubborn, (r"stop $#\d+",), hits=()),
    Fault(
        "cannot-bind",
        until_failed_once,
        without_a_place,
        (r"failed $#\d+: .*could not listen",),
    ),
    Fault("file-missing", spoiled(leave_missing), own_file, (r"failed $#\d+: |$ cannot run: ",)),
    Fault("file-truncated", spoiled(write_half), own_file, (r"failed $#\d+: .*cut short",)),
    Fault("file-foreign", spoiled(write_foreign), own_file, (r"failed $#\d+: |$ cannot run: ",)),
    Fault(
        "bad-argument",
        bad_argument,
        lambda lab, name: lab.preset(name, size=SIZE, extra=["--no-such-flag"]),
        (r"failed $#\d+: .*--no-such-flag",),
    ),
    Fault("memory-gone", until_failed_once, too_little_memory, (r"failed $#\d+: .*memory",)),
    Fault("log-flood", flood, flooding, hits=()),
    Fault("disk-full", disk_full, keys={"log": {"dir": "logs"}}, hits=()),
    Fault("config-invalid", config_invalid, says=("modles",), hits=()),
    Fault(
        "no-file-descriptors",
        no_file_descriptors,
        hits=("*",),
        instead=r"failed $#\d+: .*Too many open files",
    ),
    Fault("bad-clients", bad_clients, hits=()),
    Fault("burst", burst, keys={"policy": {"queue": {"limit": LIMIT}}}),
    Fault("clock-jumps", clock_jumps, clock=True),
    Fault("told-to-end", told_to_end, endless_victim),
    Fault("helper-stays", helper_stays, with_a_helper, hits=()),
    Fault("suspended", suspended, hits=()),
    Fault("odd-files", odd_files, beside_odd_files, keys={"model_dirs": ["odd"]}, hits=()),
    Fault("key-revoked", key_revoked, hits=(), keyed=True),
    *map(attacked, ATTACKS),
)
