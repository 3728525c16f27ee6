"""What the relay costs: small requests, latency, streams; a stub upstream and a real tiny model."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import peers
from bench.measure import Column, Rounds, cpu_seconds, in_turns, render
from bench.peers import Peer
from bench.workplace import BenchError, Workplace
from llamaswap_py.engine.locate import Engine

CONNECTIONS = 32
STREAMS = 200
PACED_EVENTS, PACED_RATE = 150, 100
FAST_EVENTS = 300
_PROMPT = "Write a short story about a lighthouse keeper who counts ships. " * 26
_DONE_BYTES = len("data: [DONE]\n\n")

_COLUMNS = [
    Column("requests", "requests/s", 0),
    Column("request_cpu", "CPU µs/request", 1),
    Column("added_p50", "added p50 ms", 3),
    Column("added_p99", "added p99 ms", 3),
    Column("chunk_cpu", "CPU s/100k chunks", 3),
    Column("chunks", "chunks/s", 0),
]
_REAL_COLUMNS = _COLUMNS[:2]


@dataclass(frozen=True, slots=True)
class Load:
    """How to drive a peer; the seconds are a limit where each connection asks `once`."""

    path: str
    body: Path
    connections: int
    seconds: float
    once: bool = False


def measure_relay(place: Workplace, rounds: int, note: Callable[[str], None]) -> str:
    """Measure every peer that this machine has against the stub; return the table."""
    scores = Rounds()
    with ExitStack() as stack:
        stub, path = peers.start_stub(place, stack)
        found: dict[str, Peer | None] = {
            peers.DIRECT: stub,
            peers.GO: peers.start_go(place, stack, path),
            peers.NGINX: peers.start_nginx(place, stack, path),
            peers.LSWAP_RELAY: peers.start_relay_alone(place, stack, path),
            peers.LSWAP: _start_lswap(place, stack),
        }
        present = {name: peer for name, peer in found.items() if peer is not None}
        missing = [name for name in found if name not in present]
        for number in range(rounds):
            note(f"relay, round {number + 1} of {rounds}")
            for name in in_turns(list(present), number):
                _measure_one(place, scores, name, present[name], is_proxy=name != peers.DIRECT)
            _subtract_direct(scores, list(present))
    base = peers.GO if peers.GO in present else peers.DIRECT
    title = (
        f"Relay, stub upstream on a unix socket: medians of {rounds} interleaved rounds "
        f"(ratio to {base}); {CONNECTIONS} connections, 1 for the latency, {STREAMS} streams; "
        f"errors: {scores.failures()}"
        + (f"; not on this machine: {', '.join(missing)}" if missing else "")
    )
    return render(title, scores, _COLUMNS, list(present), base)


def _start_lswap(place: Workplace, stack: ExitStack) -> Peer:
    model = place.folder / "stub.gguf"
    model.write_bytes(b"GGUF")
    models = {"stub": model}
    return peers.start_lswap(
        place, stack, engine=place.stub, models=models, pin=True, concurrency=2 * STREAMS
    )


def _measure_one(
    place: Workplace, scores: Rounds, name: str, peer: Peer, *, is_proxy: bool
) -> None:
    small = _body(place, "small", {"max_tokens": 16})
    chat = "/v1/chat/completions"
    _drive(place, peer, Load(chat, small, CONNECTIONS, 0.15))  # warm, and for lswap: loaded
    said, cpu = _drive(place, peer, Load(chat, small, CONNECTIONS, 0.7))
    errors = said["errors"]
    scores.add("requests", name, said["answers"] / said["seconds"])
    if is_proxy:
        scores.add("request_cpu", name, cpu / max(said["answers"], 1) * 1e6)
    said, _ = _drive(place, peer, Load(chat, small, 1, 0.5))
    errors += said["errors"]
    scores.add("p50", name, said["p50_us"] / 1000)
    scores.add("p99", name, said["p99_us"] / 1000)
    errors += _measure_streams(place, scores, name, peer, is_proxy=is_proxy)
    scores.add("errors", name, errors)


def _measure_streams(
    place: Workplace, scores: Rounds, name: str, peer: Peer, *, is_proxy: bool
) -> int:
    """Measure paced streams for their CPU, then unpaced ones for the rate; return the errors."""
    chat = "/v1/chat/completions"
    paced = {"stream": True, "max_tokens": PACED_EVENTS, "stub_rate": PACED_RATE}
    body = _body(place, "paced", paced)
    said, cpu = _drive(place, peer, Load(chat, body, STREAMS, 20, once=True))
    wrong = _incomplete(said, PACED_EVENTS)
    if is_proxy:
        scores.add("chunk_cpu", name, cpu / (STREAMS * PACED_EVENTS) * 100_000)
    body = _body(place, "fast", {"stream": True, "max_tokens": FAST_EVENTS, "stub_rate": 0})
    said, _ = _drive(place, peer, Load(chat, body, STREAMS, 20, once=True))
    wrong += _incomplete(said, FAST_EVENTS)
    scores.add("chunks", name, STREAMS * FAST_EVENTS / said["seconds"])
    return wrong


def _incomplete(said: dict[str, Any], events: int) -> int:
    """Count errors; a sum of bytes that is no whole number of events is one more."""
    event, rest = divmod(said["bytes"] // STREAMS - _DONE_BYTES, events)
    whole = rest == 0 and event > 0 and said["bytes"] % STREAMS == 0
    return int(said["errors"]) + int(not whole) + STREAMS - int(said["answers"])


def _subtract_direct(scores: Rounds, names: list[str]) -> None:
    for part in ("p50", "p99"):
        direct = scores.values[part][peers.DIRECT][-1]
        for name in names:
            if name != peers.DIRECT:
                scores.add(f"added_{part}", name, scores.values[part][name][-1] - direct)


def _body(place: Workplace, name: str, extra: dict[str, Any]) -> Path:
    """Write a request as the OpenAI client sends it: about 1.8 kB, the model last."""
    path = place.folder / f"{name}.json"
    if not path.exists():
        ask = {"messages": [{"role": "user", "content": _PROMPT}], **extra, "model": "stub"}
        path.write_text(json.dumps(ask, separators=(",", ":")))
    return path


def _drive(place: Workplace, peer: Peer, load: Load) -> tuple[dict[str, Any], float]:
    """Run the load generator; return what it said, and the CPU seconds of the peer."""
    argv = [str(place.load), f"127.0.0.1:{peer.port}", "--path", load.path]
    argv += ["--body", str(load.body), "--connections", str(load.connections)]
    argv += ["--seconds", str(load.seconds), *(["--once"] if load.once else [])]
    argv += ["--cpu", str(place.cores[1])] if place.cores else []
    before = cpu_seconds(peer.pid)
    limit = load.seconds + 30
    done = subprocess.run(argv, capture_output=True, text=True, timeout=limit, check=False)
    cpu = cpu_seconds(peer.pid) - before
    if done.returncode != 0:
        raise BenchError(f"the load generator failed: {done.stderr.strip()}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said, cpu


def measure_real_relay(
    place: Workplace, engine: Engine, model: Path, rounds: int, note: Callable[[str], None]
) -> str:
    """Measure lswap and llama.cpp's router in front of one real tiny model; return the table."""
    scores = Rounds()
    body = place.folder / "tokenize.json"
    body.write_text(json.dumps({"content": "a few words", "model": "alpha"}))
    args: dict[str, str | int] = {"ctx-size": 256, "threads": 1, "parallel": 1}
    args["threads-http"] = CONNECTIONS + 16
    path, models = engine.path, {"alpha": model}
    own = {name: value for name, value in args.items() if name != "threads-http"}
    with ExitStack() as stack:
        found = {
            peers.DIRECT: peers.start_bare(place, stack, engine=path, model=model, args=args),
            peers.LSWAP: peers.start_lswap(
                place, stack, engine=path, models=models, args=own, concurrency=CONNECTIONS
            ),
            peers.ROUTER: peers.start_router(place, stack, engine=path, models=models, args=args),
        }
        for number in range(rounds):
            note(f"relay to a real model, round {number + 1} of {rounds}")
            for name in in_turns(list(found), number):
                peer = found[name]
                _drive(place, peer, Load("/tokenize", body, CONNECTIONS, 0.3))
                said, cpu = _drive(place, peer, Load("/tokenize", body, CONNECTIONS, 0.7))
                scores.add("requests", name, said["answers"] / said["seconds"])
                if name != peers.DIRECT:
                    scores.add("request_cpu", name, cpu / max(said["answers"], 1) * 1e6)
                scores.add("errors", name, said["errors"])
    title = (
        f"Relay, POST /tokenize on a real tiny model: medians of {rounds} interleaved rounds "
        f"(ratio to {peers.ROUTER}); {CONNECTIONS} connections; "
        f"errors: {scores.failures()}"
    )
    return render(title, scores, _REAL_COLUMNS, list(found), peers.ROUTER)
