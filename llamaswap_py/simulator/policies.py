"""Runs one case under a policy given by name; lswap's own is audited."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from llamaswap_py.scheduler import Scheduler
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Action
from llamaswap_py.scheduler.invariants import check
from llamaswap_py.simulator.audit import Audit
from llamaswap_py.simulator.peers import Collate, Fifo, KeepAlive, Router
from llamaswap_py.simulator.run_records import Case, Result
from llamaswap_py.simulator.runner import StuckError, Subject, simulate

LSWAP: Final = "lswap"
PEERS: Final[Mapping[str, Callable[[Case], Subject]]] = {
    "fifo": Fifo,
    "router": Router,
    "collate": Collate,
    "keep-alive": KeepAlive,
}
POLICIES: Final = (LSWAP, *PEERS)


def run_case(case: Case, policy: str, *, audit: bool = True) -> Result:
    """Run `case` under one of POLICIES; raises StuckError if requests never end.

    lswap's own scheduler is audited: its result carries the breaches found, and `eta_used`.
    """
    if policy != LSWAP:
        return simulate(case, PEERS[policy](case), policy)
    scheduler = _scheduler(case)
    if not audit:
        return simulate(case, scheduler, policy)
    auditor = Audit(case)

    def watch(event: ev.Event, now: float, actions: list[Action]) -> None:
        auditor.saw(event, now, actions)
        check(scheduler)

    result = simulate(case, scheduler, policy, watch)
    auditor.finish()
    return replace(result, eta_used=auditor.eta_used, breaches=tuple(auditor.breaches))


def _scheduler(case: Case) -> Scheduler:
    """Return lswap's scheduler, with the load times that `lswap up` works out from file sizes.

    Here they are exact; in `lswap up` they are estimates.
    """
    plans = [one.plan() for one in case.models]
    scheduler = Scheduler(plans, case.pools, case.policy)
    for model, plan in zip(case.models, plans, strict=True):
        seeded = ev.ChoicesEstimated(model.name, plan.choices, model.load, seeded=True)
        scheduler.handle(seeded, 0.0)
    return scheduler


__all__ = ["LSWAP", "PEERS", "POLICIES", "StuckError", "run_case"]
