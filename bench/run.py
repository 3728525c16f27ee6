"""One run of the benchmarks: where it happens, who takes part, and what each part hands back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Rounds
from bench.peer_option import PeerOption
from bench.rows import LSWAP, Row, Target
from bench.workplace import BenchError, Workplace
from llamaswap_py.llamacpp.binaries import Engine


@dataclass(frozen=True, slots=True)
class Section:
    """What a part hands back: a table to read, and the rows of it that have targets."""

    table: str = ""
    rows: Sequence[Row] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """What every part gets. `engine` is a llama-server, or why there is none."""

    place: Workplace
    rounds: int
    note: Callable[[str], None]
    engine: Engine | str
    models: Mapping[str, Path]
    """Two tiny real models, by name."""
    upstream: int
    """The TCP port of the stub; peers that can take its unix socket."""
    further_peers: Sequence[PeerOption] = ()
    quick: bool = False

    @property
    def llama_server(self) -> Engine:
        """The llama-server. Raises BenchError where there is none."""
        if isinstance(self.engine, str):
            raise BenchError(self.engine)
        return self.engine


Part = Callable[[Run], Iterable[Section]]


def row(
    scores: Rounds,
    figure: str,
    name: str,
    *targets: Target,
    peers: Iterable[str],
    unit: str = "",
    digits: int = 1,
    alone: str = "",
    missing: Mapping[str, str] | None = None,
) -> Row:
    """Make a row of a figure of `scores`: lswap's values, and those of some peers."""
    scored = scores.values.get(figure, {})
    shown = [LSWAP, *(peer for peer in peers if peer != LSWAP)]
    return Row(
        figure=name,
        values={peer: scored[peer] for peer in shown if peer in scored},
        targets=targets,
        unit=unit,
        digits=digits,
        alone=alone,
        missing=missing or {},
    )
