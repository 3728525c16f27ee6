"""Bytes of a client that wait until the requests before them are answered."""

from __future__ import annotations

from collections import deque


class Pending:
    """The pieces as they were read, and how far the first of them was taken.

    Nothing is joined or cut anew for each step: a client that pipelines costs what it sends, once.
    """

    __slots__ = ("_at", "_pieces", "size")

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._at = 0
        self.size = 0

    def add(self, data: bytes) -> None:
        """Add what came last."""
        if data:
            self._pieces.append(data)
            self.size += len(data)

    def take(self, most: int) -> bytes:
        """Remove and return what comes first: up to `most` bytes, of one piece."""
        if not self._pieces:
            return b""
        first, at = self._pieces[0], self._at
        end = at + most
        if end >= len(first):
            self._pieces.popleft()
            self._at = 0
        else:
            self._at = end
        step = first[at:end]
        self.size -= len(step)
        return step

    def put_back(self, data: bytes) -> None:
        """Put in front what was taken, and is not for the parser of requests."""
        if not data:
            return
        if self._at:
            self._pieces[0] = self._pieces[0][self._at :]
            self._at = 0
        self._pieces.appendleft(data)
        self.size += len(data)

    def take_all(self) -> bytes:
        """Remove and return everything."""
        whole = b"".join([self.take(self.size) for _ in range(len(self._pieces))])
        self.size = 0
        return whole

    def clear(self) -> None:
        """Forget everything."""
        self._pieces.clear()
        self._at = self.size = 0
