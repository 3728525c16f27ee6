"""The cases of the table in docs/scheduling.md, each hard for some scheduler."""

from __future__ import annotations

from llamaswap_py.simulator import mixes, traces
from llamaswap_py.simulator.run_records import Case


def library() -> tuple[Case, ...]:
    """Return every case of the table, in its order."""
    return (
        traces.random_clients(2, 120),
        traces.random_clients(3, 120),
        traces.random_clients(16, 60),
        traces.alternating(1),
        traces.alternating(2),
        traces.loop_of_three(),
        traces.agent_loops(),
        mixes.poisson_mix(),
        traces.hot_and_rare(),
        traces.two_hot(),
        traces.long_loads(),
        mixes.bursts(),
        mixes.sessions(),
        mixes.big_and_small(),
        mixes.crashes(),
        mixes.leavers(),
        mixes.one_against_three(),
        mixes.nested(),
        mixes.nested(named=False),
        mixes.day(),
    )
