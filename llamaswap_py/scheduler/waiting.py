"""The queue of one preset: order kept per client, clients take turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from llamaswap_py.scheduler.records import ClientId, RequestId


@dataclass(slots=True, eq=False)
class Waiter:
    """A request that waits for a lease; `since` is when it (first) arrived."""

    request: RequestId
    client: ClientId
    slot: bool
    since: float


class WaitQueue:
    """Waiters by client; `pop` serves the client whose turn it is, its oldest request first."""

    __slots__ = ("_clients", "_size")

    def __init__(self) -> None:
        self._clients: OrderedDict[ClientId, deque[Waiter]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Waiter]:
        """Iterate in the order `pop` would serve them."""
        rows = [list(row) for row in self._clients.values()]
        for turn in range(max(map(len, rows), default=0)):
            yield from (row[turn] for row in rows if turn < len(row))

    def push(self, waiter: Waiter) -> None:
        """Queue a waiter; one that comes back takes its old place among its client's others."""
        row = self._clients.setdefault(waiter.client, deque())
        place = len(row)
        while place and waiter.since < row[place - 1].since:
            place -= 1
        row.insert(place, waiter)
        self._size += 1

    def peek(self) -> Waiter | None:
        """Return whom `pop` would serve."""
        return next(iter(self._clients.values()))[0] if self._clients else None

    def pop(self) -> Waiter:
        """Take the next waiter; its client goes to the end of the row."""
        client, row = next(iter(self._clients.items()))
        waiter = row.popleft()
        self._size -= 1
        if row:
            self._clients.move_to_end(client)
        else:
            del self._clients[client]
        return waiter

    def remove(self, waiter: Waiter) -> None:
        """Take out one waiter, wherever it is; raises ValueError if it is not queued."""
        row = self._clients.get(waiter.client, deque())
        row.remove(waiter)
        self._size -= 1
        if not row:
            del self._clients[waiter.client]

    def oldest(self) -> float | None:
        """Return the earliest arrival of all waiters."""
        return min((row[0].since for row in self._clients.values()), default=None)

    def position(self, waiter: Waiter) -> int:
        """Return how many would be served before this one."""
        for position, other in enumerate(self):
            if other is waiter:
                return position
        raise ValueError("not queued")
