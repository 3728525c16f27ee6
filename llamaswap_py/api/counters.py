"""Counts answered requests, their times and tokens; `api/metrics.py` renders the counts. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import Final

from llamaswap_py.llamacpp.token_counts import tokens_of

BOUNDS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the buckets in seconds, from a cached answer to a long generation."""
_FIRST: Final = BOUNDS[0]
OTHER: Final = "other"
"""The route label of all paths that are not routes, so that clients cannot create labels."""


class Histogram:
    """Counts durations by bucket, and adds them up; `counts` has one more entry than BOUNDS."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS, seconds) if seconds > _FIRST else 0] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative counts in Prometheus' form, `+Inf` last."""
        found: list[tuple[str, float]] = []
        running = 0
        for bound, count in zip((*BOUNDS, None), self.counts, strict=True):
            running += count
            found.append(("+Inf" if bound is None else str(bound), float(running)))
        return found


class ModelCounts:
    """The times and tokens of the answered requests of one model."""

    __slots__ = ("first_byte", "load", "queue", "tokens_in", "tokens_out", "total")

    def __init__(self) -> None:
        self.queue = Histogram()
        self.load = Histogram()
        self.first_byte = Histogram()
        self.total = Histogram()
        self.tokens_in = 0
        self.tokens_out = 0

    def count_answer(self, first_byte: float, tail: bytes) -> None:
        """Count one answer of a child: seconds to its first byte, and the tokens in its `tail`."""
        self.first_byte.observe(first_byte)
        if tail:
            prompt, answer = tokens_of(tail)
            self.tokens_in += prompt
            self.tokens_out += answer

    def count_wait(self, queue: float, load: float) -> None:
        """Count the seconds for which one leased request waited."""
        if queue or load:
            self.queue.observe(queue)
            self.load.observe(load)
        else:  # most requests: saves two calls
            self.queue.counts[0] += 1
            self.load.counts[0] += 1


class Counters:
    """The counts since the start, by model; `""` stands for requests without a known model."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int], int] = {}
        """By (model, route template, status); status 0: the client disconnected first."""
        self.refusals: dict[tuple[str, str], int] = {}
        """By (reason, name of the key); "" stands for requests without a key."""
        self.models: dict[str, ModelCounts] = defaultdict(ModelCounts)

    def count_request(self, model: str, route: str, status: int, total: float) -> ModelCounts:
        """Count one request that has ended, after `total` seconds; return its model's counts."""
        key = (model, route, status)
        self.requests[key] = self.requests.get(key, 0) + 1
        counts = self.models[model]
        counts.total.observe(total)
        return counts

    def count_refusal(self, reason: str, key: str) -> None:
        """Count one request that was refused for now (429, 503)."""
        self.refusals[reason, key] = self.refusals.get((reason, key), 0) + 1
