"""Judges whether a child that owes an answer still works, or hangs. No I/O.

A long prompt means minutes of silence on a slow machine, and a process that hangs still has its
socket. So silence proves nothing, nor does an accepted connection, nor /health, which the HTTP
threads answer by themselves. A child counts as hung only when nothing at all has moved for a time:
no byte of any answer, no change in /slots, no processor time, no bytes from the disk, no line in
its log. Its main loop answers /slots between two batches, with the tokens of each slot.

A child in an endless loop uses processor time for ever, and so does one that waits for a GPU which
does not answer any more. So processor time alone counts as work only as long as one batch may take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_ASK_FROM: Final = 0.25
_ASK_EVERY: Final = 0.125
"""The shares of the patience after which a silent child is asked for its slots, and again."""
_SPINS: Final = 30.0
"""How many times its patience a child may show processor time alone: an hour by default. In that
time even a large model on a slow machine finishes a batch of 2,048 tokens."""
_SPIN_ASK_EVERY: Final = 0.5
_BUSY_SHARE: Final = 0.05
_BUSY_LEAST: Final = 0.05
"""Processor time that counts as work: this share of the silence, and at least five ticks of the
kernel's clock. A child that hangs uses a little as well, when it is asked for its slots."""


@dataclass(frozen=True, slots=True)
class ChildRequests:
    """What a child has to do, as seen from outside.

    `owing` counts requests that generate for a client that reads: output has to come. `others`
    counts requests that may be silent. `received` grows with every byte of an answer and every
    answer that ended well, `changes` with every request that begins or ends.
    """

    owing: int = 0
    others: int = 0
    received: int = 0
    changes: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """What the kernel counts of a process: seconds of processor time, bytes fetched from disk."""

    cpu: float
    read_bytes: int


class Liveness:
    """Judges one child. Times are seconds; only those with an open request count as silence.

    A client that gives up, or another one that comes, does not set the clock back. Otherwise
    impatient clients would hide a child that hangs for ever.
    """

    def __init__(self, patience: float, now: float, *, busy_share: float = _BUSY_SHARE) -> None:
        self._patience = patience
        self._busy_share = busy_share
        self._at = now
        self._received = self._changes = self._lines = 0
        self._work: Work | None = None
        self._slots: bytes | None = None
        self._owing = False
        self._ask_at = _ASK_FROM * patience
        self._spin_ask_at = patience
        #: seconds without any sign, while at least one request was open
        self.silence = 0.0
        #: seconds without any but processor time, while something was owed
        self.spinning = 0.0

    @property
    def asks(self) -> bool:
        """Whether it is time to ask the child for its slots."""
        return self.silence >= self._ask_at or self.spinning >= self._spin_ask_at

    @property
    def hung(self) -> bool:
        """Whether it was silent for too long, or used the processor too long without output."""
        return self.silence >= self._patience or self.spins

    @property
    def spins(self) -> bool:
        """Whether it has used the processor for too long and sent nothing."""
        return self.spinning >= _SPINS * self._patience

    def look(
        self, now: float, requests: ChildRequests, lines: int, work: Work | None, *, longest: float
    ) -> None:
        """Note what is seen now; `lines` is how many the child has logged, ever.

        Of the time since the last look at most `longest` counts: if it took longer, lswap itself
        was held up (a suspended machine), not the child.
        """
        passed, self._at = now - self._at, now
        if requests.owing or requests.others:
            counts = min(passed, longest)
            self.silence += counts
            self.spinning += counts if requests.owing else 0.0
            if self._moved(requests, lines, work):
                self._sign()
                self._work = work
            elif self._busy(work):
                self._rest()
                self._work = work
        self._work = self._work or work
        self._received, self._changes = requests.received, requests.changes
        self._lines, self._owing = lines, requests.owing > 0

    def answered(self, slots: bytes | None) -> None:
        """Note an answer to GET /slots; None: there was none, or it was refused.

        A new answer is progress. The same answer again shows that the main loop runs, which is
        enough if no output has to come.
        """
        self._ask_at = self.silence + _ASK_EVERY * self._patience
        self._spin_ask_at = self.spinning + _SPIN_ASK_EVERY * self._patience
        if slots is None:
            return
        if slots != self._slots or not self._owing:
            self._sign()
        self._slots = slots

    def _sign(self) -> None:
        self._rest()
        self.spinning = 0.0
        self._spin_ask_at = self._patience

    def _rest(self) -> None:
        self.silence = 0.0
        self._ask_at = _ASK_FROM * self._patience

    def _moved(self, requests: ChildRequests, lines: int, work: Work | None) -> bool:
        if requests.received != self._received:
            return True
        # A request that comes or goes is logged by the HTTP threads, whatever the rest does.
        if lines != self._lines and requests.changes == self._changes:
            return True
        return (
            work is not None and self._work is not None and work.read_bytes > self._work.read_bytes
        )

    def _busy(self, work: Work | None) -> bool:
        if work is None or self._work is None:
            return False
        return work.cpu - self._work.cpu >= max(_BUSY_LEAST, self._busy_share * self.silence)
