"""Counts of what was answered, kept in plain ints; `api/prometheus.py` renders them on a scrape."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import Final

from llamaswap_py.api.usage import tokens_of

BOUNDS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the buckets, seconds: from a cached answer to a long generation."""
_FIRST: Final = BOUNDS[0]
OTHER: Final = "other"
"""The route label of every path that is not a route, so that strangers cannot make labels."""


class Histogram:
    """Counts of durations, and their sum in seconds; `counts` has one more entry than BOUNDS."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS, seconds) if seconds > _FIRST else 0] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative counts as Prometheus wants them, `+Inf` last."""
        found: list[tuple[str, float]] = []
        running = 0
        for bound, count in zip((*BOUNDS, None), self.counts, strict=True):
            running += count
            found.append(("+Inf" if bound is None else str(bound), float(running)))
        return found


class Traffic:
    """What happened since the start, by model; `""` is a request that reached no known model."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int], int] = {}
        """By (model, route template, status); status 0: the client left before its end."""
        self.refusals: dict[tuple[str, str], int] = {}
        """By (reason, name of the key); "" of a request without a key."""
        self.tokens_in: dict[str, int] = defaultdict(int)
        self.tokens_out: dict[str, int] = defaultdict(int)
        self.first_byte: dict[str, Histogram] = defaultdict(Histogram)
        self.queue: dict[str, Histogram] = defaultdict(Histogram)
        self.load: dict[str, Histogram] = defaultdict(Histogram)
        self.total: dict[str, Histogram] = defaultdict(Histogram)

    def note(self, model: str, route: str, status: int, total: float) -> None:
        """Count one request that has ended, after `total` seconds."""
        key = (model, route, status)
        self.requests[key] = self.requests.get(key, 0) + 1
        self.total[model].observe(total)

    def note_refusal(self, reason: str, key: str) -> None:
        """Count one request that was told to come back later."""
        self.refusals[reason, key] = self.refusals.get((reason, key), 0) + 1

    def note_answer(self, model: str, first_byte: float, tail: bytes) -> None:
        """Count one child's answer: seconds to its first byte, and the tokens its end tells."""
        self.first_byte[model].observe(first_byte)
        if tail:
            prompt, answer = tokens_of(tail)
            if prompt:
                self.tokens_in[model] += prompt
            if answer:
                self.tokens_out[model] += answer

    def note_wait(self, model: str, queue: float, load: float) -> None:
        """Count what one leased request waited, in seconds."""
        self.queue[model].observe(queue)
        self.load[model].observe(load)
