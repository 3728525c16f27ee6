"""Mixed clients, and a fault every few seconds, for as long as it is asked for.

    python -m bench.soak [--minutes N] [--every SECONDS] [--clients N] [--attackers N]
                         [--plot FILE.svg]

A real `lswap up` with real llama-servers of tiny models, of which not all fit. The clients stream,
wait, read slowly, leave in the middle and come in bursts; each answer is compared with the known
sentence of its model. Meanwhile children are killed, stopped, told to end; files go bad; the
configuration is made invalid; the disk is full; there are no more file descriptors; clients
misbehave. Attackers with an inference key or none do all the time what tests/faults/attackers.py
lists. At the end everything is checked as after each fault of tests/faults, and lswap's memory,
files and tasks over time are shown: they have to be flat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import psutil

from bench.plots import Series, draw
from llamaswap_py.demo.tiny_gguf import write_tiny_model
from llamaswap_py.errors import LswapError
from llamaswap_py.llamacpp.binaries import locate_engine
from tests.faults.attackers import CROWD, attackers, write_keys
from tests.faults.checks import check_all
from tests.faults.crowd import Crowd
from tests.real.lab import Lab

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.faults.attackers import Attacker
    from tests.real.harness import Lswap

_SIZE: Final = "60MiB"
_LIMIT: Final = 16
_PATIENCE: Final = "3s"
"""`liveness` and `load_stall`, short: otherwise most of the time would pass in waiting for them."""


@dataclass(slots=True)
class Soak:
    """One run: its clients, its faults, and what was seen on the way."""

    lab: Lab
    lswap: Lswap
    crowd: Crowd
    dice: random.Random = field(default_factory=lambda: random.Random(1))
    faults: Counter[str] = field(default_factory=Counter)
    attackers: list[Attacker] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)
    failed: str = ""
    """Which of the checks at the end did not hold."""
    began: float = field(default_factory=time.monotonic)

    async def run(self, seconds: float, every: float, clients: int) -> None:
        """Do it all, for so long."""
        over = asyncio.Event()
        async with self.crowd.asking(clients), asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch())
            for one in self.attackers:
                tasks.create_task(one.attack_until(over))
            end, told = self.began + seconds, 0
            while (left := end - time.monotonic()) > 0:
                await asyncio.sleep(min(every, left))
                fault = self.dice.choice(FAULTS)
                name = fault.__name__.replace("_", " ")
                self.faults[name] += 1
                await fault(self)
                for wrong in self.crowd.wrongs[told:]:
                    at = time.monotonic() - self.began
                    print(f"{at:.0f} s, {name}: {wrong}", file=sys.stderr, flush=True)
                told = len(self.crowd.wrongs)
            over.set()
            watching.cancel()

    async def _watch(self) -> None:
        """Look at lswap once a second, or 600 times in all."""
        process = psutil.Process(self.lswap.pid)
        while True:
            with suppress(httpx.TransportError):
                text = (await self.lswap.client.get("/metrics")).text
                told = dict(one.rsplit(" ", 1) for one in text.splitlines() if one[:1] != "#")
                devices = (await self.lswap.state()).devices
                self.samples.append(
                    {
                        "at": time.monotonic() - self.began,
                        "rss": process.memory_info().rss / 2**20,
                        "fds": process.num_fds(),
                        "tasks": float(told["lswap_tasks"]),
                        "blocks": float(told["lswap_python_blocks"]),
                        "answers": self.crowd.right.total(),
                        "over": sum(one.used > one.total - one.margin for one in devices),
                    }
                )
            await asyncio.sleep(1)

    async def victim(self, *states: str) -> int | None:
        """Return the pid of a child that is in one of `states` now, if any."""
        pids = [
            one.pid
            for one in (await self.lswap.state()).instances
            if one.state in states and one.pid
        ]
        return self.dice.choice(pids) if pids else None


async def _signal(soak: Soak, number: signal.Signals, *states: str) -> None:
    if (pid := await soak.victim(*states)) is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


async def child_killed(soak: Soak) -> None:
    """Whatever it is doing."""
    await _signal(soak, signal.SIGKILL, "ready", "loading", "draining")


async def child_stopped(soak: Soak) -> None:
    """SIGSTOP: it accepts and never answers."""
    await _signal(soak, signal.SIGSTOP, "ready", "loading")


async def child_told_to_end(soak: Soak) -> None:
    """SIGTERM from another hand."""
    await _signal(soak, signal.SIGTERM, "ready", "loading")


async def file_spoiled(soak: Soak) -> None:
    """The file of one model is half there for a while."""
    path = soak.lab.folder / "own.gguf"
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[: len(whole) // 2])
    await soak.lswap.client.post("/lswap/v1/models/own/unload?force=true")
    await asyncio.sleep(2)
    path.unlink()
    path.write_bytes(whole)


async def unloaded_by_force(soak: Soak) -> None:
    """An operator has no patience."""
    name = soak.dice.choice(sorted(soak.crowd.models))
    await soak.lswap.client.post(f"/lswap/v1/models/{name}/unload?force=true")


async def configuration_invalid(soak: Soak) -> None:
    """The file makes no sense for a while."""
    text = soak.lswap.config.read_text()
    soak.lswap.config.write_text(text.replace("models:", "modles:", 1))
    soak.lswap.signal(signal.SIGHUP)
    await asyncio.sleep(1)
    soak.lswap.config.write_text(text)
    soak.lswap.signal(signal.SIGHUP)


async def _limited(soak: Soak, what: int, limit: int, seconds: float) -> None:
    if sys.platform != "linux":
        raise NotImplementedError
    old = resource.prlimit(soak.lswap.pid, what)
    resource.prlimit(soak.lswap.pid, what, (limit, old[1]))
    try:
        await asyncio.sleep(seconds)
    finally:
        resource.prlimit(soak.lswap.pid, what, old)


async def disk_full(soak: Soak) -> None:
    """No file grows."""
    await _limited(soak, resource.RLIMIT_FSIZE, 0, 2)


async def no_file_descriptors(soak: Soak) -> None:
    """Nothing can be opened or accepted."""
    soak.crowd.may_lose_connection = True
    try:
        await _limited(soak, resource.RLIMIT_NOFILE, 24, 1)
        await asyncio.sleep(0.5)
    finally:
        soak.crowd.may_lose_connection = False


def _address(soak: Soak) -> tuple[str, int]:
    host, _, port = soak.lswap.url.removeprefix("http://").rpartition(":")
    return host, int(port)


async def bad_clients(soak: Soak) -> None:
    """They say half a request, read nothing, or vanish."""
    body = json.dumps({"model": "long", "stream": True, "max_tokens": 10**6, "messages": []})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    whole = (head + body).encode()
    with ExitStack() as stack:
        for cut in (0, 10, len(head) - 1, len(head) + 5, len(whole), len(whole)):
            sock = stack.enter_context(socket.create_connection(_address(soak)))
            sock.sendall(whole[:cut])
        await asyncio.sleep(2)


async def burst(soak: Soak) -> None:
    """Ten times what may wait, at once."""

    async def ask() -> int:
        async with asyncio.timeout(60):
            return (await soak.lswap.post_chat("alpha", max_tokens=12)).status_code

    got = Counter(await asyncio.gather(*(ask() for _ in range(10 * _LIMIT))))
    for status in got.keys() - {200, 429, 502, 503}:
        soak.crowd.wrongs.append(f"alpha: status {status} in a burst")


async def everything_suspended(soak: Soak) -> None:
    """All of it stops for longer than a silent child may live, as when a machine sleeps."""
    everything = [soak.lswap.pid, *soak.lswap.child_pids()]
    try:
        for pid in everything:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(5)
    finally:
        for pid in everything:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def key_revoked(soak: Soak) -> None:
    """The attackers' key is gone for a while."""
    for mallory in (False, True):
        write_keys(soak.lab.folder, mallory=mallory)
        soak.lswap.signal(signal.SIGHUP)
        await asyncio.sleep(1)


