"""A day under virtual time: is more memory ever promised than there is, the margin left out?"""

from __future__ import annotations

from collections.abc import Iterator

from bench.rows import LSWAP, Row, Target
from bench.run import Run, Section
from llamaswap_py.simulator.cases import library
from llamaswap_py.simulator.policies import LSWAP as POLICY
from llamaswap_py.simulator.policies import run_case


def measure_day(run: Run) -> Iterator[Section]:
    """Run the longest case of the simulator's library; every event of it is audited."""
    case = next(one for one in library() if one.name == "a day")
    run.note("a simulated day")
    result = run_case(case, POLICY)
    hours = result.elapsed / 3600
    row = Row(
        f"margin violated, or another invariant broken, in {hours:.0f} simulated hours, "
        f"{result.requests:,} requests",
        {LSWAP: [float(len(result.breaches))]},
        (Target(0),),
        digits=0,
        alone="day",
    )
    yield Section(rows=[row])
