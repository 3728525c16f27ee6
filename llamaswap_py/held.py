"""The open leases of one instance, counted for those who watch whether it is alive; its readers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from llamaswap_py.children.liveness import Requests

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.leases import Lease


class Answering(Protocol):
    """An answer on its way: `held_up` means that its client has to read first."""

    @property
    def bytes_sent(self) -> int: ...
    @property
    def held_up(self) -> bool: ...


class Held:
    """Leases come and go here; adding them up is left to those who ask."""

    __slots__ = ("_changes", "_open", "_received", "on_first_answer", "readers")

    def __init__(self) -> None:
        self.on_first_answer: Callable[[], None] | None = None
        """Called once, after the first generation that ended well."""
        self.readers: set[Lease] = set()
        """Of requests that only read, which the scheduler knows nothing of."""
        self._open: dict[Lease, bool] = {}
        self._changes = 0
        self._received = 0

    @property
    def idle_since(self) -> int | None:
        """A number that stays while the instance has nothing to do; None while it has."""
        return None if self._open else self._changes

    def end_readers(self, reason: str) -> None:
        """Cut those who read: the instance leaves."""
        for lease in list(self.readers):
            lease.revoke(reason)

    def begin(self, lease: Lease, *, owing: bool) -> None:
        """A lease begins, or becomes another one; `owing`: it generates for a client."""
        self._open[lease] = owing
        self._changes += 1

    def end(self, lease: Lease, *, well: bool) -> None:
        """A lease ends."""
        owing = self._open.pop(lease)
        self._changes += 1
        self._received += well
        if lease.answer is not None:
            self._received += lease.answer.bytes_sent - lease.began_at_byte
        if self.on_first_answer is not None and owing and well:
            call, self.on_first_answer = self.on_first_answer, None
            call()

    def requests(self) -> Requests:
        """Return what the instance has to do now."""
        owing = others = 0
        received = self._received
        for lease, generates in self._open.items():
            answer = lease.answer
            if answer is None:
                continue
            received += answer.bytes_sent - lease.began_at_byte
            if generates and not answer.held_up:
                owing += 1
            else:
                others += 1
        return Requests(owing, others, received, self._changes)
