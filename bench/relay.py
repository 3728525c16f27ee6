"""What the relay costs: small requests, latency, streams; a stub upstream and a real tiny model."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import peers
from bench.measure import Column, Rounds, cpu_seconds, in_turns, render
from bench.peers import Lineup, Peer
from bench.rows import GO, NGINX, ROUTER, Row, Target
from bench.run import Run, Section, row
from bench.workplace import BenchError, Workplace

CONNECTIONS = 32
STREAMS = 200
PACED_EVENTS, PACED_RATE = 150, 100
FAST_EVENTS = 300
CHAT = "/v1/chat/completions"
_PROMPT = "Write a short story about a lighthouse keeper who counts ships. " * 26
_DONE_BYTES = len("data: [DONE]\n\n")

_COLUMNS = [
    Column("requests", "requests/s", 0),
    Column("request_cpu", "CPU µs/request", 1),
    Column("added_p50", "added p50 ms", 3),
    Column("added_p99", "added p99 ms", 3),
    Column("added_p50_many", "p50, 32 connections", 3),
    Column("added_p99_many", "p99, 32 connections", 3),
    Column("chunk_cpu", "CPU s/100k chunks", 3),
    Column("chunks", "chunks/s", 0),
]
_REAL_COLUMNS = _COLUMNS[:2]


@dataclass(frozen=True, slots=True)
class Load:
    """How to drive a peer; the seconds are a limit where each connection asks `once`.

    `options` are further ones of load.c.
    """

    path: str
    body: Path
    connections: int
    seconds: float
    once: bool = False
    accept: str = "*/*"
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manner:
    """How clients send requests: what is said of it, and the options of load.c that do it."""

    figure: str
    about: str
    heading: str
    options: tuple[str, ...]


MANNERS = (
    Manner("split", "head and body in two writes", "two writes", ("--split", "100")),
    Manner("fresh", "a connection per request", "fresh", ("--fresh",)),
    Manner("vary", "heads that change", "changing heads", ("--vary",)),
)
"""Clients as they are. httpx, and with it every `openai` SDK, writes head and body apart."""
_FEW = 4
"""Connections that a proxy keeps up with, so that it reads head and body apart."""

_MANNER_COLUMNS = [
    *(Column(f"requests_{one.figure}", f"{one.heading}, requests/s", 0) for one in MANNERS),
    *(Column(f"cpu_{one.figure}", f"{one.heading}, CPU µs/request", 1) for one in MANNERS),
    Column("two_writes", f"two writes ÷ one, CPU, {_FEW} connections", 2, ratio=False),
]


def measure_relay(run: Run) -> Iterator[Section]:
    """Measure every peer that this machine has against the stub."""
    scores = Rounds()
    with ExitStack() as stack:
        lineup = peers.line_up_before_stub(run, stack, relay_alone=True)
        names = list(lineup.peers)
        for number in range(run.rounds):
            for name in in_turns(names, number):
                run.note(f"relay, round {number + 1} of {run.rounds}: {name}")
                _measure_one(run, scores, name, lineup.peers[name])
            _subtract_direct(scores, names)
    base = GO if GO in lineup.peers else peers.DIRECT
    title = (
        f"Relay, stub upstream on a unix socket: medians of {run.rounds} interleaved rounds "
        f"(ratio to {base}); {CONNECTIONS} connections, 1 for the latency, {STREAMS} streams; "
        f"errors: {scores.failures()}"
    )
    yield Section(render(title, scores, _COLUMNS, names, base), _relay_rows(scores, lineup))
    title = (
        f"Clients as they are, from the same rounds (ratio to {base}): {CONNECTIONS} connections; "
        + "; ".join(f"{one.heading}: {one.about}" for one in MANNERS)
    )
    yield Section(render(title, scores, _MANNER_COLUMNS, names, base))


def _relay_rows(scores: Rounds, lineup: Lineup) -> list[Row]:
    def made(figure: str, name: str, *targets: Target, unit: str = "", digits: int) -> Row:
        return row(
            scores,
            figure,
            name,
            *targets,
            peers=lineup.others(peers.DIRECT, peers.LSWAP_RELAY),
            unit=unit,
            digits=digits,
            alone="relay",
            missing=lineup.missing,
        )

    many = f"{CONNECTIONS} connections"
    go, nginx = Target(0.75, GO), Target(1.05, NGINX)
    sse = f"event streams, CPU per 100 k chunks, {STREAMS} streams"
    return [
        made("requests", f"requests/s, {many}", Target(2, GO, least=True), digits=0),
        made("request_cpu", f"CPU of a request, {many}", unit="µs", digits=1),
        made(
            "added_p50",
            "added latency p50, 1 connection",
            Target(1, GO),
            Target(0.25),
            unit="ms",
            digits=3,
        ),
        made("added_p99", "added latency p99, 1 connection", Target(1, GO), unit="ms", digits=3),
        made("added_p50_many", f"added latency p50, {many}", unit="ms", digits=3),
        made("added_p99_many", f"added latency p99, {many}", unit="ms", digits=3),
        made("chunk_cpu", sse, go, unit="s", digits=3),
        made("chunk_cpu", f"{sse}, and nginx", nginx, unit="s", digits=3),
        *(
            made(
                f"requests_{one.figure}",
                f"requests/s, {one.about}",
                Target(1.5, GO, least=True),
                digits=0,
            )
            for one in MANNERS
        ),
        made(
            "two_writes",
            f"CPU of a request in two writes ÷ in one, {_FEW} connections",
            Target(1.15),
            digits=2,
        ),
    ]


def _measure_one(run: Run, scores: Rounds, name: str, peer: Peer) -> None:
    place, short = run.place, 0.3 if run.quick else 1.0
    is_proxy = name != peers.DIRECT
    small = body_file(place, "small", {"max_tokens": 16})
    drive(place, peer, Load(CHAT, small, CONNECTIONS, 0.15))  # warm, and for lswap: loaded
    said, cpu = drive(place, peer, Load(CHAT, small, CONNECTIONS, short))
    errors = said["errors"]
    scores.add("requests", name, said["answers"] / said["seconds"])
    scores.add("p50_many", name, said["p50_us"] / 1000)
    scores.add("p99_many", name, said["p99_us"] / 1000)
    if is_proxy and cpu is not None:
        scores.add("request_cpu", name, cpu / max(said["answers"], 1) * 1e6)
    errors += _measure_manners(place, scores, name, peer, small, short)
    said, _ = drive(place, peer, Load(CHAT, small, 1, short))
    errors += said["errors"]
    scores.add("p50", name, said["p50_us"] / 1000)
    scores.add("p99", name, said["p99_us"] / 1000)
    errors += _measure_streams(place, scores, name, peer, is_proxy=is_proxy)
    scores.add("errors", name, errors)


def _measure_manners(
    place: Workplace, scores: Rounds, name: str, peer: Peer, body: Path, seconds: float
) -> int:
    """Measure requests as clients send them; return the errors."""
    errors = 0
    for manner in MANNERS:
        load = Load(CHAT, body, CONNECTIONS, seconds, options=manner.options)
        said, cpu = drive(place, peer, load)
        errors += said["errors"]
        scores.add(f"requests_{manner.figure}", name, said["answers"] / said["seconds"])
        if name != peers.DIRECT and cpu is not None:
            scores.add(f"cpu_{manner.figure}", name, cpu / max(said["answers"], 1) * 1e6)
    costs = []
    for options in ((), MANNERS[0].options):
        said, cpu = drive(place, peer, Load(CHAT, body, _FEW, seconds / 2, options=options))
        errors += said["errors"]
        costs.append((cpu or 0) / max(said["answers"], 1))
    if name != peers.DIRECT and costs[0]:
        scores.add("two_writes", name, costs[1] / costs[0])
    return errors


def _measure_streams(
    place: Workplace, scores: Rounds, name: str, peer: Peer, *, is_proxy: bool
) -> int:
    """Measure paced streams for their CPU, then unpaced ones for the rate; return the errors."""
    paced = {"stream": True, "max_tokens": PACED_EVENTS, "stub_rate": PACED_RATE}
    body = body_file(place, "paced", paced)
    said, cpu = drive(place, peer, _streams(body))
    wrong = _incomplete(said, PACED_EVENTS)
    if is_proxy and cpu is not None:
        scores.add("chunk_cpu", name, cpu / (STREAMS * PACED_EVENTS) * 100_000)
    body = body_file(place, "fast", {"stream": True, "max_tokens": FAST_EVENTS, "stub_rate": 0})
    said, _ = drive(place, peer, _streams(body))
    wrong += _incomplete(said, FAST_EVENTS)
    scores.add("chunks", name, STREAMS * FAST_EVENTS / said["seconds"])
    return wrong


def _streams(body: Path) -> Load:
    return Load(CHAT, body, STREAMS, 20, once=True, accept="text/event-stream")


def _incomplete(said: dict[str, Any], events: int) -> int:
    """Count errors; a sum of bytes that is no whole number of events is one more."""
    event, rest = divmod(said["bytes"] // STREAMS - _DONE_BYTES, events)
    whole = rest == 0 and event > 0 and said["bytes"] % STREAMS == 0
    return int(said["errors"]) + int(not whole) + STREAMS - int(said["answers"])


def _subtract_direct(scores: Rounds, names: list[str]) -> None:
    for part in ("p50", "p99", "p50_many", "p99_many"):
        direct = scores.values[part][peers.DIRECT][-1]
        for name in names:
            if name != peers.DIRECT:
                scores.add(f"added_{part}", name, scores.values[part][name][-1] - direct)


def body_file(place: Workplace, name: str, extra: dict[str, Any]) -> Path:
    """Write a request as the OpenAI client sends it: about 1.8 kB, the model last."""
    path = place.folder / f"{name}.json"
    if not path.exists():
        ask = {"messages": [{"role": "user", "content": _PROMPT}], **extra, "model": "stub"}
        path.write_text(json.dumps(ask, separators=(",", ":")))
    return path


def drive(place: Workplace, peer: Peer, load: Load) -> tuple[dict[str, Any], float | None]:
    """Run the load generator; return what it said, and the CPU seconds of the peer, if known."""
    argv = [str(place.load), f"127.0.0.1:{peer.port}", "--path", load.path]
    argv += ["--body", str(load.body), "--connections", str(load.connections)]
    argv += ["--seconds", str(load.seconds), "--accept", load.accept]
    argv += [*(["--once"] if load.once else []), *load.options]
    argv += ["--cpu", str(place.cores[1])] if place.cores else []
    before = 0.0 if peer.pid is None else cpu_seconds(peer.pid)
    limit = load.seconds + 30
    done = subprocess.run(argv, capture_output=True, text=True, timeout=limit, check=False)
    cpu = None if peer.pid is None else cpu_seconds(peer.pid) - before
    if done.returncode != 0:
        raise BenchError(f"the load generator failed: {done.stderr.strip()}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said, cpu


def measure_real_relay(run: Run) -> Iterator[Section]:
    """Measure lswap and llama.cpp's router in front of one real tiny model."""
    scores = Rounds()
    place, engine = run.place, run.llama_server.path
    body = place.folder / "tokenize.json"
    body.write_text(json.dumps({"content": "a few words", "model": "alpha"}))
    args: dict[str, str | int] = {"ctx-size": 256, "threads": 1, "parallel": 1}
    args["threads-http"] = CONNECTIONS + 16
    models = {"alpha": run.models["alpha"]}
    with ExitStack() as stack:
        bare = peers.start_bare(place, stack, engine=engine, model=models["alpha"], args=args)
        lineup = peers.line_up_before_models(run, stack, models, args, concurrency=CONNECTIONS)
        found = {peers.DIRECT: bare, **lineup.peers}
        for number in range(run.rounds):
            for name in in_turns(list(found), number):
                run.note(f"relay to a real model, round {number + 1} of {run.rounds}: {name}")
                peer = found[name]
                drive(place, peer, Load("/tokenize", body, CONNECTIONS, 0.3))
                said, cpu = drive(place, peer, Load("/tokenize", body, CONNECTIONS, 0.7))
                scores.add("requests", name, said["answers"] / said["seconds"])
                if name != peers.DIRECT and cpu is not None:
                    scores.add("request_cpu", name, cpu / max(said["answers"], 1) * 1e6)
                scores.add("errors", name, said["errors"])
    title = (
        f"Relay, POST /tokenize on a real tiny model: medians of {run.rounds} interleaved rounds "
        f"(ratio to {ROUTER}); {CONNECTIONS} connections; errors: {scores.failures()}"
    )
    rows = [
        row(
            scores,
            figure,
            name,
            *targets,
            peers=lineup.others(),
            unit=unit,
            digits=digits,
            alone="real_relay",
            missing=lineup.missing,
        )
        for figure, name, targets, unit, digits in (
            (
                "requests",
                f"requests/s before a real tiny model, {CONNECTIONS} connections",
                (Target(5, ROUTER, least=True),),
                "",
                0,
            ),
            ("request_cpu", "CPU of such a request", (), "µs", 1),
        )
    ]
    yield Section(render(title, scores, _REAL_COLUMNS, list(found), ROUTER), rows)
