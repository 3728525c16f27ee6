"""Statistics of requests, by which the scheduler predicts demand. Pure arithmetic.

They answer four questions. How often is a preset asked for? Which preset tends to follow it? How
soon does its next request end an idle gap? How many clients are between two requests right now?
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
"""Seconds by which the chance of being next is divided to make a rate. With 20 the scheduler finds
the optimum of a loop over three models with room for two; with 30 one extra request hides it."""

_ONE_USE: Final = 10.0
"""Seconds between two requests that count as two uses. Closer ones count for less: one load serves
a whole burst, so a thousand embeddings count as one use for every 10 s."""

_SUCCESSOR_MEMORY: Final = 50.0
"""Number of requests over which a count of followers decays to 1/e."""
_KEPT: Final = exp(-1 / _SUCCESSOR_MEMORY)
_GAPS_KEPT: Final = 16
_SLACK: Final = 0.03
"""Seconds to wait beyond the gap that was worth waiting for, because gaps vary."""


@dataclass(slots=True)
class UseRates:
    """Uses per second, decaying over SHORT and over LONG; both as of `at`."""

    short: float = 0.0
    long: float = 0.0
    at: float = 0.0

    def count(self, now: float, uses: float = 1.0) -> None:
        """A request came that counts as so much of a use."""
        age = now - self.at
        if age > 0:
            self.short *= exp(-age / SHORT)
            self.long *= exp(-age / LONG)
        self.short += uses / SHORT
        self.long += uses / LONG
        self.at = now

    def read(self, now: float) -> tuple[float, float]:
        """Return both rates as of now."""
        age = now - self.at
        if age <= 0:
            return self.short, self.long
        return self.short * exp(-age / SHORT), self.long * exp(-age / LONG)


@dataclass(slots=True)
class Habits:
    """The demand for one preset: its rates and idle gaps."""

    rates: UseRates = field(default_factory=UseRates)
    idle_from: float | None = None
    """Since when it has had no lease and no waiting request; None while it has."""
    last: float | None = None
    """When its last request came."""
    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=_GAPS_KEPT))
    """Seconds it was idle until its next request, the newest last."""

    def arrived(self, now: float) -> None:
        """A request for it came."""
        gap = _ONE_USE if self.last is None else now - self.last
        self.last = now
        self.rates.count(now, gap / _ONE_USE if gap < _ONE_USE else 1.0)
        if self.idle_from is not None:
            self.gaps.append(now - self.idle_from)
            self.idle_from = None

    def worth_waiting(self, gain: float, waiters: int, most: float) -> float:
        """Return how many seconds of waiting in an idle gap paid off in the past; 0: never.

        A gap that ended in time saved `gain` seconds; each of `waiters` lost the seconds waited.
        The result is at most `most`, and half of it before the first gap is known.
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
        """Return the decayed counts of which preset follows which."""
        return {name: dict(row) for name, row in self._rows.items()}

    def recall(self, rows: Mapping[PresetId, Mapping[PresetId, float]]) -> None:
        """Take over counts for presets that have not been asked for yet."""
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
        # (time until which so many were open, how many). Counts fall from left to right: a smaller
        # count that ended earlier can never be the maximum again.
        self._peaks: deque[tuple[float, int]] = deque()
        self.open = 0
        """How many are open now."""

    def closed(self, now: float) -> None:
        """A request ended: the number that was open with it lasted until now."""
        peaks, count = self._peaks, self.open
        while peaks and peaks[-1][1] <= count:
            peaks.pop()
        peaks.append((now, count))
        self.open = count - 1

    def away(self, now: float, window: float) -> int:
        """Return m: the most open together in the last `window` seconds, less those open now."""
        while self._peaks and self._peaks[0][0] < now - window:
            self._peaks.popleft()
        return max(self._peaks[0][1] - self.open, 0) if self._peaks else 0


@dataclass(frozen=True, slots=True)
class Traffic:
    """All statistics of requests at one moment.

    `rates` are uses per second over SHORT and LONG. `gaps` are the seconds of idle gaps.
    `followers` are decayed counts of which preset follows which. `unused` are the seconds since the
    last request.
    """

    rates: Mapping[PresetId, tuple[float, float]] = field(default_factory=dict)
    gaps: Mapping[PresetId, tuple[float, ...]] = field(default_factory=dict)
    followers: Mapping[PresetId, Mapping[PresetId, float]] = field(default_factory=dict)
    unused: Mapping[PresetId, float] = field(default_factory=dict)


class Demand:
    """The demand for each preset, learned from the arrival and the end of each request."""

    def __init__(self) -> None:
        self._habits: dict[PresetId, Habits] = {}
        self.successors = Successors()
        self.circulation = Circulation()

    def habits(self, preset: PresetId) -> Habits:
        """Return the demand for one preset."""
        habits = self._habits.get(preset)
        if habits is None:
            habits = self._habits[preset] = Habits()
        return habits

    def arrived(self, preset: PresetId, now: float, *, again: bool) -> None:
        """A request for `preset` came; `again`: it lost its lease unused, and waits once more."""
        self.circulation.open += 1
        if not again:
            habits = self._habits.get(preset) or self.habits(preset)
            habits.arrived(now)
            self.successors.arrived(preset)

    def traffic(self, now: float) -> Traffic:
        """Return the statistics that are worth keeping, as of now."""
        habits = self._habits.items()
        return Traffic(
            {name: one.rates.read(now) for name, one in habits},
            {name: tuple(one.gaps) for name, one in habits if one.gaps},
            self.successors.rows(),
            {name: now - one.last for name, one in habits if one.last is not None},
        )

    def used_since(self, then: float) -> frozenset[PresetId]:
        """Return the presets that a request has come for since `then`."""
        return frozenset(
            name for name, one in self._habits.items() if one.last is not None and one.last >= then
        )

    def recall(self, traffic: Traffic, age: float, now: float) -> None:
        """Take over statistics from `age` seconds ago; newer ones are kept."""
        for name, (short, long) in traffic.rates.items():
            if name in self._habits:
                continue
            habits = self.habits(name)
            habits.rates = UseRates(short * exp(-age / SHORT), long * exp(-age / LONG), now)
            habits.gaps.extend(traffic.gaps.get(name, ()))
            if (unused := traffic.unused.get(name)) is not None:
                habits.last = now - age - unused
        self.successors.recall(traffic.followers)

    def ended(self, now: float) -> None:
        """A request was answered, refused, or left."""
        self.circulation.closed(now)

    def demand_rate(self, preset: PresetId, now: float) -> float:
        """Return the expected uses per second (docs/design/scheduler.md, "Victims")."""
        habits = self.habits(preset)
        first, second = self.successors.chances(preset)
        return sum(habits.rates.read(now)) + (first + second / 2) / _SUCCESSION
