"""Every limit at its full size, one after the other, against a real `lswap up`.

    python -m bench.limits [idle connections streams presets queue flood]

A stub upstream (stub_upstream.c) generates, so that what is measured is lswap; the flood comes from
the tests' fake llama-server. Prints a table: what, the target, the figure, whether it was kept, and
returns 1 if any was not. About four minutes. What is done *to* lswap (no file descriptors, a full
disk, a clock that jumps) has no size: tests/faults does it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.client import get_json
from bench.limits_client import Asker, Connection, Stream
from bench.workplace import Workplace, free_port, open_workplace, running
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import EngineError, LswapError
from llamaswap_py.llamacpp.binaries import locate_engine
from tests.fakes import fake_llama_server

CONNECTIONS: Final = 5_000
HELD: Final = 10.0
"""Seconds that the idle connections are held."""
STREAMS: Final = 1_000
EVENTS, RATE = 15, 1
"""Of each stream; it lasts longer than it takes to open all of them."""
PRESETS: Final = 10_000
FLOOD: Final = 1 << 30
ROTATE: Final = 10 << 20
QUEUE: Final = 100
QUIET: Final = 20.0
"""Seconds of doing nothing in which wake-ups are counted."""
_KIB, _MIB = 1 << 10, 1 << 20


@dataclass(slots=True)
class Table:
    """The rows so far."""

    rows: list[tuple[str, str, str, bool | None]] = field(default_factory=list)

    def add(self, what: str, target: str, figure: str, kept: bool | None = None) -> None:
        """Note a figure; `kept` is None where there is no target."""
        self.rows.append((what, target, figure, kept))
        print(f"  {what}: {figure}", file=sys.stderr, flush=True)

    def render(self) -> str:
        """Return it in Markdown."""
        words = {True: "yes", False: "NO", None: ""}
        lines = ["| limit | target | figure | kept |", "|---|---|---|---|"]
        lines += [f"| {a} | {b} | {c} | {words[kept]} |" for a, b, c, kept in self.rows]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Server:
    """A running `lswap up`; `listened` is how long it took until it answered."""

    port: int
    pid: int
    listened: float

    @property
    def rss(self) -> int:
        """Bytes resident."""
        return _memory(self.pid, "smaps_rollup", "Rss:")

    @property
    def pss(self) -> int:
        """Bytes resident, shared pages counted by share."""
        return _memory(self.pid, "smaps_rollup", "Pss:")

    @property
    def wakeups(self) -> int:
        """How often its threads have slept and been woken."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(_number(task / "status", "voluntary_ctxt_switches:") for task in tasks)


def _memory(pid: int, file: str, label: str) -> int:
    return _number(Path(f"/proc/{pid}/{file}"), label) * _KIB


def _number(path: Path, label: str) -> int:
    line = next(one for one in path.read_text().splitlines() if one.startswith(label))
    return int(line.split()[1])


@contextmanager
def lswap(place: Workplace, models: Mapping[str, Any], **keys: Any) -> Iterator[Server]:
    """Run `lswap up` with these models, of the stub unless they say otherwise."""
    port = free_port()
    config = place.folder / f"lswap-{port}.yaml"
    top = {
        "listen": f"127.0.0.1:{port}",
        "engine": str(place.stub),
        "memory": {"margin": 0, "cache_ram": 0, "devices": {"host": "8GiB"}},
        "models": {},
        **keys,
    }
    # As people write it, a line for each key: half of what 10,000 presets cost is to read them.
    lines = [f"{key}: {json.dumps(value)}" for key, value in top.items() if key != "models"]
    lines.append("models:")
    for name, preset in models.items():
        lines.append(f"  {name}:")
        lines += [f"    {key}: {json.dumps(value)}" for key, value in preset.items()]
    config.write_text("\n".join(lines) + "\n")
    folders = {f"XDG_{one}_HOME": str(place.folder / one) for one in ("CACHE", "STATE", "CONFIG")}
    # As installed: its modules are compiled once.
    folders |= {"PYTHONPYCACHEPREFIX": str(place.folder / "pyc"), "PYTHONDONTWRITEBYTECODE": ""}
    argv = [sys.executable, "-m", "llamaswap_py", "up", str(config)]
    began = time.perf_counter()
    with running(argv, port=port, log=place.folder / f"{port}.log", env=folders) as pid:
        get_json(Endpoint(port=port), "/health")  # it took connections long before
        yield Server(port, pid, time.perf_counter() - began)


