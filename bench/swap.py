"""What a swap costs: two tiny real models where one fits; lswap, llama.cpp's router, nobody."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from bench import peers
from bench.bare import run_bare
from bench.client import chat, get_json, post
from bench.crowd import MODELS, Outcome, Trace, alternating_trace, random_trace, run_trace
from bench.measure import Column, Rounds, in_turns, render
from bench.workplace import BenchError, Workplace
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.engine.locate import Engine

BARE = "no swapper"
ARGS: Mapping[str, str | int] = {
    "ctx-size": 512,
    "threads": 1,
    "parallel": 2,
    "cache-ram": 0,
    "fit": "off",
}
_OWNED = ("cache-ram", "fit")  # lswap passes these itself; the router is given the same
SWAPS_PER_ROUND = 4
MOST_CROWD_ROUNDS = 3
# Between swaps; at random, for llama.cpp's router notices an exit in steps of about 50 ms, and a
# fixed pause would meet them always early or always late.
_SETTLE = (0.03, 0.13)

_SWAP = [
    Column("total", "A loaded → first byte of B, ms"),
    Column("overhead", "of it overhead, ms"),
    Column("ready", "child ready → request at it, ms", 2, ratio=False),
]
_CROWD = [
    Column("seconds", "seconds", 2),
    Column("swaps", "swaps", 0),
    Column("longest", "longest wait s", 2),
]


def measure_swaps(
    place: Workplace,
    engine: Engine,
    models: Mapping[str, Path],
    rounds: int,
    note: Callable[[str], None],
) -> Iterator[str]:
    """Measure single swaps, then crowds of clients; yield a table for each."""
    with ExitStack() as stack:
        servers = start_servers(place, stack, engine, models)
        yield _measure_single(place, stack, engine, servers, rounds, note)
        traces = [alternating_trace(12)]
        for trace in traces + [random_trace(*shape, seed=0) for shape in _SHAPES]:
            yield _measure_crowd(servers, trace, min(rounds, MOST_CROWD_ROUNDS), note)


_SHAPES = ((2, 24), (3, 16), (16, 6))
"""Clients, and how often each asks."""


def start_servers(
    place: Workplace, stack: ExitStack, engine: Engine, models: Mapping[str, Path]
) -> dict[str, Endpoint]:
    """Start lswap and llama.cpp's router on the same binary and models, one of which fits."""
    own = {name: value for name, value in ARGS.items() if name not in _OWNED}
    lswap = peers.start_lswap(place, stack, engine=engine.path, models=models, args=own)
    router = peers.start_router(place, stack, engine=engine.path, models=models, args=ARGS)
    return {
        peers.LSWAP: Endpoint(port=lswap.port),
        peers.ROUTER: Endpoint(port=router.port),
    }


# --- one swap ----------------------------------------------------------------------------------


def _measure_single(
    place: Workplace,
    stack: ExitStack,
    engine: Engine,
    servers: Mapping[str, Endpoint],
    rounds: int,
    note: Callable[[str], None],
) -> str:
    scores = Rounds()
    words = _child_words(servers[peers.LSWAP])
    stub = _start_two_stubs(place, stack)
    for server in servers.values():
        _ask(server, MODELS[0])
    everybody, chance = [BARE, *servers], random.Random(0)
    for number in range(SWAPS_PER_ROUND * rounds):
        note(f"swap {number + 1} of {SWAPS_PER_ROUND * rounds}")
        model = MODELS[(number + 1) % 2]
        for name in in_turns(everybody, number):
            time.sleep(chance.uniform(*_SETTLE))
            if name == BARE:
                bare = run_bare(engine.path, words[model], model, place.folder)
                scores.add("total", BARE, (bare.first_event + bare.exit) * 1000)
            else:
                scores.add("total", name, _ask(servers[name], model) * 1000)
        for name in servers:
            bare_total = scores.values["total"][BARE][-1]
            scores.add("overhead", name, scores.values["total"][name][-1] - bare_total)
        scores.add("ready", peers.LSWAP, _ready_delay(stub, number) * 1000)
    title = (
        f"Swap, two tiny models, one fits: medians of {SWAPS_PER_ROUND * rounds} interleaved swaps "
        f"(ratio to {peers.ROUTER}). {BARE}: a bare llama-server's spawn → first byte, plus the "
        f"other's own exit; the overhead is what a swap takes beyond that."
    )
    return render(title, scores, _SWAP, everybody, peers.ROUTER)


def _child_words(lswap: Endpoint) -> dict[str, list[str]]:
    """Return the command line that lswap gives each child: the bare one gets the same."""
    listed = get_json(lswap, "/v1/models")["data"]
    return {model["id"]: list(model["status"]["args"]) for model in listed}


def _ask(server: Endpoint, model: str) -> float:
    answer = chat(server, model)
    if not answer.whole:
        raise BenchError(f"{server} answered for {model}: {answer.text[-500:]!r}")
    return answer.first_event


def _start_two_stubs(place: Workplace, stack: ExitStack) -> Endpoint:
    """Start an lswap whose children are stubs, which tell when they were ready and when asked."""
    model = place.folder / "two.gguf"
    model.write_bytes(b"GGUF")
    models = dict.fromkeys(MODELS, model)
    return Endpoint(port=peers.start_lswap(place, stack, engine=place.stub, models=models).port)


def _ready_delay(stub: Endpoint, number: int) -> float:
    ask = {"model": MODELS[number % 2], "content": "x"}
    answer = post(stub, "/tokenize", ask, first=b"ready_ns", last="asked_ns")
    if not answer.whole:
        raise BenchError(f"the stub answered {answer.text[-500:]!r}")
    told = json.loads(answer.text.partition("\r\n\r\n")[2])
    return float(told["asked_ns"] - told["ready_ns"]) / 1e9


# --- crowds ------------------------------------------------------------------------------------


def _measure_crowd(
    servers: Mapping[str, Endpoint], trace: Trace, rounds: int, note: Callable[[str], None]
) -> str:
    scores = Rounds()
    for number in range(rounds):
        note(f"{trace.name}, round {number + 1} of {rounds}")
        for name in in_turns(list(servers), number):
            _score(scores, name, run_trace(servers[name], trace))
    asks = sum(len(picks) for picks in trace.picks)
    title = (
        f"{trace.name}: {asks} requests, at least {trace.fewest_swaps} swaps; medians of {rounds} "
        f"interleaved rounds (ratio to {peers.ROUTER}); errors: {scores.failures()}"
    )
    return render(title, scores, _CROWD, list(servers), peers.ROUTER)


def _score(scores: Rounds, name: str, outcome: Outcome) -> None:
    scores.add("seconds", name, outcome.seconds)
    scores.add("swaps", name, outcome.swaps)
    scores.add("longest", name, outcome.longest)
    scores.add("errors", name, outcome.errors)
