"""5,000 idle connections and 1,000 live streams: as bench.limits has them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO

from bench.limits import MEASURES, Table
from bench.rows import Row, Told
from bench.run import Run, Section
from bench.workplace import BenchError

_LIMIT = 120.0


def measure_scale(run: Run) -> Iterator[Section]:
    """Measure both; their figures are words, and judged there."""
    for what in ("connections", "streams"):
        run.note(f"limits: {what}")
        table = Table()
        with redirect_stderr(StringIO()):  # its own progress
            asyncio.run(_measure(run, what, table))
        rows = [
            Row(name, {}, alone="scale", told=Told(figure, target, kept))
            for name, target, figure, kept in table.rows
            if not name.startswith("… memory of each")  # bench.footprint compares it
        ]
        yield Section(rows=rows)


async def _measure(run: Run, what: str, table: Table) -> None:
    try:
        async with asyncio.timeout(_LIMIT):
            await MEASURES[what](run.place, table)
    except TimeoutError:
        raise BenchError(f"limits {what}: not done after {_LIMIT:g} s") from None