def stub_preset(place: Workplace, name: str = "stub", **keys: Any) -> dict[str, Any]:
    """Return a preset of the stub, with a file of its own."""
    path = place.folder / "models" / f"{name}.gguf"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_bytes(b"GGUF")
    return {"model": str(path), "memory": {"host": "64MiB"}, **keys}


async def measure_idle(place: Workplace, table: Table) -> None:
    """Memory and wake-ups of one that has served a few requests and now does nothing."""
    folders = [place.folder / name for name in ("some", "more")]
    for folder in folders:
        folder.mkdir()
        for number in range(10):
            (folder / f"{folder.name}-{number}.gguf").write_bytes(b"GGUF")
    names = ["first", "second", "third"]
    models = {name: stub_preset(place, name) for name in names}
    cases: list[tuple[str, list[str], dict[str, Any]]] = [
        ("nothing loaded", [], {}),
        ("a model loaded", names[:1], {}),
        ("3 models loaded, 2 folders of models", names, {"model_dirs": [*map(str, folders)]}),
    ]
    with lswap(place, models):
        pass  # compiles the modules: no other start needs memory for that
    for what, loaded, keys in cases:
        with lswap(place, models, **keys) as server:
            for name in loaded:
                async with asker(server, name) as one:
                    for _ in range(100):
                        await one.ask()
            await asyncio.sleep(3)  # what follows a request has settled
            before = server.wakeups
            await asyncio.sleep(QUIET)
            rate = (server.wakeups - before) / QUIET
            pss = server.pss
        table.add(f"memory, idle, {what} (PSS)", "≤ 40 MiB", _mib(pss), pss <= 40 * _MIB)
        table.add(f"wake-ups a second, idle, {what}", "< 2", f"{rate:.2f}", rate < 2)


async def measure_connections(place: Workplace, table: Table) -> None:
    """Hold idle keep-alive connections, each after a request, while another one is used."""
    with lswap(place, {"stub": stub_preset(place)}) as server:
        async with asker(server) as busy:
            await busy.ask()
            alone = median(await _asked_for(busy, 2))
            before = server.rss
            idle = [Connection(server.port) for _ in range(CONNECTIONS)]
            try:
                await _in_parts(idle, Connection.ping)
                after = server.rss
                beside = await _asked_for(busy, HELD)
                kept = sum([await one.kept() for one in idle])
                await _in_parts([one for one in idle if not one.failed], Connection.ping)
                served = sum(not one.failed for one in idle)
            finally:
                for one in idle:
                    one.close()
    figure = f"{kept:,} held for {HELD:g} s, {served:,} answered once more"
    what = f"{CONNECTIONS:,} idle connections"
    table.add(what, "none dropped", figure, served == kept == CONNECTIONS)
    figure = f"{len(beside):,} answered, median {_ms(median(beside))} ({_ms(alone)} without)"
    table.add("… requests meanwhile", "answered", figure, bool(beside))
    each = (after - before) / CONNECTIONS / _KIB
    figure = f"RSS {before / _MIB:.0f} → {after / _MIB:.0f} MiB, {each:.1f} KiB each"
    table.add("… memory", "", figure)


