"""What the scheduler learns from the requests it sees. Pure arithmetic over events and times.

Four questions: how often is a preset asked for, what tends to follow it, does a request of its own
end its idle gaps soon, and how many requests circulate that are not open right now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp
from typing import Final

from llamaswap_py.scheduler.types import PresetId

SHORT: Final = 30.0
LONG: Final = 3600.0
"""Seconds over which request rates decay."""
_SUCCESSION: Final = 20.0
"""Seconds by which the chance of being next becomes a rate: 20 finds the optimum of a loop over
three models with room for two, where 30 lets one extra request outweigh the pattern."""

_SUCCESSOR_MEMORY: Final = 50.0
"""Requests over which a successor count decays to 1/e."""
_KEPT: Final = exp(-1 / _SUCCESSOR_MEMORY)
_GAPS_KEPT: Final = 16
_SLACK: Final = 0.03
"""Seconds beyond the gap that was worth waiting for: gaps scatter."""


@dataclass(slots=True)
class Rate:
    """Requests per second, decaying with time constant `tau` (seconds)."""

    tau: float
    value: float = 0.0
    at: float = 0.0

    def count(self, now: float) -> None:
        """One request came."""
        self.value = self.read(now) + 1 / self.tau
        self.at = now

    def read(self, now: float) -> float:
        """Return the rate as of now."""
        age = now - self.at
        return self.value * exp(-age / self.tau) if age > 0 else self.value


@dataclass(slots=True)
class Habits:
    """What is known of the requests for one preset."""

    short: Rate = field(default_factory=lambda: Rate(SHORT))
    long: Rate = field(default_factory=lambda: Rate(LONG))
    idle_from: float | None = None
    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=_GAPS_KEPT))
    """How long it was idle before the next request of its own, the newest last."""

    def arrived(self, now: float) -> None:
        """A request for it came."""
        self.short.count(now)
        self.long.count(now)
        if self.idle_from is not None:
            self.gaps.append(now - self.idle_from)
            self.idle_from = None

    def became_idle(self, now: float) -> None:
        """Its last lease ended and nobody waits."""
        self.idle_from = now

    def worth_waiting(self, gain: float, waiters: int, most: float) -> float:
        """Return for how many seconds of an idle gap waiting paid off in the past; 0: never.

        A gap that ended in time saved `gain` seconds; each of `waiters` lost what was waited. At
        most `most`, and half of it while there is no experience.
        """
        if gain <= 0:
            return 0.0
        if not self.gaps:
            return most / 2
        gaps, spent, best, length = sorted(self.gaps), 0.0, 0.0, 0.0
        for count, gap in enumerate(gaps, start=1):
            if gap > most:
                break
            spent += gap
            worth = count * gain - waiters * (spent + gap * (len(gaps) - count))
            if worth > best:
                best, length = worth, gap
        return min(length * 1.5 + _SLACK, most) if best > 0 else 0.0


class Successors:
    """Which preset follows which, counted over the last requests."""

    def __init__(self) -> None:
        self._rows: dict[PresetId, dict[PresetId, float]] = {}
        self._last: PresetId | None = None

    def arrived(self, preset: PresetId) -> None:
        """A request for `preset` came."""
        if self._last is not None:
            row = self._rows.get(self._last)
            if row is None:
                row = self._rows[self._last] = {}
            for name in row:
                row[name] *= _KEPT
            row[preset] = row.get(preset, 0.0) + 1.0
        self._last = preset

    def rows(self) -> dict[PresetId, dict[PresetId, float]]:
        """Return the decayed counts of who follows whom."""
        return {name: dict(row) for name, row in self._rows.items()}

    def recall(self, rows: Mapping[PresetId, Mapping[PresetId, float]]) -> None:
        """Take over counts for presets of which nothing was seen yet."""
        for name, row in rows.items():
            self._rows.setdefault(name, dict(row))

    def chances(self, preset: PresetId) -> tuple[float, float]:
        """Return the chances that `preset` is the next request, and the one after."""
        if self._last is None:
            return 0.0, 0.0
        first = self._shares(self._last)
        second = sum(
            share * self._shares(middle).get(preset, 0.0) for middle, share in first.items()
        )
        return first.get(preset, 0.0), second

    def _shares(self, preset: PresetId) -> dict[PresetId, float]:
        row = self._rows.get(preset, {})
        total = sum(row.values())
        return {name: count / total for name, count in row.items()} if total else {}


class Circulation:
    """The most requests that were open together in a window of time."""

    def __init__(self) -> None:
        # (until when so many were open, how many): counts fall from left to right, for a smaller
        # count that ended earlier can never be the maximum again.
        self._peaks: deque[tuple[float, int]] = deque()
        self.open = 0
        """How many are open now."""

    def closed(self, now: float) -> None:
        """A request ended; as many as were open with it were so until now."""
        while self._peaks and self._peaks[-1][1] <= self.open:
            self._peaks.pop()
        self._peaks.append((now, self.open))
        self.open -= 1

    def away(self, now: float, window: float) -> int:
        """Return m: the most open together in the last `window` seconds, less those open now."""
        while self._peaks and self._peaks[0][0] < now - window:
            self._peaks.popleft()
        return max(self._peaks[0][1] - self.open, 0) if self._peaks else 0


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was learned of the requests, as of one moment.

    `rates` are requests per second over SHORT and LONG, `gaps` seconds of idleness that a request
    ended, `followers` decayed counts of which preset follows which.
    """

    rates: Mapping[PresetId, tuple[float, float]] = field(default_factory=dict)
    gaps: Mapping[PresetId, tuple[float, ...]] = field(default_factory=dict)
    followers: Mapping[PresetId, Mapping[PresetId, float]] = field(default_factory=dict)


