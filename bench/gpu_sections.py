"""The sections of `python -m bench.gpu`: each measures one thing on a card and returns Markdown."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.estimate_models import ModelShape, write_model
from bench.estimates import fill, serving
from bench.gpu_card import Card, Lswap, sampled, start_lswap
from bench.keep_kv import measure_keep_kv
from bench.measure import grid
from bench.read_ahead import measure_read_ahead
from bench.workplace import BenchError, Workplace
from llamaswap_py.demo.tiny_gguf import write_tiny_model
from llamaswap_py.estimate import Estimate, Estimator, Wanted
from llamaswap_py.llamacpp.fit_params import DryRuns, fit_args, read_figures
from llamaswap_py.llamacpp.memory_settings import read_settings
from llamaswap_py.storage import LearnedFacts, RecordFolder
from llamaswap_py.units import GIB, MIB, format_size


@dataclass(frozen=True, slots=True)
class Job:
    """What a section works with. `tiny`: to see that it works; the figures mean nothing."""

    card: Card
    place: Workplace
    tiny: bool

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    def model(self, name: str, *, pad: int) -> Path:
        """Write a model of about so many bytes."""
        path = self.place.folder / f"{name}.gguf"
        write_tiny_model(path, f"{name} says a few plain words", pad_bytes=pad)
        return path


# Estimates

_LLAMA = ModelShape(layers=32, width=4096, heads=32, kv_heads=8, feed_forward=14336)
_TINY = ModelShape(
    layers=2, width=64, heads=2, kv_heads=2, head_size=32, feed_forward=64, vocabulary=2000
)
CASES: Final[tuple[tuple[str, ModelShape, ModelShape, int, tuple[str, ...]], ...]] = (
    (
        "dense",
        ModelShape(layers=16, width=2048, heads=16, kv_heads=16, feed_forward=8192),
        _TINY,
        4096,
        (),
    ),
    ("gqa", replace(_LLAMA, kind="Q8_0"), replace(_TINY, heads=4), 8192, ()),
    (
        "moe",
        ModelShape(
            layers=24, width=2048, heads=16, kv_heads=4, feed_forward=1024, experts=32,
            experts_used=4, kind="Q8_0",
        ),
        replace(_TINY, experts=4, experts_used=2),
        4096,
        (),
    ),
    ("long context", replace(_LLAMA, layers=16, kind="Q4_0"), _TINY, 49152, ()),
    (
        "quantised KV",
        replace(_LLAMA, layers=16, kind="Q4_0"),
        _TINY,
        32768,
        ("-ctk", "q8_0", "-ctv", "q8_0"),
    ),
)  # fmt: skip
"""Name, shape, tiny shape, context, and more arguments."""


def measure_estimates(job: Job) -> str:
    """Compare what was estimated before the first load with what NVML counts for the process."""
    runs = DryRuns()
    head = ["shape", "context", "NVML, ready", "NVML, full", "llama-fit-params", "error"]
    rows = [[*head, "lswap: dry run", "error", "lswap: formulas", "error", "counted"]]
    for name, full, tiny, context, args in CASES:
        shape, tokens = (tiny, 512) if job.tiny else (full, context)
        rows.append([name, f"{tokens:,}", *_compare(job, runs, shape, ("-c", str(tokens), *args))])
    return f"Sizes in MiB.\n\n{grid(rows)}"


def _compare(job: Job, runs: DryRuns, shape: ModelShape, args: tuple[str, ...]) -> list[str]:
    model = job.place.folder / "shape.gguf"
    write_model(model, shape)
    card = job.card
    always = ("--model", str(model), "--fit", "off", "--cache-ram", "0", "-np", "1", "-ngl", "99")
    wanted = Wanted(
        "shape",
        str(model),
        (*always, *args),
        (str(model),),
        (card.name,),
        env={"CUDA_VISIBLE_DEVICES": card.uuid},
        names={"CUDA0": card.name},
        engine=card.engine.label,
        fit_params=card.engine.fit_params,
    )
    alone, dry, formulas = asyncio.run(_estimate(job, runs, wanted))
    before = card.used()
    with serving(card.engine, wanted, threads=2) as (process, url):
        ready, _ = _held(card, process.pid, before)
        fill(url, wanted)
        full, how = _held(card, process.pid, before)
    model.unlink()
    each = (f"{cell}" for figure in (alone, dry, formulas) for cell in _against(figure, full))
    return [_mib(ready), _mib(full), *each, how]


async def _estimate(job: Job, runs: DryRuns, wanted: Wanted) -> tuple[int, int, int]:
    """Return the card's bytes by llama-fit-params alone, lswap's dry run and its formulas."""
    assert wanted.fit_params is not None
    settings = read_settings(wanted.args)
    known = await runs.options(wanted.fit_params)
    words = fit_args(wanted.model, wanted.args, settings, known, per_slot=False)
    said = await runs.answer(wanted.fit_params, words, wanted.env)
    alone = sum(one.size for one in read_figures(said) if one.device is not None)
    state = job.place.folder / "estimates"
    cache = RecordFolder(state / "cache", Estimate, version=1)
    estimator = Estimator(LearnedFacts(state / "learned"), cache, runs)
    dry, formulas = await estimator.dry_run(wanted), await estimator.analytic(wanted)
    name = job.card.name
    return alone, dry.footprint.get(name, 0), formulas.footprint.get(name, 0)


def _held(card: Card, pid: int, before: int) -> tuple[int, str]:
    """Return what a process holds of the card, and how that is known."""
    held = card.held(pid)
    return (card.used() - before, "growth of the card") if held is None else (held, "process")


def _against(figure: int, reality: int) -> tuple[str, str]:
    return _mib(figure), f"{(figure - reality) / reality:+.1%}" if reality else "-"


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f}"


# Two models beside each other


def measure_together(job: Job) -> str:
    """Load two models; compare NVML with what lswap charges, and their speeds with alone."""
    pad, tokens = job.size(2 * GIB, 16 * MIB), job.size(256, 32)
    models = {name: job.model(name, pad=pad) for name in ("alpha", "beta")}
    with ExitStack() as stack:
        lswap = start_lswap(job.place, stack, job.card, models, {})
        before = job.card.used()
        alone = {}
        for name in models:
            lswap.ask(name, tokens=tokens)
            alone[name] = lswap.ask(name, tokens=tokens)
        beside = _at_once(lswap, list(models), tokens)
        state = lswap.state()
        pids = {one["preset"]: one["pid"] for one in state["instances"]}
        if set(pids) != set(models):
            raise BenchError(f"loaded at the end: {', '.join(pids) or 'none'}")
        grown = job.card.used() - before
        held = {name: job.card.held(pid) for name, pid in pids.items()}
        charged = {
            one["id"]: (one["footprint"] or {}).get(job.card.name, 0) for one in state["models"]
        }
    head = ["model", "NVML, MiB", "charged, MiB", "tokens/s alone", "beside the other", "ratio"]
    rows = [head]
    for name in models:
        size = held[name]
        row = [name, "unknown" if size is None else _mib(size), _mib(charged[name])]
        rows.append([*row, f"{alone[name]:,.0f}", f"{beside[name]:,.0f}"])
        rows[-1].append(f"{beside[name] / alone[name]:.2f}")
    return f"{grid(rows)}\n\nThe card's use grew by {_mib(grown)} MiB."


def _at_once(lswap: Lswap, names: list[str], tokens: int) -> dict[str, float]:
    speeds: dict[str, float] = {}

    def one(name: str) -> None:
        speeds[name] = lswap.ask(name, tokens=tokens)

    asking = [threading.Thread(target=one, args=(name,)) for name in names]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    if len(speeds) < len(names):
        raise BenchError("a model did not answer beside the other one")
    return speeds


# The margin


def measure_margin(job: Job) -> str:
    """Let two clients ask for three models where two fit; look at the card all the time."""
    pad, budget = job.size(2 * GIB, 256 * MIB), job.size(6 * GIB, 750 * MIB)
    margin, seconds = job.size(GIB, 128 * MIB), job.size(40, 5)
    models = {name: job.model(name, pad=pad) for name in ("alpha", "beta", "gamma")}
    budget += margin
    memory = {
        "devices": {job.card.name: f"{budget // MIB}MiB", "host": "8GiB"},
        "margin": {job.card.name: f"{margin // MIB}MiB", "host": 0},
    }
    with ExitStack() as stack:
        lswap = start_lswap(job.place, stack, job.card, models, memory)
        before = job.card.used()
        with sampled(job.card) as seen:
            asked, failed = _ask_in_turn(lswap, list(models), seconds)
        evicted = lswap.state()["evictions_total"]
    left = budget - (max(seen) - before)
    verdict = "kept" if left >= margin else "**broken**"
    rows = [
        ["budget, MiB", "margin, MiB", "least left, MiB", "margin", "answers", "failed", "evicted"],
        [_mib(budget), _mib(margin), _mib(left), verdict, str(asked), str(failed), str(evicted)],
    ]
    return f"{grid(rows)}\n\n{len(seen):,} looks at the card in {seconds} s."


def _ask_in_turn(lswap: Lswap, names: list[str], seconds: float) -> tuple[int, int]:
    ends = time.monotonic() + seconds
    counts = [0, 0]

    def one(first: int) -> None:
        for name in itertools.islice(itertools.cycle(names), first, None):
            if time.monotonic() > ends:
                return
            try:
                lswap.ask(name)
                counts[0] += 1
            except BenchError:
                counts[1] += 1

    asking = [threading.Thread(target=one, args=(first,)) for first in (0, 1)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    return counts[0], counts[1]


# A stranger


def measure_stranger(job: Job) -> str:
    """Let another program take the card's memory; an idle model must make room for it."""
    pad, taken = job.size(GIB, 16 * MIB), job.size(2 * GIB, 768 * MIB)
    left = job.size(3 * GIB, 600 * MIB)
    card = job.card
    models = {"alpha": job.model("alpha", pad=pad)}
    other = job.model("other", pad=taken)
    margin = max(card.total - card.used() - left, 0)
    with ExitStack() as stack:
        memory = {"margin": {card.name: f"{margin // MIB}MiB", "host": 0}}
        lswap = start_lswap(job.place, stack, card, models, memory)
        lswap.ask("alpha")
        args = ("--model", str(other), "-c", "256", "-np", "1", "-ngl", "99", "--fit", "off")
        wanted = Wanted("other", str(other), args, (), env={"CUDA_VISIBLE_DEVICES": card.uuid})
        before = card.used()
        with serving(card.engine, wanted, threads=1):
            took = card.used() - before
            seconds = lswap.until("alpha yields", lambda now: not now["instances"])
        reasons = lswap.decisions("stop")
        lswap.ask("alpha")
    return (
        f"Another llama-server took {_mib(took)} MiB of the {_mib(left)} MiB that were left to "
        f"lswap. The idle model was gone {seconds:.2f} s after that one was ready: "
        f'"{reasons[-1] if reasons else "no reason"}". It answered again after the other\'s end.'
    )


