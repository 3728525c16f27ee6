"""What a server takes: memory when idle, for each open stream and for readers that stop; wake-ups.

All peers run at the same time; nobody asks anything while wake-ups are counted.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing

from bench import peers
from bench.measure import Column, Rounds, render
from bench.peers import Lineup, Peer
from bench.process import KIB, MIB, pss, wakeups
from bench.relay import CHAT, Load, body_file, drive
from bench.rows import ROUTER, Row, Target
from bench.run import Run, Section, row
from bench.workplace import BenchError

STREAMS = 100
"""Opened in each round, beside those of the rounds before."""
QUIET = 4.0
"""Seconds of doing nothing in a round."""
STALLED = 1.5
"""Seconds that a reader has stopped before its memory is counted."""
_PATIENCE = 10.0
_COLUMNS = [
    Column("idle", "idle, PSS MiB"),
    Column("wakeups", "wake-ups/s, idle", 2),
    Column("stalled", "a stopped reader, MiB more", 2),
    Column("stream", "an open stream, KiB", 1),
]


def measure_footprint(run: Run) -> Iterator[Section]:
    """Measure every peer before the stub, and llama.cpp's router with a tiny model."""
    scores = Rounds()
    with ExitStack() as stack:
        lineup = peers.line_up_before_stub(run, stack)
        del lineup.peers[peers.DIRECT]
        warm = Load(CHAT, body_file(run.place, "small", {"max_tokens": 16}), 1, 0.2)
        for peer in lineup.peers.values():
            drive(run.place, peer, warm)
        streaming = _known(lineup)
        everybody = {**streaming, **_start_router(run, stack, lineup)}
        time.sleep(3)  # what follows a request has settled
        _measure_idle(run, scores, everybody)
        for number in range(run.rounds):
            run.note(f"readers that stop, round {number + 1} of {run.rounds}")
            _measure_stalled(stack, scores, streaming)
    # Anew: what the stopped readers took, and gave back, would serve the streams.
    with ExitStack() as stack:
        again = _known(peers.line_up_before_stub(run, stack))
        for name, peer in again.items():
            if name in streaming:
                drive(run.place, peer, warm)
                _measure_streams(run, scores, name, peer)
    title = (
        f"Memory: PSS after some requests, what each of {STREAMS * run.rounds:,} open streams adds "
        f"to it, and what a reader adds that stops while the upstream has 200 MB for it; wake-ups "
        f"of all threads in {QUIET * run.rounds:g} s of silence"
    )
    table = render(title, scores, _COLUMNS, list(everybody), "")
    yield Section(table, list(_rows(scores, lineup)))


def _rows(scores: Rounds, lineup: Lineup) -> Iterator[Row]:
    for figure, name, unit, digits, target in (
        ("idle", "memory of an idle supervisor (PSS)", "MiB", 1, Target(40)),
        ("stream", "memory of an open stream (PSS)", "KiB", 1, Target(40)),
        ("stalled", "memory behind a reader that stops: flat", "MiB", 2, Target(1)),
        ("wakeups", "wake-ups a second, idle, a model loaded", "", 2, Target(2)),
    ):
        yield row(
            scores,
            figure,
            name,
            target,
            peers=[*lineup.others(peers.DIRECT), ROUTER],
            unit=unit,
            digits=digits,
            alone="footprint",
            missing=lineup.missing,
        )


def _known(lineup: Lineup) -> dict[str, Peer]:
    """Return the peers whose process is known."""
    return {
        name: peer
        for name, peer in lineup.peers.items()
        if peer.pid is not None and name != peers.DIRECT
    }


def _start_router(run: Run, stack: ExitStack, lineup: Lineup) -> Mapping[str, Peer]:
    """Start llama.cpp's router with a tiny model, which it has loaded then."""
    if isinstance(run.engine, str):
        lineup.missing[ROUTER] = run.engine
        return {}
    args: dict[str, str | int] = {"ctx-size": 256, "threads": 1, "parallel": 1}
    models = {"alpha": run.models["alpha"]}
    router = peers.start_router(run.place, stack, engine=run.engine.path, models=models, args=args)
    body = run.place.folder / "tokenize.json"
    body.write_text(json.dumps({"content": "a few words", "model": "alpha"}))
    drive(run.place, router, Load("/tokenize", body, 1, 0.5))
    return {ROUTER: router}


def _measure_idle(run: Run, scores: Rounds, everybody: Mapping[str, Peer]) -> None:
    quiet = 1.0 if run.quick else QUIET
    for number in range(run.rounds):
        run.note(f"idle, round {number + 1} of {run.rounds}")
        before = {name: _wakeups(peer) for name, peer in everybody.items()}
        time.sleep(quiet)
        for name, peer in everybody.items():
            scores.add("wakeups", name, (_wakeups(peer) - before[name]) / quiet)
    for name, peer in everybody.items():
        scores.add("idle", name, _pss(peer) / MIB)


def _measure_stalled(stack: ExitStack, scores: Rounds, everybody: Mapping[str, Peer]) -> None:
    before = {name: _pss(peer) for name, peer in everybody.items()}
    for peer in everybody.values():
        stack.enter_context(closing(_open_stream(peer, rate=0)))
    time.sleep(STALLED)
    for name, peer in everybody.items():
        scores.add("stalled", name, (_pss(peer) - before[name]) / MIB)


def _measure_streams(run: Run, scores: Rounds, name: str, peer: Peer) -> None:
    with ExitStack() as streams:
        before = _pss(peer)
        for number in range(run.rounds):
            run.note(f"open streams of {name}: {(number + 1) * STREAMS}")
            for _ in range(STREAMS):
                streams.enter_context(closing(_open_stream(peer, rate=1)))
            now = _pss(peer)
            scores.add("stream", name, (now - before) / STREAMS / KIB)
            before = now


def _open_stream(peer: Peer, *, rate: int) -> socket.socket:
    """Begin a stream, and return once its head is there; nobody reads on."""
    ask = {"model": "stub", "stream": True, "max_tokens": 1_000_000, "stub_rate": rate}
    body = json.dumps(ask, separators=(",", ":")).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    sock = socket.create_connection(("127.0.0.1", peer.port), timeout=_PATIENCE)
    try:
        sock.sendall(head.encode() + body)
        said = sock.recv(64)
        if not said.startswith(b"HTTP/1.1 200"):
            raise BenchError(f"no stream, but {said!r}")
    except BaseException:
        sock.close()
        raise
    return sock


def _pss(peer: Peer) -> int:
    return pss(peer.pid or 0)


def _wakeups(peer: Peer) -> int:
    return wakeups(peer.pid or 0)
