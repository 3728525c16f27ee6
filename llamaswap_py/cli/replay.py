"""`lswap simulate --replay`: replays a recorded run, and compares the decisions."""

from __future__ import annotations

import io
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import msgspec

from llamaswap_py import __version__
from llamaswap_py.cli.tables import print_table
from llamaswap_py.cli.version import commit, lswap_text
from llamaswap_py.errors import ConfigError
from llamaswap_py.scheduler.actions import Grant, Note, Reject
from llamaswap_py.scheduler.recording import read_head, read_steps
from llamaswap_py.simulator.replay import replay
from llamaswap_py.storage.regular_files import open_regular
from llamaswap_py.units import showable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from llamaswap_py.scheduler.recording import RecordHead
    from llamaswap_py.simulator.replay import Difference, Replayed

_COLUMNS = ("line", "seconds", "event", "decision", "model", "reason")


class DecisionRow(msgspec.Struct, kw_only=True):
    """One decision of a replay. `seconds` count from the beginning of the record."""

    line: int
    seconds: float
    event: str
    decision: str
    model: str
    reason: str


class ReplayReport(msgspec.Struct, kw_only=True):
    """The result of a replay. `trouble` has events that failed, and invariants that broke."""

    lswap: str
    commit: str | None
    at: float
    models: tuple[str, ...]
    events: int = 0
    granted: int = 0
    decisions: list[DecisionRow] = msgspec.field(default_factory=list)
    trouble: list[str] = msgspec.field(default_factory=list)
    differs_at: int | None = None
    difference: Difference | None = None


def run(path: Path, *, first: int = 1, last: int | None = None, as_json: bool = False) -> bool:
    """Print the decisions in lines `first` to `last` of a record; return False if any is wrong.

    Raises ConfigError before it prints, if the file is not a whole record.
    """
    report = _replay(path, first, last)
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        _print(report)
    return report.difference is None and not report.trouble


def _replay(path: Path, first: int, last: int | None) -> ReplayReport:
    with _record(path) as (head, lines):
        report = ReplayReport(
            lswap=head.lswap,
            commit=head.commit,
            at=head.at,
            models=tuple(str(one.preset) for one in head.plans),
        )
        steps = read_steps(lines, str(path), until=last)
        for one in replay(head, steps, str(path)):
            report.events += 1
            report.granted += sum(isinstance(action, Grant) for action in one.actions)
            if one.line >= first:
                report.decisions += _rows(one)
            if one.raised:
                report.trouble.append(f"line {one.line}: the scheduler failed: {one.raised}")
            if one.broken:
                report.trouble.append(f"line {one.line}: an invariant is broken: {one.broken}")
            if one.difference is not None:
                report.differs_at, report.difference = one.line, one.difference
                return report
    return report


@contextmanager
def _record(path: Path) -> Iterator[tuple[RecordHead, Iterable[bytes]]]:
    """Open a record, and yield its head and the lines after it; raises ConfigError."""
    try:
        with open_regular(path) as file:
            lines = io.BufferedReader(cast("io.FileIO", file))
            yield read_head(lines.readline(), str(path), reader=__version__), lines
    except OSError as error:
        message = f"the record cannot be read: {error.strerror}"
        raise ConfigError(message, where=str(path)) from None


def _rows(one: Replayed) -> Iterator[DecisionRow]:
    """Yield the decisions of one step: those with a reason, and the refusals of requests."""
    event = type(one.event).__name__

    def row(decision: str, model: str, reason: str) -> DecisionRow:
        return DecisionRow(
            line=one.line,
            seconds=round(one.seconds, 3),
            event=event,
            decision=decision,
            model=model,
            reason=reason,
        )

    for action in one.actions:
        if isinstance(action, Note):
            told = action.decision
            epoch = "" if told.epoch is None else f"#{told.epoch}"
            yield row(told.kind, f"{told.preset}{epoch}", told.reason)
        elif isinstance(action, Reject):
            yield row(action.code, action.preset, action.message)


def _print(report: ReplayReport) -> None:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(report.at))
    models = ", ".join(report.models)
    print(showable(f"recorded {when} by {_lswap(report)}; models: {models}\n"))
    print_table(_COLUMNS, [_cells(row) for row in report.decisions])
    print(f"\n{report.events:,} events, {report.granted:,} requests granted")
    for line in report.trouble:
        print(showable(line))
    if report.difference is None:
        print("all decisions are the same as recorded")
        return
    print(showable(f"line {report.differs_at} is the first that differs:"))
    print(showable(f"  recorded: {report.difference.recorded or 'nothing more'}"))
    print(showable(f"  replayed: {report.difference.replayed or 'nothing more'}"))
    if (report.lswap, report.commit) != (__version__, commit()):
        print(f"the record is from {_lswap(report)}, and this is {lswap_text()}")


def _lswap(report: ReplayReport) -> str:
    known = report.commit
    return f"lswap {report.lswap}" + (f" (commit {known})" if known else "")


def _cells(row: DecisionRow) -> tuple[str, ...]:
    words: list[Any] = [row.line, f"{row.seconds:.3f}", row.event, row.decision, row.model]
    return *map(str, words), showable(row.reason).replace("\n", " ")
