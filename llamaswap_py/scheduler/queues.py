"""The queue of one preset: each client's requests keep their order, clients take turns.

A client is a principal: a key, or an address. Its level is the places that it holds divided by its
weight, rounded up. In a full queue no client is refused while another client's level is higher than
the level that the refused client would reach. Waiting raises a request's priority (ageing).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import islice

import msgspec

from llamaswap_py.scheduler.types import ClientId, RequestId


class QueuePlaces:
    """Places by client; it finds the client of the highest level without a search."""

    __slots__ = ("_held", "_levels", "_top")

    def __init__(self) -> None:
        self._held: dict[ClientId, tuple[int, int]] = {}
        self._levels: dict[int, dict[ClientId, None]] = {}
        self._top = 0

    def held(self, client: ClientId) -> int:
        """Return how many places a client holds."""
        return self._held.get(client, (0, 1))[0]

    def level(self, client: ClientId) -> int:
        """Return the level of a client; 0 for one that holds nothing."""
        return _level(*self._held.get(client, (0, 1)))

    def level_with_one_more(self, client: ClientId, weight: int) -> int:
        """Return the level that a client would have with one more place."""
        return _level(self.held(client) + 1, weight)

    def most(self) -> ClientId | None:
        """Return the client of the highest level; of several, the one that reached it last."""
        at_top = self._levels.get(self._top)
        return next(reversed(at_top)) if at_top else None

    def add(self, client: ClientId, weight: int) -> None:
        """A client takes one more place."""
        self._change(client, 1, weight)

    def remove(self, client: ClientId) -> None:
        """A client gives a place back."""
        self._change(client, -1, self._held[client][1])

    def _change(self, client: ClientId, by: int, weight: int) -> None:
        old = self._held.get(client, (0, weight))
        new = old[0] + by, weight
        before, after = _level(*old), _level(*new)
        if new[0]:
            self._held[client] = new
        else:
            del self._held[client]
        if before == after:
            return
        if before:
            level = self._levels[before]
            del level[client]
            if not level:
                del self._levels[before]
        if after:
            self._levels.setdefault(after, {})[client] = None
        self._top = max(self._top, after)
        while self._top and self._top not in self._levels:
            self._top -= 1


def _level(places: int, weight: int) -> int:
    return -(-places // weight)


class Waiter(msgspec.Struct, eq=False):
    """A request that waits for a lease. `since` is when it (first) arrived.

    It gives up at its own `deadline`, if it has one, or at the policy's. The other fields are those
    of `events.RequestArrived`.
    """

    request: RequestId
    client: ClientId
    slot: bool
    since: float
    priority: int = 0
    deadline: float | None = None
    when_full: str = "wait"
    parent: RequestId | None = None
    allowed: frozenset[str] | None = None
    weight: int = 1
    came_back: bool = False
    """It had a lease before, so it keeps its place in a full queue."""

    def gives_up_at(self, timeout: float) -> float:
        """Return when it has waited for `timeout` seconds, or until its own deadline."""
        limit = self.since + timeout
        return limit if self.deadline is None else min(limit, self.deadline)


class _Lane:
    """Waiters of one priority, by client; the first client has the turn.

    A client's weight is the number of its turns in a row.
    """

    __slots__ = ("_turns", "clients", "places")

    def __init__(self) -> None:
        self.clients: OrderedDict[ClientId, deque[Waiter]] = OrderedDict()
        self.places = QueuePlaces()
        self._turns = 0
        """Turns that the first client has had."""

    def push(self, waiter: Waiter) -> None:
        row = self.clients.setdefault(waiter.client, deque())
        place = len(row)
        while place and waiter.since < row[place - 1].since:
            place -= 1
        row.insert(place, waiter)
        self.places.add(waiter.client, waiter.weight)

    def peek(self) -> Waiter:
        return next(iter(self.clients.values()))[0]

    def take(self, waiter: Waiter) -> None:
        row = self.clients.get(waiter.client, deque())
        is_first = row is next(iter(self.clients.values()), None)
        served = bool(row) and row[0] is waiter
        row.remove(waiter)
        self.places.remove(waiter.client)
        if row and is_first and served and self._turns + 1 < waiter.weight:
            self._turns += 1
            return
        if not row:
            del self.clients[waiter.client]
        elif served:
            self.clients.move_to_end(waiter.client)
        if is_first and (served or not row):
            self._turns = 0

    def newest(self, client: ClientId | None) -> Waiter | None:
        """Return the newest waiter of a client that may lose its place."""
        row = self.clients.get(client) if client is not None else None
        return next((one for one in reversed(row or ()) if not one.came_back), None)

    def oldest(self) -> float:
        return min(row[0].since for row in self.clients.values())

    def in_order(self) -> Iterator[Waiter]:
        rows = [(iter(row), row[0].weight) for row in self.clients.values()]
        had = self._turns
        while rows:
            left = []
            for row, weight in rows:
                turns = list(islice(row, weight - had))
                had = 0
                yield from turns
                if turns:
                    left.append((row, weight))
            rows = left


class WaitQueue:
    """Waiters by priority and client. A lane's priority grows by one per `ageing` seconds waited.

    Within a lane the client that has the turn comes first, with its oldest request.
    """

    __slots__ = ("_ageing", "_hasty", "_lanes", "nested", "places", "size")

    def __init__(self, ageing: float = 60.0) -> None:
        self._lanes: dict[int, _Lane] = {}
        self._ageing = ageing
        self._hasty: dict[RequestId, Waiter] = {}
        self.size = 0
        """How many wait; `len` says the same, and takes longer."""
        self.places = QueuePlaces()
        self.nested: dict[RequestId, Waiter] = {}
        """Waiters that another request made (it is their parent)."""

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Waiter]:
        """Iterate roughly in the order of service, without ageing."""
        for priority in sorted(self._lanes, reverse=True):
            yield from self._lanes[priority].in_order()

    def push(self, waiter: Waiter) -> None:
        """Queue a waiter; one that comes back takes its old place among its client's others."""
        self._lanes.setdefault(waiter.priority, _Lane()).push(waiter)
        self.size += 1
        self.places.add(waiter.client, waiter.weight)
        if waiter.deadline is not None:
            self._hasty[waiter.request] = waiter
        if waiter.parent is not None:
            self.nested[waiter.request] = waiter

    def peek(self, now: float) -> Waiter | None:
        """Return the waiter that is served next."""
        if not self._lanes:
            return None
        if len(self._lanes) == 1:
            return next(iter(self._lanes.values())).peek()
        best = min(self._lanes, key=lambda one: (-self._aged(one, now), self._lanes[one].oldest()))
        return self._lanes[best].peek()

    def remove(self, waiter: Waiter) -> None:
        """Remove one waiter; if it had its client's turn, that client goes to the end.

        Raises ValueError if it is not queued.
        """
        lane = self._lanes.get(waiter.priority)
        if lane is None:
            raise ValueError("not queued")
        lane.take(waiter)
        if not lane.clients:
            del self._lanes[waiter.priority]
        self.size -= 1
        self.places.remove(waiter.client)
        self._hasty.pop(waiter.request, None)
        self.nested.pop(waiter.request, None)

    def oldest(self) -> float | None:
        """Return the earliest arrival of all waiters."""
        return min((lane.oldest() for lane in self._lanes.values()), default=None)

    def next_give_up(self, timeout: float) -> float | None:
        """Return when the first waiter gives up: after `timeout`, or when it wants to."""
        oldest = self.oldest()
        if oldest is None:
            return None
        hasty = (one.gives_up_at(timeout) for one in self._hasty.values())
        return min((oldest + timeout, *hasty))

    @property
    def priority(self) -> int:
        """The highest priority that waits, as it was asked for."""
        return max(self._lanes, default=0)

    def urgency(self, now: float) -> int:
        """Return the highest priority that waits, ageing included."""
        return max((self._aged(one, now) for one in self._lanes), default=0)

    def next_ageing(self, now: float) -> float | None:
        """Return when a lane's priority next rises, if that can change an order."""
        if len(self._lanes) < 2 or self._ageing <= 0:
            return None
        return min(self._rises_at(lane.oldest(), now) for lane in self._lanes.values())

    def _rises_at(self, oldest: float, now: float) -> float:
        steps = (now - oldest) // self._ageing + 1
        rises = oldest + steps * self._ageing
        return rises if rises > now else rises + self._ageing  # now, but for rounding

    def position(self, waiter: Waiter) -> int:
        """Return how many would be served before this one."""
        for position, other in enumerate(self):
            if other is waiter:
                return position
        raise ValueError("not queued")

    def gives_way(self, newcomer: Waiter, now: float) -> Waiter | None:
        """Return the waiter that leaves a full queue for `newcomer`; None: refuse the newcomer.

        A lower priority leaves first: from the client with the most places at it, unless that
        client holds fewer than the newcomer's would; or from the newcomer's own client. Else, at
        any priority, the client with the most places loses one, if it has more than the newcomer's
        would. A client loses the newest request of its lowest priority.
        """
        level = self.places.level_with_one_more(newcomer.client, newcomer.weight)
        for priority in sorted(self._lanes):
            if priority >= newcomer.priority:
                break
            lane = self._lanes[priority]
            for client in (lane.places.most(), newcomer.client):
                victim = lane.newest(client)
                if victim is None or self._aged_alone(victim, now) >= newcomer.priority:
                    continue
                if victim.client == newcomer.client or self.places.level(victim.client) >= level:
                    return victim
        most = self.places.most()
        if most is None or self.places.level(most) <= level:
            return None
        rows = (self._lanes[priority].newest(most) for priority in sorted(self._lanes))
        return next((one for one in rows if one is not None), None)

    def _aged_alone(self, waiter: Waiter, now: float) -> int:
        if self._ageing <= 0:
            return waiter.priority
        return waiter.priority + int((now - waiter.since) // self._ageing)

    def _aged(self, priority: int, now: float) -> int:
        if self._ageing <= 0:
            return priority
        return priority + int((now - self._lanes[priority].oldest()) // self._ageing)
