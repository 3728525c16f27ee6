"""What read-ahead and a kept KV cache save of the time of a swap: tables, and rows made of them.

The figures come from the tables that the measuring modules render (`bench.measure.rendering`).
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
    shares = shares_of(tables, "swap", "with read-ahead", "without read-ahead")
    name = "swap to a large cold file while A drains, × that without read-ahead"
    target = (Target(READ_AHEAD_SHARE),)
    yield Section(text, [Row(name, {LSWAP: shares}, target, digits=2, alone="read_ahead")])


def measure_keep_kv(run: Run) -> Iterator[Section]:
    """Ask on in a long conversation after a swap: with its slots kept, without. No target yet."""
    measure = _find("bench.keep_kv", "measure_keep_kv")
    rounds = min(run.rounds, MOST_ROUNDS)
    with rendering() as tables:
        text = measure(run.place, run.llama_server, rounds, run.note)
    shares = shares_of(tables, "back", "keep_kv", "without")
    name = "swap back to a long conversation, `keep_kv`, × that without"
    yield Section(text, [Row(name, {LSWAP: shares}, digits=2, alone="keep_kv")])


def shares_of(tables: list[Rendered], figure: str, of: str, base: str) -> list[float]:
    """Return what one way took as shares of another, by round, in the first table that has both."""
    for table in tables:
        values = table.rounds.values.get(figure, {})
        if of in values and base in values:
            return [a / b for a, b in zip(values[of], values[base], strict=False) if b > 0]
    return []


def _find(module: str, function: str) -> Callable[..., Any]:
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ModuleNotFoundError, AttributeError) as error:
        raise BenchError(f"{module} is not there: {error}") from None
    return found