class Demand:
    """The demand for each preset, learned from the arrival and the end of each request."""

    def __init__(self) -> None:
        self._habits: dict[PresetId, Habits] = {}
        self.successors = Successors()
        self.circulation = Circulation()

    def habits(self, preset: PresetId) -> Habits:
        """Return what is known of one preset."""
        habits = self._habits.get(preset)
        if habits is None:
            habits = self._habits[preset] = Habits()
        return habits

    def arrived(self, preset: PresetId, now: float, *, again: bool) -> None:
        """A request for `preset` came; `again`: it was here before, and waits once more."""
        self.circulation.open += 1
        if not again:
            self.habits(preset).arrived(now)
            self.successors.arrived(preset)

    def traffic(self, now: float) -> Traffic:
        """Return all of it that is worth keeping, as of now."""
        habits = self._habits.items()
        return Traffic(
            {name: (one.short.read(now), one.long.read(now)) for name, one in habits},
            {name: tuple(one.gaps) for name, one in habits if one.gaps},
            self.successors.rows(),
        )

    def recall(self, traffic: Traffic, age: float, now: float) -> None:
        """Take over what was known `age` seconds ago; what was learned since wins."""
        for name, (short, long) in traffic.rates.items():
            if name in self._habits:
                continue
            habits = self.habits(name)
            habits.short = Rate(SHORT, short * exp(-age / SHORT), now)
            habits.long = Rate(LONG, long * exp(-age / LONG), now)
            habits.gaps.extend(traffic.gaps.get(name, ()))
        self.successors.recall(traffic.followers)

    def ended(self, now: float) -> None:
        """A request was answered, refused, or left."""
        self.circulation.closed(now)

    def demand_rate(self, preset: PresetId, now: float) -> float:
        """Return the expected requests per second (docs/design/scheduler.md, "Victims")."""
        habits = self.habits(preset)
        first, second = self.successors.chances(preset)
        return habits.short.read(now) + habits.long.read(now) + (first + second / 2) / _SUCCESSION
