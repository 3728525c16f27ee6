"""What a swap costs: two tiny real models where one fits; lswap, llama.cpp's router, nobody."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from bench import peers
from bench.bare import run_bare
from bench.client import chat, get_json, post
from bench.crowd import MODELS, Outcome, Trace, alternating_trace, random_trace, run_trace
from bench.measure import Column, Rounds, in_turns, render
from bench.peers import Lineup
from bench.rows import LSWAP, ROUTER, Row, Target
from bench.run import Run, Section, row
from bench.workplace import BenchError
from llamaswap_py.endpoint import Endpoint

BARE = "no swapper"
ARGS: Mapping[str, str | int] = {
    "ctx-size": 512,
    "threads": 1,
    "parallel": 2,
    "cache-ram": 0,
    "fit": "off",
}
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


def measure_swaps(run: Run) -> Iterator[Section]:
    """Measure single swaps, then crowds of clients."""
    with ExitStack() as stack:
        lineup = peers.line_up_before_models(run, stack, run.models, ARGS)
        servers = {name: Endpoint(port=peer.port) for name, peer in lineup.peers.items()}
        singles = Rounds()
        yield _measure_single(run, stack, lineup, servers, singles)
        crowds = [random_trace(*shape, seed=0) for shape in _SHAPES]
        for trace in (alternating_trace(12), *crowds):
            yield _measure_crowd(run, lineup, servers, trace, singles)


_SHAPES = ((2, 24), (3, 16), (16, 6))
"""Clients, and how often each asks."""
MOST_OVERHEAD = 10.0
"""Milliseconds that a swap may take beyond the bare children's own."""
NOTHING = 5.0
"""Milliseconds that pass for nothing where each of two figures has a noise of its own."""


# --- one swap ----------------------------------------------------------------------------------


def _measure_single(
    run: Run,
    stack: ExitStack,
    lineup: Lineup,
    servers: Mapping[str, Endpoint],
    scores: Rounds,
) -> Section:
    words = _child_words(servers[LSWAP])
    stub = _start_two_stubs(run, stack)
    for server in servers.values():
        _ask(server, MODELS[0])
    everybody, chance = [BARE, *servers], random.Random(0)
    swaps = SWAPS_PER_ROUND * run.rounds
    for number in range(swaps):
        run.note(f"swap {number + 1} of {swaps}")
        model = MODELS[(number + 1) % 2]
        for name in in_turns(everybody, number):
            time.sleep(chance.uniform(*_SETTLE))
            if name == BARE:
                bare = run_bare(run.llama_server.path, words[model], model, run.place.folder)
                scores.add("total", BARE, (bare.first_event + bare.exit) * 1000)
            else:
                scores.add("total", name, _ask(servers[name], model) * 1000)
        for name in servers:
            bare_total = scores.values["total"][BARE][-1]
            scores.add("overhead", name, scores.values["total"][name][-1] - bare_total)
        scores.add("ready", LSWAP, _ready_delay(stub, number) * 1000)
    title = (
        f"Swap, two tiny models, one fits: medians of {swaps} interleaved swaps "
        f"(ratio to {ROUTER}). {BARE}: a bare llama-server's spawn → first byte, plus the "
        f"other's own exit; the overhead is what a swap takes beyond that."
    )
    return Section(
        render(title, scores, _SWAP, everybody, ROUTER),
        [
            _row(scores, lineup, "overhead", "a swap beyond the bare children", MOST_OVERHEAD),
            _row(scores, lineup, "total", "a swap in all: A loaded → first byte of B", None),
        ],
    )


def _row(scores: Rounds, lineup: Lineup, figure: str, name: str, limit: float | None) -> Row:
    return row(
        scores,
        figure,
        name,
        *([] if limit is None else [Target(limit)]),
        peers=lineup.others(),
        unit="ms",
        alone="swap",
        missing=lineup.missing,
    )


def _child_words(lswap: Endpoint) -> dict[str, list[str]]:
    """Return the command line that lswap gives each child: the bare one gets the same."""
    listed = get_json(lswap, "/v1/models")["data"]
    return {model["id"]: list(model["status"]["args"]) for model in listed}


def _ask(server: Endpoint, model: str) -> float:
    answer = chat(server, model)
    if not answer.whole:
        raise BenchError(f"{server} answered for {model}: {answer.text[-500:]!r}")
    return answer.first_event


def _start_two_stubs(run: Run, stack: ExitStack) -> Endpoint:
    """Start an lswap whose children are stubs, which tell when they were ready and when asked."""
    model = run.place.folder / "two.gguf"
    model.write_bytes(b"GGUF")
    models = dict.fromkeys(MODELS, model)
    return Endpoint(
        port=peers.start_lswap(run.place, stack, engine=run.place.stub, models=models).port
    )


def _ready_delay(stub: Endpoint, number: int) -> float:
    ask = {"model": MODELS[number % 2], "content": "x"}
    answer = post(stub, "/tokenize", ask, first=b"ready_ns", last="asked_ns")
    if not answer.whole:
        raise BenchError(f"the stub answered {answer.text[-500:]!r}")
    told = json.loads(answer.text.partition("\r\n\r\n")[2])
    return float(told["asked_ns"] - told["ready_ns"]) / 1e9


# --- crowds ------------------------------------------------------------------------------------


def _measure_crowd(
    run: Run,
    lineup: Lineup,
    servers: Mapping[str, Endpoint],
    trace: Trace,
    singles: Rounds,
) -> Section:
    scores, rounds = Rounds(), min(run.rounds, MOST_CROWD_ROUNDS)
    for number in range(rounds):
        run.note(f"{trace.name}, round {number + 1} of {rounds}")
        for name in in_turns(list(servers), number):
            _score(scores, name, run_trace(servers[name], trace))
            scores.add(
                "later",
                name,
                scores.values["typical"][name][-1] - (singles.median("total", name) or 0.0),
            )
    asks = sum(len(picks) for picks in trace.picks)
    title = (
        f"{trace.name}: {asks} requests, at least {trace.fewest_swaps} swaps; medians of {rounds} "
        f"interleaved rounds (ratio to {ROUTER}); errors: {scores.failures()}"
    )
    table = render(title, scores, _CROWD, list(servers), ROUTER)
    return Section(table, _crowd_rows(scores, lineup, trace))


def _crowd_rows(scores: Rounds, lineup: Lineup, trace: Trace) -> list[Row]:
    """Swaps and time against the router; of a client that alternates, whether it loses anything."""

    def made(figure: str, name: str, *targets: Target, unit: str = "", digits: int) -> Row:
        return row(
            scores,
            figure,
            f"{trace.name}: {name}",
            *targets,
            peers=lineup.others(),
            unit=unit,
            digits=digits,
            alone="swap",
            missing=lineup.missing,
        )

    if len(trace.picks) == 1:
        limit = Target(NOTHING)
        what = "a swap takes longer than one after a pause by"
        return [made("later", what, limit, unit="ms", digits=1)]
    most = 1.1 * trace.fewest_swaps + 1
    return [
        made("swaps", "swaps", Target(1, ROUTER), Target(round(most, 1)), digits=0),
        made("seconds", "time", Target(1, ROUTER), unit="s", digits=2),
    ]


def _score(scores: Rounds, name: str, outcome: Outcome) -> None:
    scores.add("seconds", name, outcome.seconds)
    scores.add("swaps", name, outcome.swaps)
    scores.add("typical", name, outcome.typical * 1000)
    scores.add("longest", name, outcome.longest)
    scores.add("errors", name, outcome.errors)
