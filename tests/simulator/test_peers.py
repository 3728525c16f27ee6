"""The reference policies do what their peers were measured to do."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest

from llamaswap_py.scheduler.types import ClientId
from llamaswap_py.simulator.mixes import sessions
from llamaswap_py.simulator.peers import fewest_loads, most_runs, safe_count
from llamaswap_py.simulator.policies import PEERS, run_case
from llamaswap_py.simulator.run_records import Case, TraceRequest
from llamaswap_py.simulator.sequential_traces import (
    A,
    B,
    alternating,
    hot_and_rare,
    loop_of_three,
    places,
    random_clients,
    uniform_models,
)


@pytest.mark.parametrize(("clients", "each", "measured"), [(2, 60, 59), (3, 60, 64), (16, 20, 14)])
def test_the_router_swaps_as_often_as_llama_cpps(clients: int, each: int, measured: int) -> None:
    """Tiny real models: loads of some 50 ms, answers of 20 ms, clients that ask again in 3 ms."""
    swaps = [
        run_case(
            replace(
                random_clients(clients, each, load=0.05, service=0.02, think=0.003, seed=seed),
                stop=0.01,
            ),
            "router",
        ).swaps
        for seed in range(20)
    ]
    assert mean(swaps) == pytest.approx(measured, rel=0.15)


def burst(number: int) -> Case:
    asks = tuple(
        TraceRequest(client=ClientId(f"c{at}"), model=(A, B)[at % 2], service=0.1, at=0.001 * at)
        for at in range(number)
    )
    return Case(name="burst", models=uniform_models("ab", 0.5), pools=places(1), asks=asks)


def test_collating_loads_as_llama_swap_does() -> None:
    """8 loads for 8 alternating requests one after another, 2 for the same at once."""
    assert run_case(alternating(1, 8), "collate").loads == 8
    assert run_case(burst(8), "collate").loads == 2


def test_strict_order_loads_for_every_change() -> None:
    assert run_case(burst(8), "fifo").loads == 8
    assert run_case(burst(8), "keep-alive").loads == 8


def test_the_router_starves_and_strict_order_does_not() -> None:
    case = hot_and_rare(seconds=300)
    assert run_case(case, "router").waits[B] > 200
    assert run_case(case, "fifo").waits[B] < 10


def test_counting_is_as_careful_as_the_largest_models_need() -> None:
    case = sessions()
    largest = sorted(one.footprint["gpu"] for one in case.models)  # type: ignore[index]
    room = sum(one.total - one.margin for one in case.pools.values())
    number = safe_count(case)
    assert sum(largest[-number:]) <= room < sum(largest[-number - 1 :])


def test_an_idle_model_is_unloaded_when_its_keep_alive_ends() -> None:
    models = tuple(replace(one, ttl=10.0) for one in uniform_models("a", 0.5))
    asks = tuple(
        TraceRequest(client=ClientId("c"), model=A, service=1.0, at=at) for at in (0.0, 9.0, 40.0)
    )
    case = Case(name="idle", models=models, pools=places(1), asks=asks)
    assert run_case(case, "keep-alive").loads == 2
    assert run_case(case, "router").loads == 1


def test_optimum_of_the_loop() -> None:
    case = loop_of_three(100)
    assert fewest_loads(case) == 151
    assert run_case(case, "router").loads == 300
    assert most_runs(case) is None  # two fit


def test_fewest_loads_says_nothing_of_several_clients() -> None:
    assert fewest_loads(alternating(2)) is None
    assert fewest_loads(alternating(1, 8)) == 8


@pytest.mark.parametrize("policy", PEERS)
def test_no_policy_loads_less_than_the_longest_row_of_runs(policy: str) -> None:
    case = random_clients(3, 30)
    least = most_runs(case)
    assert least is not None
    assert run_case(case, policy).loads >= least
