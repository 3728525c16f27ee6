"""Rows of the summary: what was measured, what was wanted, and whether it was met.

Nothing here touches the machine: values of each round go in, words come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from bench.measure import grid

LSWAP: Final = "lswap up"
"""The peer that is judged."""
GO: Final = "Go ReverseProxy"
NGINX: Final = "nginx"
ROUTER: Final = "llama.cpp router"
PEERS: Final = (GO, NGINX, ROUTER)
"""Those that always have a column, in this order; those of --peer follow."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should be: at most `limit`, or with `least` at least.

    With `over` the limit is a multiple of what that peer scored in the same round.
    """

    limit: float
    over: str = ""
    least: bool = False

    def text(self, unit: str) -> str:
        """Return it as people read it."""
        sign = "≥" if self.least else "≤"
        if self.over:
            factor = "" if self.limit == 1 else f"{self.limit:g} × "
            return f"{sign} {factor}{self.over}"
        return f"{sign} {self.limit:,g} {unit}".rstrip()

    def holds(self, value: float, other: float | None = None) -> bool:
        """Whether one value meets it; `other` is the peer's, if the target is over a peer."""
        limit = self.limit if other is None else self.limit * other
        return value >= limit if self.least else value <= limit


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a row.

    `met` is None where there is no target or where nothing could be compared; `held` counts the
    rounds that met every target, of `rounds`. `ratio` is the median of the rounds' own ratios to
    `peer`; `low` and `high` are the spread of what is judged: the ratio, else the figure itself.
    """

    met: bool | None
    held: int = 0
    rounds: int = 0
    peer: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """A figure in words, what was wanted, and whether it was met (None: nothing was)."""

    figure: str
    wanted: str
    met: bool | None


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: a value a round for every peer that has it. All targets have to be met."""

    figure: str
    values: Mapping[str, Sequence[float]]
    targets: tuple[Target, ...] = ()
    unit: str = ""
    digits: int = 1
    alone: str = ""
    """The arguments of `python -m bench` that measure it alone."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Who is not compared, and why."""
    failed: str = ""
    """Why there is no figure at all."""
    told: Told | None = None
    """A figure in words, judged by who measured it; then there are no values."""

    def judge(self) -> Verdict:
        """Compare with the targets: by the median of all rounds."""
        if self.told is not None:
            return Verdict(self.told.met)
        mine = self.values.get(LSWAP, ())
        if self.failed or not mine:
            return Verdict(None, why=self.failed or "not measured")
        peer = self._compared()
        pairs = _ratios(mine, self.values.get(peer, ()))
        judged: Sequence[float] = pairs or mine
        verdict = Verdict(
            met=None,
            peer=peer if pairs else "",
            ratio=median(pairs) if pairs else None,
            low=min(judged),
            high=max(judged),
        )
        if not self.targets:
            return verdict
        absent = [one.over for one in self.targets if one.over and not self.values.get(one.over)]
        if absent:
            why = self.missing.get(absent[0], "not measured")
            return _with(verdict, None, 0, len(mine), f"{absent[0]}: {why}")
        rounds = [self._round_holds(number) for number in range(len(mine))]
        met = all(self._holds(one, mine) for one in self.targets)
        return _with(verdict, met, sum(rounds), len(rounds), "")

    def _compared(self) -> str:
        """Return the peer of the first target that names one, else the first peer there is."""
        named = [one.over for one in self.targets if one.over]
        if named or self.targets:
            return named[0] if named else ""
        return next((one for one in self.values if one != LSWAP), "")

    def _holds(self, target: Target, mine: Sequence[float]) -> bool:
        if not target.over:
            return target.holds(median(mine))
        theirs = self.values[target.over]
        pairs = _ratios(mine, theirs)
        if 2 * len(pairs) > min(len(mine), len(theirs)):
            return target.holds(median(pairs))
        return target.holds(median(mine), median(theirs))  # nothing, or less, is no divisor

    def _round_holds(self, number: int) -> bool:
        mine = self.values[LSWAP][number]
        for target in self.targets:
            theirs = self.values[target.over] if target.over else ()
            other = theirs[min(number, len(theirs) - 1)] if theirs else None
            if not target.holds(mine, other):
                return False
        return True