async def odd_files(soak: Soak) -> None:
    """A folder of models has files that no model can have."""
    folder = os.fsencode(soak.lab.folder / "odd")
    odd = (folder + b"/\xff.gguf", folder + b"/self.gguf", folder + b"/pipe.gguf")
    os.close(os.open(odd[0], os.O_CREAT | os.O_WRONLY))
    os.symlink(b"self.gguf", odd[1])
    os.mkfifo(odd[2])
    soak.lswap.signal(signal.SIGHUP)
    await asyncio.sleep(1)
    for path in odd:
        os.unlink(path)
    soak.lswap.signal(signal.SIGHUP)


FAULTS: Final[tuple[Callable[[Soak], Awaitable[None]], ...]] = (
    *(child_killed, child_stopped, child_told_to_end, file_spoiled, unloaded_by_force),
    *(configuration_invalid, disk_full, no_file_descriptors, bad_clients, burst),
    *(everything_suspended, key_revoked, odd_files),
)


def _models(lab: Lab) -> dict[str, dict[str, Any]]:
    own = lab.preset("own", size=_SIZE)
    path = lab.folder / "own.gguf"
    shutil.copy(own["model"], path)
    return {
        "alpha": lab.preset("alpha", size=_SIZE),
        "beta": lab.preset("beta", size=_SIZE),
        "long": lab.endless("long", size=_SIZE, layers=64),
        "own": {**own, "model": str(path)},
    }


