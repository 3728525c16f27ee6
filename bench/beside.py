"""`python -m bench.beside`: two models that fit host memory together run beside each other.

A memory cgroup (version 1 or 2) is the machine. One model is F16, so it computes from its mapped
file; the other is Q4_0, which most CPUs rearrange: its file is page cache after the load. Both are
written with data on disk. Each first answers alone, then both in turn. Printed are out-of-memory
kills, refaulted file pages a minute, and tokens per second in turn against alone. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from bench.client import get_json
from bench.estimate_models import ModelShape, write_model
from bench.workplace import BenchError, free_port, open_workplace, running
from llamaswap_py.children.cgroups import JOIN
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import LswapError
from llamaswap_py.units import GIB, MIB, format_size

REFAULTS = 0.01
"""The most pages of the files that may be read again in a minute, as a share of all of them."""
SPEED = 0.95
"""The least tokens per second in turn, as a share of those alone."""
MINUTE = 60.0
PATIENCE = 600.0
WORDS = 16
_MODELS = {"computed-from": "F16", "rearranged": "Q4_0"}
_WIDE = ModelShape(width=2048, heads=16, kv_heads=4, feed_forward=5632, vocabulary=32000)


@dataclass(frozen=True, slots=True)
class Group:
    """A memory cgroup of either version."""

    folder: Path

    def limit(self, size: int) -> None:
        name = "memory.max" if self._unified else "memory.limit_in_bytes"
        (self.folder / name).write_text(str(size))

    @property
    def _unified(self) -> bool:
        return (self.folder / "cgroup.controllers").exists()

    def refaults(self) -> int:
        """Return how many file pages were read again after they had been dropped."""
        name = "workingset_refault_file" if self._unified else "total_workingset_refault_file"
        rows = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        if name not in rows:
            raise BenchError(
                f"{self.folder}/memory.stat has no {name}: Linux 5.9 or later is needed"
            )
        return int(rows[name])

    def most(self) -> int | None:
        """Return the most bytes that it ever held; None where the kernel does not tell."""
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            with contextlib.suppress(OSError):
                return int((self.folder / name).read_text())
        return None

    def oom_kills(self) -> int:
        """Return how many processes were killed in it and below because memory ran out."""
        names = ("memory.events.local", "memory.oom_control")
        files = [path for name in names for path in self.folder.rglob(name)]
        return sum(
            int(line.split()[1])
            for path in files
            for line in path.read_text().splitlines()
            if line.startswith("oom_kill ")
        )


@contextmanager
def memory_group(size: int) -> Iterator[Group]:
    """Make a cgroup of `size` bytes below this process's own."""
    with open("/proc/self/cgroup", encoding="ascii") as file:
        placed = [line.strip().split(":", 2) for line in file]
    mount, path = Path("/sys/fs/cgroup"), ""
    for number, kinds, inner in placed:
        if "memory" in kinds.split(","):
            mount, path = mount / "memory", inner
            break
        if number == "0":
            path = inner
    group = Group(mount / path.lstrip("/") / f"bench-beside-{os.getpid()}")
    try:
        group.folder.mkdir()
        group.limit(size)
    except OSError as error:
        remedy = "run it as root, in a cgroup whose memory controller is on for the groups below"
        raise BenchError(f"no memory cgroup: {error}", remedy=remedy) from None
    try:
        yield group
    finally:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for folder, _, _ in os.walk(group.folder, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            if not group.folder.exists():
                break
            time.sleep(0.1)


@dataclass(slots=True)
class Scores:
    """Tokens per second of each answer, alone and in turn, and refaulted pages of each minute."""

    alone: dict[str, list[float]] = field(default_factory=dict)
    in_turn: dict[str, list[float]] = field(default_factory=dict)
    refaults: list[int] = field(default_factory=list)
    kills: int = 0
    reloads: int = 0
    seconds: float = 0.0


def measure(asked: argparse.Namespace, folder: Path) -> int:
    """Write the models, run them, print the figures; return 1 if one misses its bar."""
    size = int(asked.gib * GIB)
    if shutil.disk_usage(folder).free < 2 * size + GIB:
        raise BenchError(f"{folder} has too little room", remedy="name another --folder")
    files = {name: folder / f"{name}.gguf" for name in _MODELS}
    for name, kind in _MODELS.items():
        _note(f"writing {name} ({kind}, {format_size(size)})")
        _write(files[name], kind, size)
    total = sum(path.stat().st_size for path in files.values())
    with memory_group(int(asked.cgroup_gib * GIB)) as group:
        scores = _run(asked, folder, files, group)
        most = group.most()
    return _report(asked, scores, total, most)


def _write(path: Path, kind: str, size: int) -> None:
    """Write a model of about `size` bytes, with data where a sparse file would have holes."""
    per_weight = {"F16": 2.0, "Q4_0": 18 / 32}[kind]
    width, kv_rows = _WIDE.width, _WIDE.kv_heads * _WIDE.head_size
    layer = per_weight * width * (2 * width + 2 * kv_rows + 3 * _WIDE.feed_forward)
    ends = per_weight * 2 * width * _WIDE.vocabulary
    layers = max(round((size - ends) / layer), 1)
    write_model(path, replace(_WIDE, layers=layers, kind=kind))
    if sys.platform != "linux":
        raise NotImplementedError
    with path.open("r+b") as file:
        while piece := file.read(4 * MIB):
            file.seek(-len(piece), os.SEEK_CUR)
            file.write(piece)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _run(asked: argparse.Namespace, folder: Path, files: dict[str, Path], group: Group) -> Scores:
    port, scores = free_port(), Scores()
    args = {"ctx-size": asked.context, "parallel": 1, "threads": asked.threads, "warmup": False}
    said = {
        "listen": f"127.0.0.1:{port}",
        "memory": {"margin": asked.margin, "cache_ram": asked.cache_ram},
        "models": {name: {"model": str(path), "args": args} for name, path in files.items()},
    }
    config = folder / "lswap.yaml"
    config.write_text(json.dumps(said))
    command = [sys.executable, "-m", "llamaswap_py", "up", str(config)]
    joined = ["/bin/sh", "-c", JOIN, "sh", str(group.folder), "--", *command]
    folders = ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")
    env = dict.fromkeys(folders, str(folder)) | {"LSWAP_LLAMA_SERVER": asked.engine}
    log = folder / "lswap.log"
    with running(joined, port=port, log=log, env=env):
        try:
            _answer_alone(asked, port, list(files), scores)
            _answer_in_turn(asked, port, list(files), group, scores)
        except BenchError:
            print(log.read_text()[-3000:], file=sys.stderr)
            raise
    return scores


def _answer_alone(
    asked: argparse.Namespace, port: int, names: Sequence[str], scores: Scores
) -> None:
    for name in names:
        _note(f"{name} alone, {asked.alone:.0f} s")
        _ask(port, name)  # the load, and the first pass over the weights
        ends = time.monotonic() + asked.alone
        while time.monotonic() < ends or not scores.alone.get(name):
            scores.alone.setdefault(name, []).append(_ask(port, name))
        _unload(port, name)


def _answer_in_turn(
    asked: argparse.Namespace, port: int, names: Sequence[str], group: Group, scores: Scores
) -> None:
    for name in names:
        _ask(port, name)
    before = _instances(port)
    if {one["preset"] for one in before} != set(names):
        raise BenchError("lswap does not hold both models at once: do they fit the cgroup?")
    _note(f"both in turn, {asked.seconds:.0f} s")
    began = time.monotonic()
    mark, seen = began, group.refaults()
    while (now := time.monotonic()) - began < asked.seconds:
        for name in names:
            scores.in_turn.setdefault(name, []).append(_ask(port, name))
        if time.monotonic() - mark >= asked.minute:
            count = group.refaults()
            scores.refaults.append(round((count - seen) * MINUTE / (time.monotonic() - mark)))
            mark, seen = time.monotonic(), count
    scores.seconds = now - began
    scores.kills = group.oom_kills()
    same = {one["epoch"] for one in before} & {one["epoch"] for one in _instances(port)}
    scores.reloads = len(names) - len(same)


def _instances(port: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get_json(Endpoint(port=port), "/lswap/v1/state")["instances"]
    return found


def _ask(port: int, model: str) -> float:
    """Return the tokens per second of one answer."""
    body = {"model": model, "prompt": "word1 word2 word3", "max_tokens": WORDS, "ignore_eos": True}
    url = f"http://127.0.0.1:{port}/v1/completions"
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), head)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return float(json.load(answer)["timings"]["predicted_per_second"])
    except OSError as error:
        said = error.read().decode() if isinstance(error, urllib.error.HTTPError) else error
        raise BenchError(f"{model} did not answer: {said}") from None