async def measure_streams(place: Workplace, table: Table) -> None:
    """Have many streams open at once."""
    with lswap(place, {"stub": stub_preset(place, concurrency=STREAMS)}) as server:
        async with asker(server) as one:
            await one.ask()
        await asyncio.sleep(1)
        before = server.pss
        streams = [Stream(server.port, EVENTS, RATE) for _ in range(STREAMS)]
        async with asyncio.TaskGroup() as tasks:
            for stream in streams:
                tasks.create_task(stream.run())
            await asyncio.gather(*(stream.begun.wait() for stream in streams))
            open_now = sum(not stream.over for stream in streams)
            each = (server.pss - before) / STREAMS / _KIB
        whole = sum(stream.whole for stream in streams)
    figure = f"{open_now:,} open at once, {whole:,} complete"
    table.add(f"{STREAMS:,} live streams", "none cut", figure, whole == open_now == STREAMS)
    table.add("… memory of each (PSS)", "≤ 40 KiB", f"{each:.1f} KiB", each <= 40)


async def measure_presets(place: Workplace, table: Table, rounds: int = 5) -> None:
    """Compare a large file with a small one."""
    names = [f"model-{number:05}" for number in range(PRESETS)]
    many = {name: stub_preset(place, name) for name in names}
    few = {name: many[name] for name in names[:10]}
    starts, short = [], []
    for _ in range(rounds):  # no child is started: a real binary has many more options than a stub
        with lswap(place, many, engine=_engine(place)) as server:
            starts.append(server.listened)
        with lswap(place, few, engine=_engine(place)) as server:
            short.append(server.listened)
    with lswap(place, few) as small, lswap(place, many) as large:
        async with asker(small, names[5]) as one, asker(large, names[5]) as other:
            await asyncio.gather(one.ask(), other.ask())
            ratios = []
            for _ in range(rounds):
                pairs = [(await one.ask(), await other.ask()) for _ in range(1_000)]
                first, second = (median(side) for side in zip(*pairs, strict=True))
                ratios.append(second / first)
        await asyncio.sleep(1)
        rss = large.rss, small.rss
    figure = f"{median(starts):.2f} s ({median(short):.2f} s with 10)"
    table.add(f"{PRESETS:,} presets: until it answers", "< 2 s", figure, median(starts) < 2)
    ratio = median(ratios)
    figure = f"{ratio:.2f} × (rounds {min(ratios):.2f} to {max(ratios):.2f})"
    table.add("… a request, against 10 presets", "no more (≤ 1.05 ×)", figure, ratio <= 1.05)
    table.add("… memory (RSS)", "", f"{rss[0] / _MIB:.0f} MiB ({rss[1] / _MIB:.0f} with 10)")


async def measure_queue(place: Workplace, table: Table) -> None:
    """Ask ten times as often as may wait, while nobody is let through."""
    preset = stub_preset(place, concurrency=1)
    with lswap(place, {"stub": preset}, policy={"queue": {"limit": QUEUE}}) as server:
        hog = Stream(server.port, events=60, rate=10)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(hog.run())
            await hog.begun.wait()
            burst = [Stream(server.port, 1, 0) for _ in range(10 * QUEUE)]
            began = time.perf_counter()
            asked = [tasks.create_task(one.run()) for one in burst]
            for done in asyncio.as_completed(asked):
                await done
                if sum(one.status == 429 for one in burst) == 9 * QUEUE:
                    break
            refused = time.perf_counter() - began
        answered = sum(one.whole for one in burst)
        others = len(burst) - answered - sum(one.status == 429 for one in burst)
    figure = f"{answered} answered, {len(burst) - answered - others} refused, {others} else"
    good = answered == QUEUE and not others and refused < 6
    what = f"{10 * QUEUE:,} requests where {QUEUE} may wait"
    table.add(what, "answered or 429 at once", f"{figure}; refusals took {refused:.2f} s", good)