async def soak(
    folder: Path, seconds: float, every: float, clients: int, attacking: int = 2
) -> Soak:
    """Run one, check everything at the end, and return it."""

    def write(name: str, sentence: str, **knobs: Any) -> Path:
        path = folder / "models" / f"{name}.gguf"
        path.parent.mkdir(exist_ok=True)
        write_tiny_model(path, sentence, **knobs)
        return path

    lab = Lab(folder, str(locate_engine("auto").path), write)
    models = _models(lab)
    keys: dict[str, Any] = {
        "defaults": {"liveness": _PATIENCE, "load_stall": _PATIENCE},
        "policy": {"queue": {"limit": _LIMIT}},
        "log": {"dir": "logs", "level": "warning"},
        "keys": write_keys(folder),
    }
    (folder / "odd").mkdir()
    keys["model_dirs"] = ["odd"]
    async with (
        lab.lswap(models, **keys) as lswap,
        attackers(lswap, tuple(models), attacking) as attack,
    ):
        lswap.client.headers["authorization"] = f"Bearer {CROWD}"
        crowd = Crowd(lswap, {name: lab.sentence(name) for name in models}, frozenset({"long"}))
        run = Soak(lab, lswap, crowd, attackers=attack)
        await run.run(seconds, every, clients)
        try:
            await check_all(lswap, crowd, hit=models)
        except AssertionError as error:
            run.failed = str(error) or "a check of tests/faults/checks.py"
            traceback.print_exc()
            print("".join(lswap.log[-200:]), file=sys.stderr)
        return run


def report(run: Soak) -> str:
    """Return what came of it, in words and figures."""
    crowd, seconds = run.crowd, time.monotonic() - run.began
    codes = Counter[str]()
    for (_, code), count in crowd.errors.items():
        codes[code] += count
    attacks = sum(one.done.total() for one in run.attackers)
    got = sum(len(one.wrongs) for one in run.attackers)
    over = sum(one["over"] > 0 for one in run.samples)
    lines = [
        f"{seconds / 60:.1f} minutes, {crowd.asked:,} requests, {run.faults.total()} faults",
        f"  right answers        {crowd.right.total():,}",
        f"  wrong or missing     {len(crowd.wrongs)}",
        f"  attacks              {attacks:,}, of which {got} got what they must not get",
        f"  memory over-promised {over} times in {len(run.samples):,} looks",
        f"  checks at the end    {run.failed or 'all passed'}",
        f"  left by the client   {crowd.left:,}",
        f"  told of an error     {codes.total():,}: "
        + ", ".join(f"{count} {code}" for code, count in codes.most_common()),
        f"  could not connect    {crowd.lost} (while there were no file descriptors)",
        "  faults               "
        + ", ".join(f"{n} {name}" for name, n in run.faults.most_common()),
        f"{'lswap itself':22}{'first quarter':>15}{'last quarter':>15}{'highest':>12}",
    ]
    for name, unit in (("rss", "MiB"), ("blocks", ""), ("fds", ""), ("tasks", "")):
        values = [one[name] for one in run.samples]
        quarter = max(len(values) // 4, 1)
        early, late = (statistics.median(part) for part in (values[:quarter], values[-quarter:]))
        label = f"  {name} {unit}"
        lines.append(f"{label:22}{early:15,.1f}{late:15,.1f}{max(values):12,.1f}")
    return "\n".join(lines)


def main() -> int:
    """Run a soak and print its report; return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="how long (60)")
    parser.add_argument("--every", type=float, default=5, help="seconds between faults (5)")
    parser.add_argument("--clients", type=int, default=6, help="that ask all the time (6)")
    parser.add_argument("--attackers", type=int, default=2, help="that attack all the time (2)")
    parser.add_argument("--plot", type=Path, help="write the curves there, as SVG")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lswap-soak-", dir="/tmp"))
    try:
        seconds = asked.minutes * 60
        run = asyncio.run(soak(folder, seconds, asked.every, asked.clients, asked.attackers))
    except LswapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(report(run))
    if asked.plot is not None:
        at = [one["at"] / 60 for one in run.samples]
        asked.plot.write_text(
            draw(
                at,
                [
                    Series("memory (RSS, MiB)", [one["rss"] for one in run.samples]),
                    Series("Python's blocks of memory", [one["blocks"] for one in run.samples]),
                    Series("open files", [one["fds"] for one in run.samples]),
                    Series("tasks", [one["tasks"] for one in run.samples]),
                    Series("right answers", [one["answers"] for one in run.samples]),
                ],
                "minutes",
            ),
            encoding="utf-8",
        )
    for one in run.attackers:
        print(*one.wrongs[:20], sep="\n", file=sys.stderr)
    wrong = run.crowd.wrongs or run.failed or any(one.wrongs for one in run.attackers)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
