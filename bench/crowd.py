"""Several clients that pick one of two models, again and again, where one model fits."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from bench.client import Answer, chat
from llamaswap_py.endpoint import Endpoint

MODELS = ("alpha", "beta")


@dataclass(frozen=True, slots=True)
class Trace:
    """What each client asks for, in order; each asks on as soon as it is answered."""

    name: str
    picks: tuple[tuple[str, ...], ...]

    @property
    def fewest_swaps(self) -> int:
        """No schedule needs fewer loads: the largest number of runs in any client's sequence."""
        return max(1 + sum(a != b for a, b in pairwise(one)) for one in self.picks)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trace went: seconds, loads as the clients could see them, and failed requests.

    `typical` is the median time to the first event of an answer.
    """

    seconds: float
    swaps: int
    typical: float
    longest: float
    errors: int


def random_trace(clients: int, asks: int, seed: int) -> Trace:
    """Make a trace of clients that pick at random."""
    chance = random.Random(seed)
    picks = tuple(tuple(chance.choice(MODELS) for _ in range(asks)) for _ in range(clients))
    return Trace(f"{clients} clients at random", picks)


def alternating_trace(asks: int) -> Trace:
    """Make the trace of one client that wants the other model every time."""
    return Trace("1 client, strictly alternating", (tuple(MODELS[i % 2] for i in range(asks)),))


def run_trace(endpoint: Endpoint, trace: Trace) -> Outcome:
    """Let all clients of a trace loose on a server."""
    began = time.perf_counter()
    with ThreadPoolExecutor(len(trace.picks)) as pool:
        futures = [pool.submit(_ask_all, endpoint, picks) for picks in trace.picks]
        asked = [pair for future in futures for pair in future.result()]
    seconds = time.perf_counter() - began
    good = sorted((answer.ended, model) for model, answer in asked if answer.whole)
    return Outcome(
        seconds=seconds,
        # Where one model fits, all answers of one are over before the next one's begin.
        swaps=1 + sum(a[1] != b[1] for a, b in pairwise(good)) if good else 0,
        typical=median(answer.first_event for _, answer in asked),
        longest=max(answer.ended - answer.began for _, answer in asked),
        errors=len(asked) - len(good),
    )


def _ask_all(endpoint: Endpoint, picks: Sequence[str]) -> list[tuple[str, Answer]]:
    return [(model, chat(endpoint, model)) for model in picks]
