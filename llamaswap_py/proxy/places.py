"""Limits the connections of clients, and closes some to make room for new ones.

Open files are limited. Each key, and each address of clients without a key, has a share of the
connections. If no connection is left, lswap closes some that wait for their client, never one whose
request is being answered. They are taken from the client that holds most, the longest waiting
first. So a client that sends a request finds room, even if others hold many idle connections open.
"""

from __future__ import annotations

from heapq import nsmallest
from typing import Final, Protocol

from llamaswap_py.proxy.principals import is_key

UNLIMITED: Final = 1 << 30
_AT_ONCE: Final = 16
"""One in so many of the connections that may be closed is closed at a time, as a search is slow."""


class Guest(Protocol):
    """A connection."""

    owner: str

    def awaited_since(self) -> float | None:
        """Return since when it waits for its client, None while its request is being answered."""

    def has_input(self) -> bool:
        """Return whether its client has sent bytes that have not been read yet."""

    def give_way(self) -> None:
        """Close the connection, which frees its file descriptor."""


class Places:
    """Counts connections by their owner, a key or else an address."""

    def __init__(self, most: int = UNLIMITED, *, keyed: bool = False) -> None:
        self.most = most
        self.keyed = keyed
        """Whether there are API keys; then clients without one get a smaller share."""
        self.count = 0
        self.gave_way = 0
        self.refused = 0
        self._strangers = 0
        self._held: dict[str, dict[Guest, None]] = {}

    def enter(self, guest: Guest) -> bool:
        """Add a connection; return False if there is no place for it."""
        owner = guest.owner
        found = True
        if len(self._held.get(owner, ())) >= self._share(owner):
            found = self._make_room(owner)
        elif self.keyed and self._strangers >= self.most // 2:
            found = self._make_room_among(strangers=True)
        elif self.count >= self.most:
            found = self._make_room_among(strangers=False)
        if not found:
            self.refused += 1
            return False
        self._add(guest)
        return True

    def claim(self, guest: Guest, owner: str) -> bool:
        """Count a connection for the owner that it has shown; False if that share is used up."""
        if guest.owner == owner:
            return True
        if guest not in self._held.get(guest.owner, ()):
            return True  # it has been closed meanwhile
        if len(self._held.get(owner, ())) >= self._share(owner) and not self._make_room(owner):
            self.refused += 1
            return False
        self.leave(guest)
        guest.owner = owner
        self._add(guest)
        return True

    def leave(self, guest: Guest) -> None:
        """Remove a connection that is closed."""
        held = self._held.get(guest.owner)
        if held is None or guest not in held:
            return
        del held[guest]
        self.count -= 1
        if not held:
            del self._held[guest.owner]
        if not is_key(guest.owner):
            self._strangers -= 1

    def _add(self, guest: Guest) -> None:
        self._held.setdefault(guest.owner, {})[guest] = None
        self.count += 1
        if not is_key(guest.owner):
            self._strangers += 1

    def _share(self, owner: str) -> int:
        """Return how many places one owner may hold; the others are left for new clients."""
        if is_key(owner):
            return max(self.most // 2, 1)
        return max(self.most // 4 if self.keyed else self.most - self.most // 8, 1)

    def _make_room_among(self, *, strangers: bool) -> bool:
        """Close connections of the owner that holds most of those that may be closed.

        `strangers`: only of owners without a key. Return False if no connection may be closed.
        """
        owners = [
            (len(held), owner)
            for owner, held in self._held.items()
            if not (strangers and is_key(owner))
        ]
        return any(self._make_room(owner) for _, owner in sorted(owners, reverse=True))

    def _make_room(self, owner: str) -> bool:
        """Close some connections of an owner; return False if all of them are being answered."""
        awaited = [
            (since, number, guest)
            for number, guest in enumerate(self._held[owner])
            if (since := guest.awaited_since()) is not None
        ]
        if not awaited:
            return False
        some = len(awaited) // _AT_ONCE + 1
        oldest = [guest for _, _, guest in nsmallest(4 * some, awaited)]
        # Prefer connections without unread input, which may be what lswap waits for.
        silent = [guest for guest in oldest if not guest.has_input()]
        for guest in (silent or oldest)[:some]:
            self.leave(guest)
            self.gave_way += 1
            guest.give_way()
        return True
