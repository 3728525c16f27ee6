"""Counts of what was answered, kept in plain ints; `api/metrics.py` renders them on a scrape. Pure.

How many tokens an answer took is read from its last bytes: OpenAI's `usage`, Anthropic's, and
llama-server's own `timings` and counts (server-task.cpp).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from typing import Final

BOUNDS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the buckets, seconds: from a cached answer to a long generation."""
_FIRST: Final = BOUNDS[0]
OTHER: Final = "other"
"""The route label of every path that is not a route, so that strangers cannot make labels."""
_IN: Final = (b'"prompt_tokens"', b'"input_tokens"', b'"tokens_evaluated"')
_OUT: Final = (b'"completion_tokens"', b'"output_tokens"', b'"tokens_predicted"')
_TIMED_IN: Final = (b'"prompt_n"',)
_TIMED_OUT: Final = (b'"predicted_n"',)
_USAGE: Final = 128
"""Bytes in which an OpenAI answer's `usage` names both figures."""
# As llama-server writes it (server-task.cpp).
_USUAL: Final = re.compile(
    rb'"usage":\{"completion_tokens":(\d{1,12}),"prompt_tokens":(\d{1,12})[,}]'
)
_PROMPT: Final = re.compile(rb'"prompt_tokens":(\d{1,12})[,}]')
_COMPLETION: Final = re.compile(rb'"completion_tokens":(\d{1,12})[,}]')
_FIGURE: Final = re.compile(rb"\s*:\s*(\d{1,12})")


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


class Counters:
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

    def count_request(self, model: str, route: str, status: int, total: float) -> None:
        """Count one request that has ended, after `total` seconds."""
        key = (model, route, status)
        self.requests[key] = self.requests.get(key, 0) + 1
        self.total[model].observe(total)

    def count_refusal(self, reason: str, key: str) -> None:
        """Count one request that was told to come back later."""
        self.refusals[reason, key] = self.refusals.get((reason, key), 0) + 1

    def count_answer(self, model: str, first_byte: float, tail: bytes) -> None:
        """Count one child's answer: seconds to its first byte, and the tokens its end tells."""
        self.first_byte[model].observe(first_byte)
        if tail:
            prompt, answer = tokens_of(tail)
            if prompt:
                self.tokens_in[model] += prompt
            if answer:
                self.tokens_out[model] += answer

    def count_wait(self, model: str, queue: float, load: float) -> None:
        """Count what one leased request waited, in seconds."""
        self.queue[model].observe(queue)
        self.load[model].observe(load)


def tokens_of(tail: bytes) -> tuple[int, int]:
    """Return the tokens of the prompt and of the answer; 0 for what the tail does not say.

    The last figure counts: streams of Anthropic's shape repeat it while it grows.
    """
    start = tail.rfind(b'"usage"')
    if start >= 0:
        usual = _USUAL.match(tail, start)
        if usual is not None:
            return int(usual[2]), int(usual[1])
        usage = tail[start : start + _USAGE]
        prompt, answer = _PROMPT.search(usage), _COMPLETION.search(usage)
        if prompt is not None and answer is not None:
            return int(prompt[1]), int(answer[1])
    if b'_tokens"' not in tail and b'_n"' not in tail and b'"tokens_' not in tail:
        return 0, 0
    return _last(_IN, tail) or _last(_TIMED_IN, tail), _last(_OUT, tail) or _last(_TIMED_OUT, tail)


def _last(names: tuple[bytes, ...], tail: bytes) -> int:
    """Return the last figure that follows one of the names; 0 for none."""
    best, figure = -1, 0
    for name in names:
        at = tail.rfind(name)
        while at > best:
            found = _FIGURE.match(tail, at + len(name))
            if found is not None:
                best, figure = at, int(found[1])
            at = tail.rfind(name, 0, at)
    return figure
