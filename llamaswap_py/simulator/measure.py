"""Counts and times of one run, and their summary."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llamaswap_py.scheduler.types import ClientId, PresetId
from llamaswap_py.simulator.run_records import Case, Result, TraceRequest


class Meter:
    """Collects counts and times; `result` returns the summary."""

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self.events = 0
        self.refused = 0
        self.left = 0
        self.cut = 0
        self.loads = 0
        self.swaps = 0
        self._waits: list[float] = []
        self._worst: dict[PresetId, float] = {}
        self._of_clients: dict[ClientId, list[float]] = {}
        self._began: float | None = None
        self._last = 0.0
        self._moving = 0
        self._since = 0.0
        self._lost = 0.0
        self._filled = False

    def asked(self, now: float) -> None:
        """Note that a request came."""
        if self._began is None:
            self._began = now

    def answered(self, ask: TraceRequest, wait: float) -> None:
        """Note that a request was served after `wait` seconds."""
        self._waits.append(wait)
        self._worst[ask.model] = max(wait, self._worst.get(ask.model, 0.0))
        self._of_clients.setdefault(ask.client, []).append(wait)

    def ended(self, now: float) -> None:
        """Note that a request ended, and how."""
        self._last = now

    def spawned(self, now: float) -> None:
        """Note that a child began to load."""
        self.loads += 1
        self.swaps += self._filled
        self._move(now)

    def stopped(self, now: float, *, loading: bool) -> None:
        """Note that a child began to stop. If it was `loading`, its lost time has begun already."""
        self._filled = True
        if not loading:
            self._move(now)

    def settled(self, now: float) -> None:
        """Note that a child is ready, or has ended."""
        self._moving -= 1
        if not self._moving:
            self._lost += now - self._since

    def result(self, case: Case, policy: str) -> Result:
        """Return the summary."""
        waits = sorted(self._waits)
        elapsed = self._last - (self._began or 0.0)
        lost = self._lost + (max(self._last - self._since, 0.0) if self._moving else 0.0)
        return Result(
            case=case.name,
            policy=policy,
            requests=self.requests,
            answered=len(waits),
            refused=self.refused,
            left=self.left,
            cut=self.cut,
            loads=self.loads,
            swaps=self.swaps,
            mean=math.fsum(waits) / len(waits) if waits else 0.0,
            p50=quantile(waits, 0.5),
            p99=quantile(waits, 0.99),
            worst=waits[-1] if waits else 0.0,
            lost=min(lost / elapsed, 1.0) if elapsed > 0 else 0.0,
            elapsed=elapsed,
            events=self.events,
            waits=self._worst,
            client_means={
                client: math.fsum(waits) / len(waits) for client, waits in self._of_clients.items()
            },
        )

    def _move(self, now: float) -> None:
        if not self._moving:
            self._since = now
        self._moving += 1


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the sorted values do not exceed."""
    if not ordered:
        return 0.0
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]
