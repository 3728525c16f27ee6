"""What has been seen of a server so far: decisions, and how fast its models answer. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llamaswap_py.client.answers import OpenRequests, ServerEvent
    from llamaswap_py.snapshot import Snapshot

KEPT: Final = 1_000
"""Decisions that are kept."""
WINDOW: Final = 5.0
"""Seconds over which tokens per second are averaged."""


@dataclass(frozen=True, slots=True)
class Happening:
    """A line of the pane of decisions; `at` is Unix time, `model` empty for what concerns all."""

    at: float
    kind: str
    model: str
    reason: str


class Rates:
    """Tokens per second of each model, from counts that are seen now and then.

    Counts of finished answers and of running streams are added up: a stream that ends moves from
    one to the other. A sum that falls (a stream was cut, the server is a new one) counts nothing.
    """

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._sums: dict[str, int] = {}
        self._gains: deque[tuple[float, dict[str, int]]] = deque()

    def sample(self, now: float, seen: OpenRequests) -> None:
        """Take counts; `now` is the server's Unix time."""
        sums = {model: tokens.answer for model, tokens in seen.tokens.items()}
        for one in seen.requests:
            sums[one.model] = sums.get(one.model, 0) + one.tokens
        first = not self._gains
        gains = {
            model: gain
            for model, total in sums.items()
            if not first and (gain := total - self._sums.get(model, 0)) > 0
        }
        self._sums = sums
        if self._gains and now < self._gains[-1][0]:
            self._gains.clear()  # the clock was set back
        self._gains.append((now, gains))
        while len(self._gains) > 2 and now - self._gains[1][0] >= self._window:
            self._gains.popleft()

    def of(self, model: str) -> float:
        """Return the tokens per second of late; 0.0 when nothing came."""
        if len(self._gains) < 2:
            return 0.0
        seconds = self._gains[-1][0] - self._gains[0][0]
        gained = sum(gains.get(model, 0) for _, gains in list(self._gains)[1:])
        return gained / seconds if seconds > 0 else 0.0


class History:
    """What is remembered between one look at the server and the next."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self.requests: OpenRequests | None = None
        self.happenings: deque[Happening] = deque(maxlen=KEPT)
        self.rates = Rates()
        self.trouble: str | None = None
        """Why the last look failed; None when it did not."""
        self._life: tuple[int, float] | None = None
        self._last_id = 0

    def saw(self, snapshot: Snapshot, requests: OpenRequests) -> None:
        """Take the state of a server that answered."""
        self.trouble = None
        self.snapshot, self.requests = snapshot, requests
        self.rates.sample(snapshot.now, requests)

    def failed(self, reason: str) -> None:
        """Note that the server did not answer; what was seen last stays."""
        self.trouble = reason

    def resume_after(self, snapshot: Snapshot) -> int:
        """Return the id after which events are wanted: 0 for a server that was not seen before."""
        life = (snapshot.pid, snapshot.started_at)
        if self._life != life:
            if self._life is not None:
                reason = "lswap was started again; what its models did before is above"
                self.happenings.append(Happening(snapshot.started_at, "restart", "", reason))
                self.rates = Rates()
            self._life, self._last_id = life, 0
        return self._last_id

    def heard(self, event: ServerEvent) -> Happening | None:
        """Take an event; return the line that it makes, if it makes one."""
        if event.id is not None:
            self._last_id = event.id
        line = _happening(event)
        if line is not None:
            self.happenings.append(line)
        return line


def _happening(event: ServerEvent) -> Happening | None:
    data = event.data
    at = float(data.get("decided_at") or data.get("at") or 0.0)
    if event.event == "decision":
        return Happening(at, *(str(data.get(name, "")) for name in ("kind", "preset", "reason")))
    if event.event == "reload":
        changes = [
            f"{word} {', '.join(data[word])}"
            for word in ("added", "removed", "changed")
            if data.get(word)
        ]
        return Happening(at, "reload", "", "; ".join(changes) or "no model changed")
    if event.event == "lost":
        return Happening(0.0, "lost", "", f"events {data.get('from')} to {data.get('to')}")
    if event.event == "dropped":
        return Happening(at, "lost", "", "events: they came faster than they were read")
    return None
