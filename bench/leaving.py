"""A client that leaves: how long until the child behind the proxy has its connection closed.

That is when llama-server stops generating. The stub tells the moment by the clock that the client
reads before it hangs up. Three clients: one whose stream is running, one to whom nothing is being
written just then, and one that does not read any more.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from bench import peers
from bench.client import post
from bench.measure import Column, Rounds, in_turns, render
from bench.rows import Target
from bench.run import Run, Section, row
from bench.workplace import BenchError
from llamaswap_py.endpoint import Endpoint

MOST_MS = 5.0
LEAVES = 12
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class _Client:
    figure: str
    name: str
    rate: int
    """Events a second; 0: as fast as they are taken."""
    reads: bool = True


_CLIENTS = (
    _Client("streaming", "while events come", 100),
    _Client("silent", "while nothing is being written", 1),
    _Client("stalled", "that had stopped reading", 0, reads=False),
)
_COLUMNS = [Column(one.figure, f"{one.name}, ms", 2) for one in _CLIENTS]
_COLUMNS += [Column("worst", "slowest of all, ms", 2)]


def measure_leaving(run: Run) -> Iterator[Section]:
    """Measure every peer that this machine has against the stub."""
    scores = Rounds()
    leaves = 1 if run.quick else LEAVES
    with ExitStack() as stack:
        lineup = peers.line_up_before_stub(run, stack)
        names = list(lineup.peers)
        for number in range(run.rounds):
            for name in in_turns(names, number):
                run.note(f"leaving, round {number + 1} of {run.rounds}: {name}")
                server = Endpoint(port=lineup.peers[name].port)
                for client in _CLIENTS:
                    took = sorted(_leave(server, client) * 1000 for _ in range(leaves))
                    scores.add(client.figure, name, took[len(took) // 2])
                    scores.add(f"worst_{client.figure}", name, took[-1])
                worst = [scores.values[f"worst_{one.figure}"][name][-1] for one in _CLIENTS]
                scores.add("worst", name, max(worst))
    title = (
        f"A client leaves: until the upstream sees it, medians of {leaves} in a round; medians of "
        f"{run.rounds} interleaved rounds"
    )
    rows = [
        row(
            scores,
            f"worst_{client.figure}",
            f"a client leaves {client.name}: until the child sees it, slowest of {leaves}",
            Target(MOST_MS),
            peers=lineup.others(peers.DIRECT),
            unit="ms",
            digits=2,
            alone="leaving",
            missing=lineup.missing,
        )
        for client in _CLIENTS
    ]
    yield Section(render(title, scores, _COLUMNS, names, ""), rows)


def _leave(server: Endpoint, client: _Client) -> float:
    """Begin a stream, leave it, and return the seconds until the stub saw it."""
    before, _ = _ask_stub(server)
    ask = {"model": "stub", "stream": True, "max_tokens": 1_000_000, "stub_rate": client.rate}
    ask["stub_at_once"] = True
    body = json.dumps(ask, separators=(",", ":")).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((server.host, server.port), timeout=_PATIENCE) as sock:
        sock.sendall(head.encode() + body)
        received = b""
        while b"data: " not in received:
            piece = sock.recv(1 << 16)
            if not piece:
                raise BenchError(f"no stream, but {received[:300]!r}")
            received += piece
        if client.reads:
            time.sleep(0.02)
        else:
            time.sleep(0.1)  # every buffer on the way is full by then
        left = time.monotonic_ns()
    deadline = left + _PATIENCE * 1e9
    while time.monotonic_ns() < deadline:
        time.sleep(0.01)
        count, at = _ask_stub(server)
        if count > before:
            return (at - left) / 1e9
    return _PATIENCE


def _ask_stub(server: Endpoint) -> tuple[int, int]:
    """Return how many streams were left so far, and when the last one was."""
    ask = {"model": "stub", "content": "x"}
    answer = post(server, "/tokenize", ask, first=b"left_ns", last="asked_ns")
    if not answer.whole:
        raise BenchError(f"the stub answered {answer.text[-500:]!r}")
    told = json.loads(answer.text.partition("\r\n\r\n")[2])
    return int(told["left"]), int(told["left_ns"])
