"""Traces on which the scheduler was or is weak, and what it does with them today.

They are the measure for every change of the scheduler: `bench/traces` has them with their models.
A figure that changes is changed here too, in the commit that changes it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from llamaswap_py.cli.simulate import case_of
from llamaswap_py.scheduler.types import ClientId, PresetId
from llamaswap_py.simulator.policies import LSWAP, run_case
from llamaswap_py.simulator.run_records import Case, Result
from llamaswap_py.simulator.trace_file import parse_trace
from tests.simulator.random_cases import random_case

TRACES = Path(__file__).parents[2] / "bench/traces"


class Known(NamedTuple):
    """What happens to a trace: loads, answers cut, requests unanswered; waits of `client`."""

    loads: int
    cut: int
    unanswered: int
    client: str
    mean: float
    worst: float


KNOWN = {
    "1-pollution": Known(3, 0, 0, "", 0.18, 8.05),
    "2-drain-convoy-and-cut": Known(3, 1, 1, "s", 14.7, 140.56),
    "3-retry-livelock": Known(29, 0, 2, "", 0.52, 29.65),
    "5-convoy-slow-load": Known(3, 0, 0, "", 19.34, 84.1),
    "6-priority-ignored": Known(13, 0, 0, "human", 11.1, 25.55),
    "7-idle-expensive": Known(21, 0, 0, "", 3.28, 40.0),
    "8-variants": Known(82, 0, 0, "", 3.38, 12.05),
}


def case(name: str) -> Case:
    return case_of(TRACES / f"{name}.models.yaml", TRACES / f"{name}.jsonl")


@cache
def result(name: str, policy: str = LSWAP) -> Result:
    return run_case(case(name), policy)


@pytest.mark.parametrize("name", KNOWN)
def test_what_lswap_does_with_it(name: str) -> None:
    known, found = KNOWN[name], result(name)
    assert found.breaches == ()
    assert (found.loads, found.cut) == (known.loads, known.cut)
    assert found.requests - found.answered == known.unanswered
    mean = found.client_means[ClientId(known.client)] if known.client else found.mean
    assert mean == pytest.approx(known.mean, rel=0.05)
    assert found.worst == pytest.approx(known.worst, rel=0.05)


def with_memory(case: Case, factor: float) -> Case:
    pools = {name: replace(one, total=int(one.total * factor)) for name, one in case.pools.items()}
    return replace(case, pools=pools)


@pytest.mark.parametrize("gib", [24, 25, 26, 27, 28])
def test_more_memory_does_not_evict_what_is_slow_to_load(gib: int) -> None:
    """In the seventh an idle model that loads in 40 s stands beside busy ones that load in 2 s."""
    name = "7-idle-expensive"
    found = run_case(with_memory(case(name), gib / 28), LSWAP)
    assert found.breaches == ()
    assert found.mean == pytest.approx(3.3, rel=0.05)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("factor", [1.2, 2.0])
def test_more_memory_is_not_worse(seed: int, factor: float) -> None:
    less = random_case(seed)
    before, after = run_case(less, LSWAP), run_case(with_memory(less, factor), LSWAP)
    assert after.breaches == ()
    assert after.mean <= before.mean * 1.05 + 0.05


@pytest.mark.parametrize(
    ("name", "peer", "loads"), [("1-pollution", "fifo", 3), ("1-pollution", "router", 3)]
)
def test_what_others_do_with_it(name: str, peer: str, loads: int) -> None:
    assert result(name, peer).loads == loads


def test_a_nested_request_does_not_wait_for_its_own_parent() -> None:
    """As the seventh, but the request for q is made in one that p answers."""
    lines = (
        '{"client": "u", "model": "s", "at": 0, "service": 2}',
        '{"client": "u", "model": "s", "at": 60, "service": 2}',
        '{"client": "v", "model": "p", "at": 65, "service": 20, "id": "outer"}',
        '{"client": "v", "model": "q", "think": 1, "service": 1, "parent": "outer"}',
    )
    asks = parse_trace("\n".join(lines), ("s", "p", "q"))
    found = run_case(replace(case("7-idle-expensive"), asks=asks), LSWAP)
    assert found.breaches == ()
    assert found.waits[PresetId("q")] < 3, "its own load takes 2 s"
