"""The scheduler breaks no invariant on any case; and the audit would say so if it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from llamaswap_py.scheduler import Scheduler
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Action, Reject, Stop, StopReason
from llamaswap_py.simulator.audit import Audit
from llamaswap_py.simulator.cases import library
from llamaswap_py.simulator.mixes import GREEDY, bursts, day, leavers, one_against_three
from llamaswap_py.simulator.peers import Collate, Fifo, Peer, Router, fewest_loads, most_runs
from llamaswap_py.simulator.policies import run_case
from llamaswap_py.simulator.run_records import Case, TraceRequest
from llamaswap_py.simulator.runner import simulate
from llamaswap_py.simulator.sequential_traces import (
    B,
    alternating,
    hot_and_rare,
    loop_of_three,
    places,
    random_clients,
    two_hot,
)
from tests.simulator.random_cases import random_case


@pytest.mark.parametrize(
    "case", [case for case in library() if case.name != "a day"], ids=lambda case: case.name
)
def test_no_invariant_is_broken(case: Case) -> None:
    result = run_case(case, "lswap")
    assert result.breaches == ()
    assert 0 < result.eta_used <= 1
    assert result.answered + result.refused + result.left + result.cut == result.requests


def test_part_of_a_day_without_a_breach() -> None:
    result = run_case(day(4 * 3600), "lswap")
    assert result.breaches == ()
    assert result.answered == result.requests


# The first row found defects once: each seed broke invariant 1 or 4 in its own way.
@pytest.mark.parametrize("seed", [46, 327, 330, 344, 421, *range(12)])
@pytest.mark.parametrize("faults", [False, True])
def test_random_cases_break_no_invariant(seed: int, faults: bool) -> None:
    result = run_case(random_case(seed, faults=faults), "lswap")
    assert result.breaches == ()
    assert result.answered + result.refused + result.left + result.cut == result.requests


@pytest.mark.parametrize("seed", range(12))
def test_full_queues_of_random_cases_are_shared(seed: int) -> None:
    """One more client asks for everything at once, and few may wait."""
    case = random_case(seed)
    flood = tuple(
        TraceRequest(client=GREEDY, model=model.name, service=1.0, at=5.0 * burst)
        for burst in range(6)
        for model in case.models
        for _ in range(8)
    )
    policy = replace(case.policy, queue_limit=3)
    result = run_case(replace(case, asks=(*case.asks, *flood), policy=policy), "lswap")
    assert result.breaches == ()
    assert result.refused > 0


def test_a_greedy_client_takes_nothing_from_the_others() -> None:
    """All that is refused is its own; what the others wait is within its bound."""
    case = one_against_three()
    refused: list[str] = []
    asked = {str(at): one.client for at, one in enumerate(case.asks)}

    def watch(event: ev.Event, now: float, actions: list[Action]) -> None:
        refused.extend(asked[one.request] for one in actions if isinstance(one, Reject))

    scheduler = Scheduler([one.plan() for one in case.models], case.pools, case.policy)
    simulate(case, scheduler, "lswap", watch)
    assert len(refused) > 200
    assert set(refused) == {GREEDY}


def test_the_same_case_gives_the_same_result() -> None:
    assert run_case(bursts(), "lswap") == run_case(bursts(), "lswap")


@pytest.mark.parametrize(("clients", "each"), [(2, 120), (3, 120), (16, 60)])
def test_random_clients_swap_hardly_more_than_they_must(clients: int, each: int) -> None:
    loads = least = router = 0
    took = routers = 0.0
    for seed in range(4):
        case = random_clients(clients, each, seed=seed)
        mine, theirs = run_case(case, "lswap"), run_case(case, "router")
        loads, router = loads + mine.loads, router + theirs.loads
        took, routers = took + mine.elapsed, routers + theirs.elapsed
        least += most_runs(case) or 0
    assert loads <= 1.1 * least + 4
    assert loads <= router
    assert took <= 1.01 * routers  # sixteen batch by themselves; with few clients it is far less


def test_one_alternating_client_loses_nothing() -> None:
    case = alternating(1)
    result = run_case(case, "lswap")
    assert result.worst == pytest.approx(2.0 + case.stop)


def test_the_loop_is_close_to_the_optimum() -> None:
    case = loop_of_three()
    assert run_case(case, "lswap").loads <= 1.04 * (fewest_loads(case) or 0)


def test_a_rare_model_is_served_while_another_is_hot() -> None:
    case = hot_and_rare()
    assert run_case(case, "lswap").waits[B] < case.policy.max_wait + 2 * 2.0 + 2.4


def audited(case: Case, peer: Callable[[Case], Peer]) -> list[str]:
    auditor = Audit(case)
    simulate(case, peer(case), "peer", auditor.saw)
    auditor.finish()
    return [breach.partition(":")[0] for breach in auditor.breaches]


class Impatient(Fifo):
    """Stops whatever is in the way."""

    def idle(self) -> list:  # type: ignore[type-arg]
        return [one for one in self.loaded.values() if one.ready]


class Greedy(Fifo):
    """Loads whether there is room or not."""

    def make_room(self, preset: str) -> bool:
        return True


class Last(Router):
    """Serves the newest request of a queue first."""

    def grant_all(self) -> None:
        for request, preset in reversed(list(self.queue.items())):
            if self.serves(preset):
                self.grant(request)


@pytest.mark.parametrize(
    ("case", "peer", "invariant"),
    [
        (bursts(2), Impatient, "1"),
        (bursts(2), Greedy, "2"),
        (hot_and_rare(400), Router, "4"),
        (two_hot(200), Collate, "4"),
        (bursts(2), Last, "6"),
        (leavers(), Fifo, "7"),
    ],
)
def test_the_audit_finds(case: Case, peer: Callable[[Case], Peer], invariant: str) -> None:
    assert invariant in audited(case, peer)


def test_the_audit_finds_an_eviction_that_comes_too_early() -> None:
    class Flighty(Router):
        """Evicts what has just been loaded, while somebody waits for it."""

        def decide(self) -> None:
            for one in list(self.loaded.values()):
                if one.ready and not one.users and one.key.preset in self.queue.values():
                    self.evict(one)
                    self.out[-1] = Stop(one.key, StopReason.EVICTED)
                    return
            super().decide()

    case = replace(random_clients(2, 3), pools=places(1))
    auditor = Audit(case)
    # It never serves anybody: a thousand events are enough.
    peer = Flighty(case)
    seen = 0

    class Enough(Exception):
        pass

    def watch(*what: object) -> None:
        nonlocal seen
        auditor.saw(*what)  # type: ignore[arg-type]
        seen += 1
        if seen > 1000:
            raise Enough

    with pytest.raises(Enough):
        simulate(case, peer, "flighty", watch)
    assert any(breach.startswith("5:") for breach in auditor.breaches)