async def measure_flood(place: Workplace, table: Table) -> None:
    """A child writes without end while it loads; another model answers."""
    engine = place.folder / "flooding-server"
    engine.write_text(
        "#!/bin/sh\n# speaks cmd_child_to_router:state:\n"
        f'case "$1" in --version | --help) exec {place.stub} "$@" ;; esac\n'
        f'exec {sys.executable} -SE {fake_llama_server.__file__} "$@"\n'
    )
    engine.chmod(0o700)
    flood = stub_preset(place, "flood", engine=str(engine), env={"FAKE_FLOOD": str(FLOOD)})
    logs = place.folder / "logs"
    models = {"stub": stub_preset(place), "flood": flood}
    with lswap(place, models, log={"dir": str(logs), "rotate": f"{ROTATE // _MIB}MiB"}) as server:
        async with asker(server) as calm, asker(server, "flood") as loading:
            await calm.ask()
            alone = median(await _asked_for(calm, 2))
            before = most = server.rss
            began = time.perf_counter()
            load = asyncio.create_task(loading.ask())
            beside: list[float] = []
            largest = 0
            while not load.done():
                beside.append(await calm.ask())
                if len(beside) % 20 == 0:
                    most = max(most, server.rss)
                    largest = max(largest, sum(one.stat().st_size for one in logs.iterdir()))
                await asyncio.sleep(0.005)
            await load
            seconds = time.perf_counter() - began
    written = f"{FLOOD / 1e9:.2f} GB"
    figure = f"read in {seconds:.0f} s, RSS {before / _MIB:.0f} → {most / _MIB:.0f} MiB at most"
    table.add(
        f"a child logs {written}", "memory flat (+ ≤ 16 MiB)", figure, most - before < 16 << 20
    )
    bound = 4 * (ROTATE + 4 * _MIB)  # a file may pass `rotate` by one write
    figure = f"{largest / _MIB:.0f} MiB at most in {logs.name}/"
    table.add("… its files, rotate 10 MiB", f"≤ {bound // _MIB} MiB", figure, largest <= bound)
    worst = sorted(beside)[int(len(beside) * 0.99)]
    figure = (
        f"{len(beside):,} answered, median {_ms(median(beside))}, "
        f"p99 {_ms(worst)} ({_ms(alone)} without)"
    )
    table.add("… requests to another model meanwhile", "answered", figure, bool(beside))


@asynccontextmanager
async def asker(server: Server, model: str = "stub") -> AsyncIterator[Asker]:
    """Yield a client that asks one model again and again on one connection."""
    one = Asker(server.port, model)
    try:
        yield one
    finally:
        one.close()


async def _asked_for(one: Asker, seconds: float) -> list[float]:
    """Ask for that long, with rests; return how long each answer took."""
    end, took = time.perf_counter() + seconds, []
    while time.perf_counter() < end:
        took.append(await one.ask())
        await asyncio.sleep(0.005)
    return took


async def _in_parts(
    many: list[Connection], do: Callable[[Connection], Awaitable[None]], at_once: int = 200
) -> None:
    for start in range(0, len(many), at_once):
        await asyncio.gather(*(do(one) for one in many[start : start + at_once]))


def _engine(place: Workplace) -> str:
    try:
        return str(locate_engine().path)
    except EngineError:
        return str(place.stub)


def _mib(size: int) -> str:
    return f"{size / _MIB:.1f} MiB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


MEASURES: Final[dict[str, Callable[[Workplace, Table], Awaitable[None]]]] = {
    "idle": measure_idle,
    "connections": measure_connections,
    "streams": measure_streams,
    "presets": measure_presets,
    "queue": measure_queue,
    "flood": measure_flood,
}


def main() -> int:
    """Measure what was asked for; return 1 if a target was missed or it could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.limits", description=__doc__)
    parser.add_argument("what", nargs="*", choices=[[], *MEASURES], help="default: all")
    what = parser.parse_args().what or list(MEASURES)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every server is ended
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    table = Table()
    try:
        with open_workplace() as place:
            for name in what:
                print(name, file=sys.stderr, flush=True)
                asyncio.run(_bounded(MEASURES[name](place, table)))
    except (LswapError, TimeoutError) as error:
        print(f"error: {str(error) or 'it took longer than a quarter of an hour'}", file=sys.stderr)
        return 1
    finally:
        print(f"{os.cpu_count()} cores, load average {load} before\n\n{table.render()}")
    return 1 if any(kept is False for *_, kept in table.rows) else 0


async def _bounded(measure: Awaitable[None]) -> None:
    async with asyncio.timeout(900):
        await measure


if __name__ == "__main__":
    sys.exit(main())
