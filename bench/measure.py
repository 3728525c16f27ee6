"""Figures from rounds: CPU time of processes, medians, ratios, tables."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Final


def cpu_seconds(pid: int) -> float:
    """Return the seconds on CPU of a process, its ended threads included, to the nanosecond.

    The clock of another process, as clock_getcpuclockid(3) makes its number on Linux.
    """
    return time.clock_gettime((~pid << 3) | 2)


@dataclass(slots=True)
class Rounds:
    """What each peer scored in each round: figure -> peer -> one value a round."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, figure: str, peer: str, value: float) -> None:
        """Note one round's value."""
        self.values.setdefault(figure, {}).setdefault(peer, []).append(value)

    def median(self, figure: str, peer: str) -> float | None:
        """Return the median over all rounds, None when the peer has no such figure."""
        values = self.values.get(figure, {}).get(peer)
        return median(values) if values else None

    def ratio(self, figure: str, peer: str, base: str) -> float | None:
        """Return the median of the rounds' own ratios: both sides saw the same neighbours."""
        mine, others = (self.values.get(figure, {}).get(one, []) for one in (peer, base))
        pairs = [a / b for a, b in zip(mine, others, strict=False) if b > 0]
        return median(pairs) if pairs else None

    def failures(self) -> str:
        """Return who had errors in all rounds together (figure `errors`), or `none`."""
        sums = {name: sum(values) for name, values in self.values.get("errors", {}).items()}
        return ", ".join(f"{name} {count:.0f}" for name, count in sums.items() if count) or "none"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: a figure, its heading, how many decimals; and whose ratio beside it."""

    figure: str
    heading: str
    digits: int = 1
    ratio: bool = True


@dataclass(frozen=True, slots=True)
class Rendered:
    """A table that was rendered: its title, and the figures in it."""

    title: str
    rounds: Rounds


_listening: Final[list[list[Rendered]]] = []


@contextmanager
def rendering() -> Iterator[list[Rendered]]:
    """Collect what `render` is given inside: for who hands back text only."""
    seen: list[Rendered] = []
    _listening.append(seen)
    try:
        yield seen
    finally:
        _listening.remove(seen)


def render(title: str, rounds: Rounds, columns: list[Column], peers: list[str], base: str) -> str:
    """Return a Markdown table of medians, with each peer's ratio to `base` in brackets."""
    for seen in _listening:
        seen.append(Rendered(title, rounds))
    rows = [["", *(column.heading for column in columns)]]
    for peer in peers:
        cells = [_cell(rounds, column, peer, base) for column in columns]
        rows.append([peer, *cells])
    return f"{title}\n\n{grid(rows)}"


def _cell(rounds: Rounds, column: Column, peer: str, base: str) -> str:
    value = rounds.median(column.figure, peer)
    if value is None:
        return "-"
    text = f"{value:,.{column.digits}f}"
    ratio = rounds.ratio(column.figure, peer, base) if column.ratio else None
    return f"{text} ({ratio:.2f})" if ratio is not None and peer != base else text


def grid(rows: list[list[str]], left: tuple[int, ...] = (0,)) -> str:
    """Return rows as a Markdown table that is aligned as text, too; the first one is its head.

    The columns `left` stand to the left, all others to the right.
    """
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]

    def line(row: list[str]) -> str:
        cells = (
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(cells)} |"

    rule = [
        "-" * width if at in left else "-" * (width - 1) + ":" for at, width in enumerate(widths)
    ]
    return "\n".join([line(rows[0]), f"| {' | '.join(rule)} |", *map(line, rows[1:])])


def in_turns(peers: list[str], number: int) -> list[str]:
    """Return the peers in the order of one round: each is first once in as many rounds."""
    shift = number % len(peers)
    return peers[shift:] + peers[:shift]
