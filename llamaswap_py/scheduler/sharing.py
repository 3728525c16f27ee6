"""How many places of a queue each client holds, so that no client fills it for the others.

A client is a principal: a key, or an address. Its level is how many places it holds for each unit
of its weight, rounded up. A full queue is shared so: no client is refused while another has a level
higher than the one that the refused client would reach.
"""

from __future__ import annotations

from llamaswap_py.scheduler.records import ClientId


class Places:
    """Places by client; who has the highest level is known without a search."""

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
        """Return the level that a client would have with one place more."""
        return _level(self.held(client) + 1, weight)

    def most(self) -> ClientId | None:
        """Return the client of the highest level; of several, the one that reached it last."""
        at_top = self._levels.get(self._top)
        return next(reversed(at_top)) if at_top else None

    def add(self, client: ClientId, weight: int) -> None:
        """A client takes one place more."""
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
