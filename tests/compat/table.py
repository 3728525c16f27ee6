"""The table of builds in docs/compatibility.md, from what the tests of each build said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from tests.compat.engines import Build
from tests.compat.rows import ROWS, Row

YES: Final = "yes"
_FAILED: Final = "fails"
_MISSING: Final = "no"
_NOT_RUN: Final = "?"


class Outcome(NamedTuple):
    """What became of one test: `passed`, `failed` or `skipped`, and why."""

    outcome: str
    why: str = ""


class Run(NamedTuple):
    """The tests of one build: the day, the engine's label, and what became of each test."""

    date: str
    label: str
    outcomes: Mapping[str, Outcome]


class Cell(NamedTuple):
    """One row with one build: a word, and a reason for all but YES."""

    word: str
    why: str = ""


def cell_of(row: Row, outcomes: Mapping[str, Outcome]) -> Cell:
    """Return what the tests of a row come to: a failure counts before a skip."""
    found: list[Outcome] = []
    for name in row.tests:
        mine = [one for test, one in outcomes.items() if _is(test, name)]
        if not mine:
            return Cell(_NOT_RUN, f"{name.rpartition('::')[2]} did not run")
        found += mine
    for word, outcome in ((_FAILED, "failed"), (_MISSING, "skipped")):
        if wrong := next((one for one in found if one.outcome == outcome), None):
            return Cell(word, wrong.why)
    return Cell(YES)


def _is(test: str, name: str) -> bool:
    """Tell whether a test is meant by a name, which may end within its parameters."""
    return test == name or test.startswith(f"{name}[") or ("[" in name and test.startswith(name))


def section(runs: Mapping[Build, Run], rows: Sequence[Row] = ROWS) -> str:
    """Return the table, and below it what is missing, with the oldest build that has it."""
    builds = list(runs)
    dates = sorted({run.date for run in runs.values()})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    tests = max(len(run.outcomes) for run in runs.values())
    head = [f"{build.ref}<br>{build.date}" for build in builds]
    lines = [
        f"Run on {when} with llama.cpp built for the processor: {tests} tests for each build.",
        "",
        f"| | {' | '.join(head)} |",
        f"|---|{'---|' * len(builds)}",
    ]
    notes: list[str] = []
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            lines.append(f"| **{group}** |{' |' * len(builds)}")
        cells = {build: cell_of(row, runs[build].outcomes) for build in builds}
        lines.append(f"| {row.text} | {' | '.join(_words(cells, notes))} |")
    lines += ["", *(f"{at}. {note}" for at, note in enumerate(notes, 1))]
    return "\n".join(lines).rstrip() + "\n"


def _words(cells: Mapping[Build, Cell], notes: list[str]) -> list[str]:
    """Return the cells of a row; each new reason gets a note."""
    numbers: dict[str, int] = {}
    for cell in cells.values():
        if cell.word != YES and cell.why not in numbers:
            having = [build.ref for build in cells if cells[build].word == cell.word]
            with_it = next((build.ref for build, one in cells.items() if one.word == YES), "")
            oldest = f"The oldest of these builds that has it: {with_it}." if with_it else ""
            why = cell.why.rstrip(".")
            notes.append(f"{', '.join(having)}: {why}. {oldest}".strip())
            numbers[cell.why] = len(notes)
    return [
        YES if cell.word == YES else f"{cell.word} ({numbers[cell.why]})" for cell in cells.values()
    ]


def oldest_whole(runs: Mapping[Build, Run], rows: Sequence[Row] = ROWS) -> Build | None:
    """Return the oldest build with which no test failed."""
    for build, run in runs.items():
        if all(cell_of(row, run.outcomes).word in (YES, _MISSING) for row in rows):
            return build
    return None
