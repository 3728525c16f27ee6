"""Two clients keep a model hot; a third asks once for the other model, where one fits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from bench.client import Answer, chat, get_json
from bench.crowd import MODELS
from bench.measure import Column, Rounds, render
from bench.peers import line_up_before_models
from bench.rows import LSWAP, ROUTER, Row, Target
from bench.run import Run, Section
from bench.swap import ARGS
from llamaswap_py.endpoint import Endpoint

MAX_WAIT = 5.0
"""`policy.max_wait` of lswap here; 60 s by default, which would make the run as much longer."""
SECONDS = 20.0
HOT_CLIENTS = 2
"""Their requests overlap, so that A is never idle."""
_LATER = 0.2
"""Share of the time after which the other model is asked for."""
_COLUMNS = [
    Column("wait", "wait for B, s", 2),
    Column("bound", "its bound, s", 1, ratio=False),
    Column("answers", "answers of A meanwhile", 0),
]


@dataclass(frozen=True, slots=True)
class _Heard:
    """How long B waited, the answers of A, and the longest of them."""

    wait: float
    answers: int
    longest: float


def measure_hot(run: Run) -> Iterator[Section]:
    """Run the case on each server.

    The bound is the one of the targets: `max_wait`, the longest request of A and both loads. A wait
    that did not end in time is the time itself.
    """
    seconds = 6.0 if run.quick else SECONDS
    max_wait = 1.0 if run.quick else MAX_WAIT
    scores = Rounds()
    policy = {"max_wait": f"{max_wait:g}s"}
    with ExitStack() as stack:
        lineup = line_up_before_models(run, stack, run.models, ARGS, policy=policy)
        for name, peer in lineup.peers.items():
            run.note(f"{name}: {seconds:g} s")
            server = Endpoint(port=peer.port)
            heard = _run(server, seconds)
            scores.add("wait", name, heard.wait)
            scores.add("answers", name, heard.answers)
            if name == LSWAP:
                loads = _loads(server)
                gate = max(max_wait, 2 * max(loads))
                scores.add("bound", name, gate + heard.longest + sum(loads))
    title = (
        f"{HOT_CLIENTS} clients keep A busy for {seconds:g} s, one request for B after "
        f"{seconds * _LATER:g} s, where one fits (a wait of {seconds * (1 - _LATER):g} s or more: "
        f"not served in that time)"
    )
    bound = round(scores.values["bound"][LSWAP][0], 1)
    made = Row(
        f"wait of one request for B while A is kept busy, `max_wait` {max_wait:g} s",
        {name: scores.values["wait"][name] for name in lineup.peers},
        (Target(bound),),
        unit="s",
        digits=1,
        alone="hot",
        missing=lineup.missing,
    )
    yield Section(render(title, scores, _COLUMNS, list(lineup.peers), ROUTER), [made])


def _run(server: Endpoint, seconds: float) -> _Heard:
    hot, other = MODELS
    over = threading.Event()
    took: list[float] = []

    def keep_hot() -> None:
        while not over.is_set():
            answer = chat(server, hot, max_tokens=64)
            if answer.whole:
                took.append(answer.ended - answer.began)

    asked: list[Answer] = []
    asking = threading.Thread(target=lambda: asked.append(chat(server, other)), daemon=True)
    heating = [threading.Thread(target=keep_hot) for _ in range(HOT_CLIENTS)]
    began = time.perf_counter()
    for one in heating:
        one.start()
        time.sleep(0.01)
    time.sleep(seconds * _LATER)
    asking.start()
    time.sleep(max(began + seconds - time.perf_counter(), 0))
    served = bool(asked) and asked[0].whole
    answers = len(took)
    over.set()
    for one in heating:
        one.join()
    asking.join()
    wait = asked[0].first_event if served else seconds * (1 - _LATER)
    return _Heard(wait, answers, max(took, default=0.0))


def _loads(server: Endpoint) -> list[float]:
    """Return how long each model takes to load, as lswap measured it."""
    return [one["load_seconds"] or 0.0 for one in get_json(server, "/lswap/v1/state")["models"]]