# What swaps cost


def measure_swaps(job: Job) -> str:
    """Swap to a large file: cold and from the page cache, with read-ahead and without."""
    size, rounds = job.size(4 * GIB, 32 * MIB), job.size(2, 1)
    return measure_read_ahead(
        job.place, job.card.engine, rounds, _quiet, size, on=job.card.name, kept=False
    )


def measure_kept(job: Job) -> str:
    """Swap a long conversation out and in, with its KV cache on the card."""
    rounds = job.size(3, 1)
    if job.tiny:
        return measure_keep_kv(
            job.place, job.card.engine, rounds, _quiet, on=job.card.name, tokens=200
        )
    return measure_keep_kv(
        job.place,
        job.card.engine,
        rounds,
        _quiet,
        on=job.card.name,
        tokens=12000,
        shape=replace(_LLAMA, kind="Q4_0", vocabulary=8000),
        host="4GiB",
    )


def _quiet(_: str) -> None:
    """Notes of rounds are for a terminal; a section's only output is its table."""


@dataclass(frozen=True, slots=True)
class Section:
    """A section, and the seconds after which it is ended."""

    name: str
    title: str
    measure: Callable[[Job], str]
    limit: float


SECTIONS: Final = (
    Section("estimates", "Estimates against NVML", measure_estimates, 150),
    Section("together", "Two models beside each other", measure_together, 50),
    Section("margin", "The margin under load", measure_margin, 80),
    Section("stranger", "A foreign process takes memory", measure_stranger, 40),
    Section("swaps", "What a swap costs", measure_swaps, 120),
    Section("keep_kv", "`keep_kv` on the card", measure_kept, 100),
)


def described(card: Card) -> str:
    """Return the card in words."""
    return f"{card.description} ({card.name}, {format_size(card.total)})"
