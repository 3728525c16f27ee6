"""Shows results as rows of a table, for the command and the docs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llamaswap_py.simulator.run_records import Result

COLUMNS: Final = (
    *("policy", "loads", "swaps", "mean s", "p50 s", "p99 s", "worst s"),
    *("lost", "answered", "notes"),
)


def row_of(result: Result) -> tuple[str, ...]:
    """Return one result under COLUMNS."""
    return (
        result.policy,
        str(result.loads),
        str(result.swaps),
        *(f"{value:.2f}" for value in (result.mean, result.p50, result.p99, result.worst)),
        f"{result.lost:.0%}",
        f"{result.answered} of {result.requests}",
        _notes(result),
    )


def _notes(result: Result) -> str:
    counts = (
        (result.refused, "refused"),
        (result.left, "gave up"),
        (result.cut, "cut short"),
        (len(result.breaches), "invariants broken"),
    )
    return ", ".join(f"{count} {what}" for count, what in counts if count)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table that is also aligned as text; numbers are right-aligned."""
    widths = [max(len(row[at]) for row in [columns, *rows]) for at in range(len(columns))]
    right = [all(_is_number(row[at]) for row in rows) for at in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        )
        return "| " + " | ".join(padded) + " |"

    rule = "|".join(
        "-" * (width + 1) + (":" if to_right else "-")
        for width, to_right in zip(widths, right, strict=True)
    )
    return "\n".join([line(columns), f"|{rule}|", *map(line, rows)])


def _is_number(cell: str) -> bool:
    return not cell or cell[:1].isdigit()
