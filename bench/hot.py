"""One client keeps a model hot; another asks once for the other model, where one fits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from bench.client import Answer, chat, get_json
from bench.crowd import MODELS
from bench.measure import Column, Rounds, render
from bench.peers import LSWAP, ROUTER
from bench.swap import start_servers
from bench.workplace import Workplace
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.engine.locate import Engine

MAX_WAIT, DRAIN = 60.0, 120.0
"""lswap's defaults, `policy.max_wait` and `drain_timeout`: what its servers here run with."""
_LATER = 0.2
"""Share of the time after which the other model is asked for."""
_COLUMNS = [
    Column("wait", "wait for B, s", 2),
    Column("bound", "its bound, s", 1, ratio=False),
    Column("answers", "answers of A meanwhile", 0),
]


def measure_hot(
    place: Workplace,
    engine: Engine,
    models: Mapping[str, Path],
    seconds: float,
    note: Callable[[str], None],
) -> str:
    """Run the case for `seconds` on each server; return the table.

    The bound is the contract's: the longest that a gate may stay open against a waiter, the drain
    after it, and the load (scheduler.md, invariant 4). A wait that did not end in time is the time
    itself.
    """
    scores = Rounds()
    with ExitStack() as stack:
        servers = start_servers(place, stack, engine, models)
        for name, server in servers.items():
            note(f"{name}: {seconds:g} s")
            wait, answers = _run(server, seconds)
            scores.add("wait", name, wait)
            scores.add("answers", name, answers)
            if name == LSWAP:
                scores.add("bound", name, _bound(server))
    title = (
        f"A hot client on A for {seconds:g} s, one request for B after {seconds * _LATER:g} s, "
        f"where one fits (a wait of {seconds * (1 - _LATER):g} s or more: not served in that time)"
    )
    return render(title, scores, _COLUMNS, list(servers), ROUTER)


def _run(server: Endpoint, seconds: float) -> tuple[float, int]:
    hot, other = MODELS
    over = threading.Event()
    answers = 0

    def keep_hot() -> None:
        nonlocal answers
        while not over.is_set():
            answers += chat(server, hot, max_tokens=64).whole

    asked: list[Answer] = []
    asking = threading.Thread(target=lambda: asked.append(chat(server, other)), daemon=True)
    heating = threading.Thread(target=keep_hot)
    began = time.perf_counter()
    heating.start()
    time.sleep(seconds * _LATER)
    asking.start()
    time.sleep(max(began + seconds - time.perf_counter(), 0))
    served = bool(asked) and asked[0].whole
    over.set()
    heating.join()
    asking.join()
    wait = asked[0].first_event if served else seconds * (1 - _LATER)
    return wait, answers


def _bound(server: Endpoint) -> float:
    loads = [one["load_seconds"] or 0.0 for one in get_json(server, "/lswap/v1/state")["models"]]
    return max(MAX_WAIT, 2 * max(loads)) + DRAIN + max(loads)
