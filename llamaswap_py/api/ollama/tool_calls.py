"""Calls of tools in a conversation that wait for their answers. Pure.

Ollama's messages of tools need not say which call they answer, and a client can send thousands of
both: so each is looked up, and no list of all is searched.
"""

from __future__ import annotations

from collections import deque
from typing import Any


class Calls:
    """Calls without an answer, the oldest first."""

    def __init__(self) -> None:
        self._open: dict[int, str] = {}
        """Ids by number, in the order in which they were asked."""
        self._by_id: dict[str, deque[int]] = {}
        self._by_name: dict[str, deque[int]] = {}
        self._next = 0

    def add(self, id: str, name: str) -> None:
        """Add a call."""
        self._open[self._next] = id
        self._by_id.setdefault(id, deque()).append(self._next)
        self._by_name.setdefault(name, deque()).append(self._next)
        self._next += 1

    def answered(self, id: Any, name: Any) -> str:
        """Return the id of the call that is answered: by id, else by name, else the oldest.

        What a message says may be of any type. An id that no call has stays as it is.
        """
        number = None
        if id is not None:
            number = self._oldest(self._by_id.get(id)) if isinstance(id, str) else None
        elif name is None:
            number = next(iter(self._open), None)
        elif isinstance(name, str):
            number = self._oldest(self._by_name.get(name))
        return str(id or "call") if number is None else self._open.pop(number)

    def _oldest(self, numbers: deque[int] | None) -> int | None:
        while numbers:
            number = numbers.popleft()
            if number in self._open:
                return number
        return None
