"""The simulated world: times add up, leavers leave, what dies is counted, nothing hangs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Action
from llamaswap_py.scheduler.types import ClientId
from llamaswap_py.simulator.measure import quantile
from llamaswap_py.simulator.mixes import nested
from llamaswap_py.simulator.policies import POLICIES, run_case
from llamaswap_py.simulator.run_records import Case, SimulatedCrash, TraceRequest
from llamaswap_py.simulator.runner import StuckError, simulate
from llamaswap_py.simulator.sequential_traces import A, B, places, uniform_models


def ask(client: str = "c", at: float | None = None, **knobs: object) -> TraceRequest:
    think = None if at is not None else 0.0
    fields: dict[str, object] = {"model": A, "service": 1.0, "think": think, **knobs}
    return TraceRequest(client=ClientId(client), at=at, **fields)  # type: ignore[arg-type]


def case(*asks: TraceRequest, slots: int = 1, load: float = 2.0, room: int = 1) -> Case:
    return Case(
        name="case",
        models=uniform_models("ab", load, slots=slots),
        pools=places(room),
        asks=asks,
        stop=0.5,
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_waits_are_loads_and_turns(policy: str) -> None:
    result = run_case(case(ask("x", at=0.0), ask("y", at=0.0)), policy)
    assert (result.p50, result.worst) == (2.0, 3.0)
    assert (result.loads, result.swaps, result.elapsed) == (1, 0, 4.0)
    assert result.lost == pytest.approx(0.5)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_swap_is_a_stop_and_a_load(policy: str) -> None:
    result = run_case(case(ask(), ask(model=B)), policy)
    assert (result.loads, result.swaps) == (2, 1)
    assert result.worst == pytest.approx(2.5)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_closed_loop_asks_after_the_answer(policy: str) -> None:
    result = run_case(case(ask(), ask(think=5.0)), policy)
    assert result.elapsed == pytest.approx(2 + 1 + 5 + 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_who_gives_up_waits_no_longer(policy: str) -> None:
    result = run_case(case(ask(gives_up_after=1.0)), policy)
    assert (result.answered, result.left, result.elapsed) == (0, 1, 1.0)


def test_a_death_ends_what_it_served() -> None:
    models = tuple(
        replace(one, faults=(SimulatedCrash(1, 2.5),)) for one in uniform_models("a", 2.0)
    )
    dying = replace(case(ask(), ask(think=3.0)), models=models)
    result = run_case(dying, "lswap")
    assert (result.cut, result.answered, result.loads) == (1, 1, 2)


def test_a_request_that_takes_no_slot_is_not_held_up() -> None:
    busy = [ask("x", at=0.0, service=30.0), ask("y", at=5.0, service=0.1, slot=False)]
    assert run_case(case(*busy), "lswap").waits[A] == 2.0


def test_a_nested_request_that_names_its_parent_is_refused_at_once() -> None:
    result = run_case(nested(3), "lswap")
    assert (result.refused, result.cut, result.answered) == (3, 0, 3)


def test_a_nested_request_that_does_not_ends_its_parent_at_the_drain_deadline() -> None:
    result = run_case(nested(3, named=False), "lswap")
    assert (result.refused, result.cut, result.answered) == (0, 3, 3)
    assert result.worst < 20 + 2 * 2.0 + 10


class Silent:
    """A policy that does nothing, or only asks to be woken."""

    def __init__(self, wake: float | None) -> None:
        self.wake = wake

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        return []

    def deadline(self) -> float | None:
        return self.wake


@pytest.mark.parametrize(("wake", "words"), [(None, "never end"), (0.0, "woken without end")])
def test_a_policy_that_does_nothing_is_found_out(wake: float | None, words: str) -> None:
    with pytest.raises(StuckError, match=words):
        simulate(case(ask()), Silent(wake), "silent")


def test_quantiles() -> None:
    values = [float(one) for one in range(1, 101)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1.0)) == (50, 99, 100)
    assert quantile([], 0.5) == 0.0
