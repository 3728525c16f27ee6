"""A queue of bytes: those of a client that must wait for the answers to earlier requests."""

from __future__ import annotations

from collections import deque


class Pending:
    """The queued pieces as they were read, and how much of the first one has been taken.

    The rest is not copied at each step, so the cost grows only linearly with the bytes.
    """

    __slots__ = ("_at", "_pieces", "size")

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._at = 0
        self.size = 0

    def add(self, data: bytes) -> None:
        """Add bytes at the end."""
        if data:
            self._pieces.append(data)
            self.size += len(data)

    def take(self, most: int) -> bytes:
        """Remove and return the first bytes: up to `most`, from one piece."""
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
        """Put bytes that were taken back to the front."""
        if not data:
            return
        if self._at:
            self._pieces[0] = self._pieces[0][self._at :]
            self._at = 0
        self._pieces.appendleft(data)
        self.size += len(data)

    def take_all(self) -> bytes:
        """Remove and return all bytes."""
        whole = b"".join([self.take(self.size) for _ in range(len(self._pieces))])
        self.size = 0
        return whole

    def clear(self) -> None:
        """Remove all bytes."""
        self._pieces.clear()
        self._at = self.size = 0
