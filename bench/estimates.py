"""Estimates against reality: what the kernel counts for llama-server after the context was full.

    python -m bench.estimates [--only NAME …] [--folder DIR] [--threads N] [--json FILE]

Each shape is written as a sparse file (see estimate_models.py), estimated before its first load by
dry run and by formula, then run: a request to every slot fills the context, and the process is
measured from /proc/PID/smaps. llama.cpp's own table is not looked at. One shape at a time, at most
2 GiB each; files are deleted as soon as they were measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.estimate_models import ModelShape, write_model
from llamaswap_py.devices.process_memory import read_host_use
from llamaswap_py.estimate import Estimate, Estimator, Wanted
from llamaswap_py.llamacpp.binaries import Engine, locate_engine
from llamaswap_py.llamacpp.memory_settings import read_settings
from llamaswap_py.storage import LearnedFacts, RecordFolder
from llamaswap_py.units import HOST

MIB = 1024**2
LOAD_TIMEOUT = 120.0
FILL_TIMEOUT = 900.0
FIRST_WORD = 300
_LISTENING = re.compile(r"listening on (http://[\w.]+:\d+)")


@dataclass(frozen=True, slots=True)
class Case:
    """A model, how it is run, and what is special about it."""

    name: str
    about: str
    shape: ModelShape
    args: tuple[str, ...]
    draft: ModelShape | None = None


CASES = (
    Case(
        "dense",
        "F16, as many KV heads as heads, 128k words",
        ModelShape(layers=12, feed_forward=4096, vocabulary=128000),
        ("-c", "1024", "-np", "1"),
    ),
    Case(
        "gqa",
        "Q8_0, 16 heads on 4 KV heads",
        ModelShape(
            layers=8, width=2048, heads=16, kv_heads=4, feed_forward=5632, vocabulary=64000,
            kind="Q8_0",
        ),
        ("-c", "1024", "-np", "1"),
    ),
    Case(
        "long-context",
        "16 layers, 8,192 tokens, 512 MiB of cache",
        ModelShape(layers=16, width=512, heads=8, kv_heads=8, feed_forward=2048),
        ("-c", "8192", "-np", "1"),
    ),
    Case(
        "quantized-kv",
        "q8_0 keys and values",
        ModelShape(
            layers=20, width=512, heads=16, kv_heads=16, feed_forward=4096, vocabulary=64000
        ),
        ("-c", "2048", "-np", "1", "-ctk", "q8_0", "-ctv", "q8_0"),
    ),
    Case(
        "slots",
        "4 slots, each its share",
        ModelShape(layers=16, feed_forward=2048, vocabulary=32000),
        ("-c", "6144", "-np", "4"),
    ),
    Case(
        "unified",
        "slots left open: 4 that share one cache",
        ModelShape(layers=16, feed_forward=2048, vocabulary=32000),
        ("-c", "4096"),
    ),
    Case(
        "draft",
        "a draft model beside it, 2 slots",
        ModelShape(layers=10, feed_forward=4096, vocabulary=64000),
        ("-c", "2048", "-np", "2", "--spec-type", "draft-simple"),
        draft=ModelShape(
            layers=3, width=512, heads=4, kv_heads=4, feed_forward=1024, vocabulary=64000
        ),
    ),
    Case(
        "padding",
        "file aligned to 1 MiB and longer than its tensors; context rounded up",
        ModelShape(
            layers=14, feed_forward=4096, vocabulary=32000, alignment=MIB, trailing=64 * MIB
        ),
        ("-c", "1500", "-np", "3", "-b", "300", "-ub", "200"),
    ),
    Case(
        "moe",
        "32 experts, 4 used",
        ModelShape(
            layers=4, kv_heads=2, feed_forward=1024, vocabulary=32000, experts=32, experts_used=4
        ),
        ("-c", "2048", "-np", "1"),
    ),
    Case(
        "sliding-window",
        "gemma3: 5 of 6 layers see 512 tokens, 2 slots, tied embedding",
        ModelShape(
            arch="gemma3", layers=12, heads=4, kv_heads=4, head_size=256, feed_forward=4096,
            vocabulary=128000, window=512, tied=True,
        ),
        ("-c", "4096", "-np", "2"),
    ),
    Case(
        "no-flash",
        "flash attention off",
        ModelShape(layers=16, feed_forward=3072, vocabulary=64000),
        ("-c", "2048", "-np", "1", "-fa", "off"),
    ),
    Case(
        "rearranged",
        "Q4_0, mapped: the CPU backend computes from a copy",
        ModelShape(layers=16, width=2048, heads=16, kv_heads=4, feed_forward=5632, kind="Q4_0"),
        ("-c", "1024", "-np", "1"),
    ),
    Case(
        "rearranged-read",
        "the same with --load-mode none",
        ModelShape(layers=22, width=2048, heads=16, kv_heads=4, feed_forward=5632, kind="Q4_0"),
        ("-c", "1024", "-np", "1", "--load-mode", "none"),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """Bytes of the host; `measured` is what the ladder says after that one life."""

    case: Case
    dry_run: int
    analytic: int
    ready: int
    full: int
    measured: int
    seconds: float

    def error(self, estimate: int) -> float:
        return (estimate - self.full) / self.full


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="*", help="names of cases")
    parser.add_argument("--folder", type=Path, help="where the models are written")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    engine = locate_engine(options.engine)
    print(f"{engine.path.name} {engine.label}, --threads {options.threads}; MiB\n")
    print("| shape | what is special | reality | dry run | error | formulas | error | measured |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    results = []
    with tempfile.TemporaryDirectory(prefix="lswap-estimates-", dir=options.folder) as folder:
        for case in CASES:
            if options.only and case.name not in options.only:
                continue
            results.append(run_case(case, engine, Path(folder), options.threads))
            print(_row(results[-1]), flush=True)
    _print_summary(results)
    if options.json:
        rows = [_as_json(result) for result in results]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def run_case(case: Case, engine: Engine, folder: Path, threads: int) -> Result:
    """Estimate, run and measure one case."""
    began = time.monotonic()
    model, draft = folder / "model.gguf", folder / "draft.gguf"
    write_model(model, case.shape)
    files = [str(model)]
    args = ["--model", str(model), "--fit", "off", "--cache-ram", "0", *case.args]
    if case.draft is not None:
        write_model(draft, case.draft)
        files.append(str(draft))
        args += ["--model-draft", str(draft)]
    wanted = Wanted(
        preset=case.name,
        model=str(model),
        args=tuple(args),
        files=tuple(files),
        engine=engine.label,
        fit_params=engine.fit_params,
    )
    state = folder / case.name
    estimator = Estimator(
        LearnedFacts(state / "learned"), RecordFolder(state / "cache", Estimate, version=1)
    )
    try:
        return asyncio.run(_measure(case, engine, wanted, estimator, threads, began))
    finally:
        for file in files:
            Path(file).unlink()


async def _measure(
    case: Case, engine: Engine, wanted: Wanted, estimator: Estimator, threads: int, began: float
) -> Result:
    dry_run = await estimator.dry_run(wanted)
    analytic = await estimator.analytic(wanted)
    in_place = await estimator.in_place(wanted)
    ready, full = await asyncio.to_thread(_live, engine, wanted, threads, in_place)
    await estimator.learn_ready(wanted, dry_run, {HOST: ready}, None)
    await estimator.learn_peak(wanted, {HOST: full})
    measured = await estimator.estimate(wanted)
    return Result(
        case,
        dry_run.footprint[HOST],
        analytic.footprint[HOST],
        ready,
        full,
        measured.footprint[HOST],
        time.monotonic() - began,
    )


def _live(engine: Engine, wanted: Wanted, threads: int, in_place: int | None) -> tuple[int, int]:
    """Start the server, fill every slot's context; returns bytes at readiness and then.

    Pages of the file beyond those `in_place` are page cache, and left out.
    """
    with serving(engine, wanted, threads) as (process, url):
        ready = read_host_use(process.pid, wanted.files)
        fill(url, wanted)
        full = read_host_use(process.pid, wanted.files)
        assert ready is not None
        assert full is not None
        return ready.kept(in_place), full.kept(in_place)


@contextmanager
def serving(
    engine: Engine, wanted: Wanted, threads: int
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run llama-server as a preset wants it; yield its process and its URL once it is ready."""
    settings = read_settings(wanted.args)
    command = [
        *(str(engine.path), *wanted.args, "--host", "127.0.0.1", "--port", "0", "--offline"),
        *("--threads", str(threads), "--slots", "--metrics"),
        *("--threads-http", str(settings.slots + 16), "--log-jsonl", "--log-colors", "off"),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **wanted.env},
    )
    assert process.stdout is not None
    watchdog = threading.Timer(LOAD_TIMEOUT, process.kill)
    watchdog.start()
    try:
        said: list[str] = []
        for line in process.stdout:
            said.append(line)
            if listening := _LISTENING.search(line):
                break
        else:
            raise SystemExit(f"{wanted.preset}: llama-server ended:\n{''.join(said[-20:])}")
        watchdog.cancel()
        # Its log must go on being read, or it stops at a full pipe.
        drain = threading.Thread(target=process.stdout.read)
        drain.start()
        try:
            yield process, listening[1]
            process.terminate()
        except BaseException:
            process.kill()
            raise
        finally:
            drain.join()
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def fill(url: str, wanted: Wanted) -> None:
    """Give every slot a prompt of its own that fills its context but for the answer."""
    with httpx.Client(base_url=url, timeout=FILL_TIMEOUT, trust_env=False) as client:
        slots: list[dict[str, Any]] = client.get("/slots").json()
        settings = read_settings(wanted.args)
        tokens = slots[0]["n_ctx"] // (len(slots) if settings.unified else 1) - 24

        def one(slot: int) -> None:
            prompt = [FIRST_WORD + (slot * 97 + at) % 1000 for at in range(tokens)]
            body = {"prompt": prompt, "n_predict": 8, "id_slot": slot, "ignore_eos": True}
            answer = client.post("/completion", json=body)
            if answer.status_code != 200 or answer.json()["tokens_evaluated"] != tokens:
                raise SystemExit(f"{wanted.preset}: {answer.text[:300]}")

        with ThreadPoolExecutor(len(slots)) as pool:
            list(pool.map(one, range(len(slots))))


def _row(result: Result) -> str:
    return (
        f"| {result.case.name} | {result.case.about} | {result.full / MIB:,.0f} "
        f"| {result.dry_run / MIB:,.0f} | {result.error(result.dry_run):+.1%} "
        f"| {result.analytic / MIB:,.0f} | {result.error(result.analytic):+.1%} "
        f"| {result.error(result.measured):+.1%} |"
    )


def _print_summary(results: list[Result]) -> None:
    if not results:
        sys.exit("no such case")
    print()
    for name in ("dry_run", "analytic", "measured"):
        errors = [abs(result.error(getattr(result, name))) for result in results]
        print(
            f"{name.replace('_', ' ')}: median error {statistics.median(errors):.1%}, "
            f"worst {max(errors):.1%} over {len(errors)} shapes"
        )


def _as_json(result: Result) -> dict[str, Any]:
    names = ("dry_run", "analytic", "ready", "full", "measured", "seconds")
    return {"name": result.case.name, **{name: getattr(result, name) for name in names}}


if __name__ == "__main__":
    main()
