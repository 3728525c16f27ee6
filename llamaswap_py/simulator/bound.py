"""Computes the longest wait of a request when it arrives, as invariant 4 promises it.

An incumbent is an instance that holds the memory. None keeps its gate open against the same waiter
longer than max(`max_wait`, 2 × its load time). Then come its drain, the loads of older waiters, and
the waiter's own load. `stop` is the time in which a child ends, `drain` its longest open request
(at most its `drain_timeout`, and the grace after it):

    bound = gate + put off + rounds of older presets + own rounds + own queue

    gate        max_wait, and of the worst incumbent: its load if it is still loading,
                2 × its load, drain, stop
    put off     presets whose requests came at most one own load later may go first, if more wait
                for them; the last of these has a round. A priority below the highest of the case
                adds the time until waiting has raised it to that: `max_wait` for each level
    round(q)    stop + load + 2 × load + drain: an older waiter's preset comes first, and is an
                incumbent itself when it is ready; `max_wait` is counted once, in `gate`
    rounds(q)   as many as are needed to serve the older waiters: one residency serves at least
                slots × max(1, 2 × load ÷ longest service), and clients take turns, so that a
                client's k-th request has at most k × clients turns before it
    own rounds  the same for its own queue; between two of its own rounds there is one of another
                preset, because other waiters are younger by then
    own queue   its turns ÷ slots × longest service

Each death that the case describes adds a load and the pause before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llamaswap_py.scheduler.types import ClientId, PresetId, RequestId
from llamaswap_py.simulator.run_records import Case, Model


@dataclass(slots=True, eq=False)
class WaitingRequest:
    """A request that waits since `since`; `order` is its place among all arrivals and turns."""

    request: RequestId
    preset: PresetId
    client: ClientId
    slot: bool
    since: float
    order: int
    came_back: bool = False
    priority: int = 0
    bound: float = 0.0


@dataclass(frozen=True, slots=True)
class Incumbent:
    """An instance that holds memory when a request arrives."""

    preset: PresetId
    ready: bool
    stopping: bool


class Bound:
    """Computes bounds for one case; knows the longest service and the clients of each model."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.models = {one.name: one for one in case.models}
        self._service = dict.fromkeys(self.models, 0.0)
        clients: dict[PresetId, set[ClientId]] = {name: set() for name in self.models}
        parents = {ask.parent for ask in case.asks} - {None}
        for ask in case.asks:
            model = self.models[ask.model]
            limit = model.drain_timeout + case.policy.revoke_grace
            service = limit if ask.name in parents else min(ask.service, limit)
            self._service[ask.model] = max(self._service[ask.model], service)
            clients[ask.model].add(ask.client)
        self._clients = {name: len(found) for name, found in clients.items()}
        self._rounds = {name: self._round(one) for name, one in self.models.items()}
        self._worst_round = max(self._rounds.values())
        self._highest = max(self._rank(ask.model, ask.priority) for ask in case.asks)
        self._faults = sum(
            len(one.faults) * (self._rounds[one.name] + case.policy.backoff_last)
            for one in case.models
        )

    def together(self, one: PresetId, other: PresetId) -> bool:
        """Return whether two models fit together in empty memory."""
        first, second = self.models[one].footprint, self.models[other].footprint
        return all(
            first.get(name, 0) + second.get(name, 0) <= pool.total - pool.margin
            for name, pool in self.case.pools.items()
        )

    def of(
        self,
        waiter: WaitingRequest,
        queues: Mapping[PresetId, Mapping[RequestId, WaitingRequest]],
        incumbents: Sequence[Incumbent],
    ) -> float:
        """Return how many seconds `waiter` may wait from its `since` on."""
        gate = self.case.policy.max_wait + max(map(self._incumbent, incumbents), default=0.0)
        older = sum(
            self._rounds[name] * self._how_many(name, max(self._rows(row.values()).values()))
            for name, row in queues.items()
            if name != waiter.preset
        )
        row = queues.get(waiter.preset, {})
        ahead = self._rows(row.values()).get(waiter.client, 0) + 1
        own = self._how_many(waiter.preset, ahead)
        model = self.models[waiter.preset]
        queue = self._turns(waiter.preset, ahead) / model.slots * self._service[waiter.preset]
        max_wait = self.case.policy.max_wait
        below = self._highest - self._rank(waiter.preset, waiter.priority)
        put_off = min(model.load, max_wait) + self._worst_round + below * max_wait
        between = (own - 1) * self._worst_round
        return (
            gate
            + put_off
            + older
            + own * self._rounds[waiter.preset]
            + between
            + queue
            + self._faults
        )

    def _rank(self, preset: PresetId, priority: int) -> int:
        return self.models[preset].plan().priority + priority

    def _round(self, model: Model) -> float:
        return self.case.stop + 3 * model.load + self._service[model.name]

    def _incumbent(self, one: Incumbent) -> float:
        model = self.models[one.preset]
        if one.stopping:
            return self.case.stop
        loading = 0.0 if one.ready else model.load
        return loading + 2 * model.load + self._service[one.preset] + self.case.stop

    def _turns(self, preset: PresetId, ahead: int) -> int:
        return ahead * self._clients[preset]

    def _how_many(self, preset: PresetId, ahead: int) -> int:
        """Return after how many residencies a client's `ahead`-th request gets its turn."""
        model = self.models[preset]
        service = self._service[preset]
        turns = max(math.floor(2 * model.load / service), 1) if service else 1
        return math.ceil(self._turns(preset, ahead) / (model.slots * turns))

    @staticmethod
    def _rows(waiting: Iterable[WaitingRequest]) -> dict[ClientId, int]:
        rows: dict[ClientId, int] = {}
        for one in waiting:
            rows[one.client] = rows.get(one.client, 0) + 1
        return rows