def _unload(port: int, model: str) -> None:
    url = f"http://127.0.0.1:{port}/lswap/v1/models/{model}/unload"
    urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=PATIENCE).close()
    deadline = time.monotonic() + PATIENCE
    while _instances(port):
        if time.monotonic() > deadline:
            raise BenchError(f"{model} does not go")
        time.sleep(0.1)


def _report(asked: argparse.Namespace, scores: Scores, total: int, most: int | None) -> int:
    pages = total // os.sysconf("SC_PAGE_SIZE")
    print(
        f"Two files of {format_size(total)} together in a cgroup of {asked.cgroup_gib:g} GiB, in "
        f"turn for {scores.seconds:.0f} s; the cgroup held at most "
        f"{'?' if most is None else format_size(most)}.\n"
    )
    verdicts = [("out-of-memory kills", str(scores.kills), scores.kills == 0)]
    verdicts.append(("models that were loaded again", str(scores.reloads), scores.reloads == 0))
    counted = scores.refaults[1:] or scores.refaults
    worst = max(counted, default=0) / pages
    shown = ", ".join(f"{one:,}" for one in scores.refaults) or "no whole minute"
    verdicts.append(
        (
            "refaulted file pages a minute, the first minute left out",
            f"{shown} of {pages:,}: at most {worst:.2%}",
            bool(counted) and worst < REFAULTS,
        )
    )
    for name in _MODELS:
        alone, turn = median(scores.alone[name]), median(scores.in_turn[name])
        text = f"{turn:.2f} of {alone:.2f} alone: {turn / alone:.2f}"
        counts = f"({len(scores.in_turn[name])} answers)"
        verdicts.append((f"tokens/s of {name} {counts}", text, turn >= SPEED * alone))
    print("| what | figure | |\n|---|---|---|")
    for what, figure, met in verdicts:
        print(f"| {what} | {figure} | {'met' if met else 'missed'} |")
    return 0 if all(met for _, _, met in verdicts) else 1


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _engine() -> str:
    from llamaswap_py.llamacpp.binaries import locate_engine

    return str(locate_engine("auto").path)


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.beside", description=__doc__)
    parser.add_argument("--gib", type=float, default=5, help="size of each file (5)")
    parser.add_argument("--cgroup-gib", type=float, default=16, help="size of the cgroup (16)")
    parser.add_argument("--seconds", type=float, default=300, help="both in turn (300)")
    parser.add_argument("--minute", type=float, default=60, help="seconds of one sample (60)")
    parser.add_argument("--alone", type=float, default=60, help="seconds of each alone (60)")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--margin", default="1GiB", help="memory.margin of lswap (1GiB)")
    parser.add_argument("--cache-ram", default="1GiB", help="memory.cache_ram of lswap (1GiB)")
    parser.add_argument("--folder", type=Path, help="where the files are written, on a disk")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every server is ended
    try:
        asked.engine = _engine()
        with open_workplace() as place:
            if asked.folder is None:
                return measure(asked, place.folder)
            folder = asked.folder / f"beside-{os.getpid()}"
            folder.mkdir(parents=True)
            try:
                return measure(asked, folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except (LswapError, subprocess.SubprocessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
