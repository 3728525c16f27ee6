"""The cases of the table in docs/scheduling.md, each hard for some scheduler."""

from __future__ import annotations

from llamaswap_py.simulator import mixes, sequential_traces
from llamaswap_py.simulator.run_records import Case


def library() -> tuple[Case, ...]:
    """Return every case of the table, in its order."""
    return (
        sequential_traces.random_clients(2, 120),
        sequential_traces.random_clients(3, 120),
        sequential_traces.random_clients(16, 60),
        sequential_traces.alternating(1),
        sequential_traces.alternating(2),
        sequential_traces.loop_of_three(),
        sequential_traces.agent_loops(),
        mixes.poisson_mix(),
        sequential_traces.hot_and_rare(),
        sequential_traces.two_hot(),
        sequential_traces.long_loads(),
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
