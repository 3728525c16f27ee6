"""Benchmarks with a command of their own that hand back text: their tables, and rows made of them.

A function here takes the run and calls `measure_…(place, engine, rounds, note)` of the other
module; what it renders on the way (bench.measure.render) is where the figures of a row come from.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from bench.measure import Rendered, rendering
from bench.rows import LSWAP, Row, Target
from bench.run import Run, Section
from bench.workplace import BenchError

MOST_ROUNDS = 3
"""Of a table that writes and drops gigabytes."""
READ_AHEAD_SHARE = 0.7
QUICK_BYTES = 256 << 20


def measure_read_ahead(run: Run) -> Iterator[Section]:
    """Swap to a large file whose pages were dropped, while A drains: with read-ahead, without."""
    measure = _find("bench.read_ahead", "measure_read_ahead")
    engine, size = run.llama_server, {"size": QUICK_BYTES} if run.quick else {}
    with rendering() as tables:
        text = measure(run.place, engine, min(run.rounds, MOST_ROUNDS), run.note, **size)
    yield Section(text, _share_row(tables))


def _share_row(tables: list[Rendered]) -> list[Row]:
    """Return the row of the first table: the swap with read-ahead as a share of that without."""
    swaps = tables[0].rounds.values.get("swap", {}) if tables else {}
    without, with_ = swaps.get("without read-ahead", []), swaps.get("with read-ahead", [])
    shares = [a / b for a, b in zip(with_, without, strict=False) if b > 0]
    return [
        Row(
            "swap to a large cold file while A drains, × that without read-ahead",
            {LSWAP: shares},
            (Target(READ_AHEAD_SHARE),),
            digits=2,
            alone="read_ahead",
        )
    ]


def measure_keep_kv(run: Run) -> Iterator[Section]:
    """Ask on in a long conversation after a swap: with its slots kept, without. No target yet."""
    measure = _find("bench.keep_kv", "measure_keep_kv")
    rounds = min(run.rounds, MOST_ROUNDS)
    yield Section(measure(run.place, run.llama_server, rounds, run.note))


def _find(module: str, function: str) -> Callable[..., Any]:
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ModuleNotFoundError, AttributeError) as error:
        raise BenchError(f"{module} is not there: {error}") from None
    return found