def _ratios(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(mine, theirs, strict=False) if b > 0]


def _with(verdict: Verdict, met: bool | None, held: int, rounds: int, why: str) -> Verdict:
    return Verdict(met, held, rounds, verdict.peer, verdict.ratio, verdict.low, verdict.high, why)


# --- in Markdown -------------------------------------------------------------------------------


def summarise(rows: Sequence[Row]) -> str:
    """Return the summary: a table of all rows, what falls short, and who is missing and why."""
    if not rows:
        return "No figure has a row here."
    peers = _peers_of(rows)
    head = ["figure", "target", LSWAP, *peers, "ratio", "spread", "met", "`python -m bench …`"]
    cells = [_cells(row, row.judge(), peers) for row in rows]
    parts = [grid([head, *cells], left=(0, 1, len(head) - 1))]
    if any(_wanted(row) or row.failed for row in rows):
        parts.append(shortfalls(rows))
    absent = {name: why for row in rows for name, why in row.missing.items()}
    if absent:
        listed = "; ".join(f"{name}: {why}" for name, why in absent.items())
        parts.append(f"Not compared everywhere: {listed}.")
    return "\n\n".join(parts)


def shortfalls(rows: Sequence[Row]) -> str:
    """Return what falls short of its target and by how much, and what could not be judged."""
    judged = [(row, row.judge()) for row in rows if _wanted(row) or row.failed]
    short = [f"* {_shortfall(row, found)}" for row, found in judged if found.met is False]
    open_ = [f"* {row.figure}: {found.why}" for row, found in judged if found.met is None]
    met = sum(found.met is True for _, found in judged)
    lines = [f"{met} of {len(judged)} targets are met."]
    if short:
        lines += ["", f"Short of the target: {len(short)}.", "", *short]
    if open_:
        lines += ["", f"Not judged: {len(open_)}.", "", *open_]
    return "\n".join(lines)


def _shortfall(row: Row, found: Verdict) -> str:
    wanted = _wanted(row)
    ratio = "" if found.ratio is None else f" ({found.ratio:.2f} × {found.peer})"
    figure = f"{_figure(row, LSWAP)} {row.unit}".rstrip()
    return f"{row.figure}: {figure}{ratio}, wanted {wanted}"


def _peers_of(rows: Sequence[Row]) -> list[str]:
    """Return every peer that has a figure or is missed, each once; PEERS always."""
    named = {name: None for row in rows for name in (*row.values, *row.missing)}
    return [*PEERS, *(name for name in named if name not in (LSWAP, *PEERS))]


def _cells(row: Row, found: Verdict, peers: Sequence[str]) -> list[str]:
    name = f"{row.figure}, {row.unit}" if row.unit else row.figure
    spread = ""
    if found.low is not None and found.high is not None and found.low != found.high:
        digits = 2 if found.ratio is not None else row.digits
        spread = f"{found.low:,.{digits}f} to {found.high:,.{digits}f}"
    return [
        name,
        _wanted(row),
        _figure(row, LSWAP),
        *(_figure(row, peer) for peer in peers),
        "" if found.ratio is None else f"{found.ratio:.2f}",
        spread,
        _met(row, found),
        f"`{row.alone}`" if row.alone else "",
    ]


def _wanted(row: Row) -> str:
    if row.told is not None:
        return row.told.wanted
    return ", ".join(one.text(row.unit) for one in row.targets)


def _figure(row: Row, peer: str) -> str:
    if row.told is not None and peer == LSWAP:
        return row.told.figure
    values = row.values.get(peer)
    return f"{median(values):,.{row.digits}f}" if values else "-"


def _met(row: Row, found: Verdict) -> str:
    if found.met is None:
        return "not measured" if row.failed else "not judged" if _wanted(row) else "-"
    word = "yes" if found.met else "**NO**"
    unanimous = row.told is not None or found.held == (found.rounds if found.met else 0)
    return word if unanimous else f"{word} ({found.held} of {found.rounds} rounds)"
