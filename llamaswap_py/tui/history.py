"""Stores a server's last state, its decisions, and its tokens per second. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llamaswap_py.client.answers import OpenRequests, ServerEvent
    from llamaswap_py.snapshot import Snapshot

KEPT: Final = 1_000
"""How many decisions are stored."""
WINDOW: Final = 5.0
"""Seconds over which tokens per second are averaged."""


@dataclass(frozen=True, slots=True)
class Happening:
    """A line of the pane of decisions; `at` is Unix time, `model` is empty if it concerns all."""

    at: float
    kind: str
    model: str
    reason: str


class Rates:
    """Computes the tokens per second of each model from samples of token counts.

    The counts of finished answers and of running streams are added, because a stream that ends
    moves from one to the other. If the sum falls (a stream was cut, the server was restarted), the
    sample adds nothing.
    """

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._sums: dict[str, int] = {}
        self._gains: deque[tuple[float, dict[str, int]]] = deque()

    def sample(self, now: float, seen: OpenRequests) -> None:
        """Add a sample of the counts; `now` is the server's Unix time."""
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
        """Return the recent tokens per second; 0.0 if there were none."""
        if len(self._gains) < 2:
            return 0.0
        seconds = self._gains[-1][0] - self._gains[0][0]
        gained = sum(gains.get(model, 0) for _, gains in list(self._gains)[1:])
        return gained / seconds if seconds > 0 else 0.0


class History:
    """The data that is kept between two requests for the server's state."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self.requests: OpenRequests | None = None
        self.happenings: deque[Happening] = deque(maxlen=KEPT)
        self.rates = Rates()
        self.trouble: str | None = None
        """Why the last request for the state failed; None if it succeeded."""
        self._life: tuple[int, float] | None = None
        self._last_id = 0

    def saw(self, snapshot: Snapshot, requests: OpenRequests) -> None:
        """Store the state that a server answered."""
        self.trouble = None
        self.snapshot, self.requests = snapshot, requests
        self.rates.sample(snapshot.now, requests)

    def failed(self, reason: str) -> None:
        """Note that the server did not answer; the last state stays."""
        self.trouble = reason

    def resume_after(self, snapshot: Snapshot) -> int:
        """Return the id after which to request events: 0 for a new server process."""
        life = (snapshot.pid, snapshot.started_at)
        if self._life != life:
            if self._life is not None:
                reason = "lswap was restarted; decisions from before are above"
                self.happenings.append(Happening(snapshot.started_at, "restart", "", reason))
                self.rates = Rates()
            self._life, self._last_id = life, 0
        return self._last_id

    def heard(self, event: ServerEvent) -> Happening | None:
        """Store an event; return its line for the pane, if it has one."""
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
        return Happening(at, "lost", "", "events, because they came faster than they were read")
    return None
