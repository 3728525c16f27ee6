"""A 50 MB upload beside 100 streams: how much longer any stream has to wait for its next event.

`measure_beside` compares all peers: the streams and one upload go to the stub. `measure_big_body`
looks at uploads of several forms. There the proxy is lswap's HTTP side (fake_relay.py) with two
upstreams: the stub, which streams, and a sink (big_body_server.py), which takes uploads. Beside the
wall clock stands the longest turn of the proxy's event loop in CPU time, which other programs on
the machine do not lengthen.
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench import peers
from bench.measure import Column, Rounds, in_turns, render
from bench.rows import LSWAP, Row, Target
from bench.run import Run, Section, row
from bench.workplace import HERE, BenchError, Workplace, free_port, running

STREAMS, RATE = 100, 25
EVENTS = RATE * 3
SIZE = 50_000_000
_LIMIT = 30.0
MOST_ADDED = 20.0
"""By how many milliseconds a gap may grow."""
MOST_ROUNDS = 3
_SETTLED, _ALONE_FOR = 0.4, 1.0
"""Seconds of the streams before their gaps count, and before the upload begins."""
_ENV = {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
ALONE, PAST = "no upload", "upload to the sink itself"

_COLUMNS = [
    Column("longest", "longest gap, ms", 1, ratio=False),
    Column("added", "more than without, ms", 1, ratio=False),
    Column("p99", "p99 of gaps, ms", 1, ratio=False),
    Column("held", "longest turn, CPU ms", 1, ratio=False),
    Column("upload", "upload, s", 2, ratio=False),
]


@dataclass(frozen=True, slots=True)
class Upload:
    """What is sent where while the streams run."""

    path: str
    kind: str
    body: Path


def measure_beside(run: Run) -> Iterator[Section]:
    """Measure the gaps of streams before and during one upload, for every peer."""
    scores, place = Rounds(), run.place
    with ExitStack() as stack:
        lineup = peers.line_up_before_stub(run, stack)
        upload = _upload_to_stub(place.folder)
        names = list(lineup.peers)
        for number in range(run.rounds):
            for name in in_turns(names, number):
                run.note(f"50 MB beside streams, round {number + 1} of {run.rounds}: {name}")
                _measure_beside(place, scores, name, lineup.peers[name].port, upload)
    title = (
        f"{SIZE // 1_000_000} MB in a chat request beside {STREAMS} streams of {RATE} events/s: "
        f"medians of {run.rounds} interleaved rounds; errors: {scores.failures()}"
    )
    made = row(
        scores,
        "added",
        f"{SIZE // 1_000_000} MB beside {STREAMS} streams: longest gap of any grows by",
        Target(MOST_ADDED),
        peers=lineup.others(peers.DIRECT),
        unit="ms",
        alone="big_body",
        missing=lineup.missing,
    )
    columns = [one for one in _COLUMNS if one.figure != "held"]
    yield Section(render(title, scores, columns, names, ""), [made])


def _measure_beside(place: Workplace, scores: Rounds, name: str, port: int, upload: Upload) -> None:
    with _Streams(port) as streams:
        streams.read(until=_SETTLED)
        quiet_from = time.perf_counter()
        streams.read(until=_ALONE_FOR)
        began = time.perf_counter()
        process = _start_upload(place, port, upload)
        _, wrong = streams.rest()
        alone = streams.gaps(quiet_from, began)
        during = streams.gaps(began, float("inf"))
    said = process.communicate(timeout=_LIMIT)[0]
    scores.add("upload", name, float(said or 0))
    scores.add("longest", name, max(during) * 1000)
    scores.add("added", name, (max(during) - max(alone)) * 1000)
    scores.add("p99", name, sorted(during)[len(during) * 99 // 100] * 1000)
    scores.add("errors", name, wrong + (process.returncode != 0))


def measure_big_body(run: Run) -> Iterator[Section]:
    """Measure the gaps of streams beside uploads of several forms, through lswap's HTTP side."""
    scores, place = Rounds(), run.place
    rounds = min(run.rounds, MOST_ROUNDS)
    uploads = _uploads(place.folder)
    with ExitStack() as stack:
        _, stub = peers.start_stub(run, stack)
        sink, proxy = _start_servers(place, stack, stub)
        names = [ALONE, PAST, *uploads]
        for number in range(rounds):
            for name in in_turns(names, number):
                run.note(f"uploads, round {number + 1} of {rounds}: {name}")
                port = sink if name == PAST else proxy
                upload = uploads.get(name) or (uploads["JSON, an image"] if name == PAST else None)
                _measure_one(place, scores, name, (proxy, port), upload)
            for name in names:
                longest = scores.values["longest"]
                scores.add("added", name, longest[name][-1] - longest[ALONE][-1])
    title = (
        f"{SIZE // 1_000_000} MB beside {STREAMS} streams of {RATE} events/s: medians of "
        f"{rounds} interleaved rounds; errors: {scores.failures()}"
    )
    worst = [
        max(each) for each in zip(*(scores.values["held"][one] for one in uploads), strict=True)
    ]
    made = Row(
        "50 MB in five forms: longest turn of the event loop, CPU",
        {LSWAP: worst},
        (Target(MOST_ADDED),),
        unit="ms",
        alone="uploads",
    )
    yield Section(render(title, scores, _COLUMNS, names, ALONE), [made])


def _upload_to_stub(folder: Path) -> Upload:
    file = folder / "big"
    image = base64.b64encode(os.urandom(SIZE * 3 // 4)).decode()
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    ask = {"messages": [{"role": "user", "content": [url]}], "stream": False, "model": "stub"}
    file.write_bytes(_json(ask))
    return Upload("/v1/chat/completions", "application/json", file)


def _uploads(folder: Path) -> dict[str, Upload]:
    """Write the bodies, and return what can be sent."""
    image = base64.b64encode(os.urandom(SIZE * 3 // 4)).decode()
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    chat = {"messages": [{"role": "user", "content": [url]}], "stream": False}
    lines = "a line of a long text\n" * 8
    words = [{"role": "user", "content": lines}] * (SIZE // len(lines))
    boundary = "f6a1d3"
    head = '--{}\r\nContent-Disposition: form-data; name="{}"\r\n\r\n'
    form = head.format(boundary, "file").encode() + os.urandom(SIZE) + b"\r\n"
    form += (head.format(boundary, "model") + f"sink\r\n--{boundary}--\r\n").encode()
    ollama = {"messages": [{"role": "user", "images": [image]}], "stream": False}
    bodies: dict[str, tuple[str, str, bytes]] = {
        "JSON, an image": ("/v1/chat/completions", "", _json({**chat, "model": "sink"})),
        "JSON, an image, filtered": ("/v1/chat/completions", "", _json({**chat, "model": "set"})),
        "JSON, short texts": ("/v1/chat/completions", "", _json({"model": "sink", "m": words})),
        "form, a file": (
            "/v1/audio/transcriptions",
            f"multipart/form-data; boundary={boundary}",
            form,
        ),
        "Ollama, an image": ("/api/chat", "", _json({**ollama, "model": "sink"})),
    }
    found = {}
    for number, (name, (path, kind, body)) in enumerate(bodies.items()):
        file = folder / f"big-{number}"
        file.write_bytes(body)
        found[name] = Upload(path, kind or "application/json", file)
    return found


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _start_servers(place: Workplace, stack: ExitStack, stub: Path) -> tuple[int, int]:
    """Start the sink and the proxy; return their ports."""
    sink, proxy = free_port(), free_port()
    path = place.folder / "sink.sock"
    cores = place.cores or (None, None)
    for name, port, core, others in (
        ("sink", sink, cores[1], [str(path)]),
        ("proxy", proxy, cores[0], [str(stub), str(path)]),
    ):
        argv = [sys.executable, "-m", "bench.big_body_server", name, str(port), *others]
        log = place.folder / f"{name}.log"
        stack.enter_context(running(argv, port=port, log=log, env=_ENV, core=core))
    return sink, proxy


def _measure_one(
    place: Workplace, scores: Rounds, name: str, ports: tuple[int, int], upload: Upload | None
) -> None:
    proxy, port = ports
    _longest_turn(proxy)
    process = None
    gaps: list[float] = []
    errors = 0
    with _Streams(proxy) as streams:
        streams.read(until=0.5)
        if upload is not None:
            process = _start_upload(place, port, upload)
        gaps, errors = streams.rest()
    if process is not None:
        said = process.communicate(timeout=_LIMIT)[0]
        errors += process.returncode != 0
        scores.add("upload", name, float(said or 0))
    scores.add("longest", name, max(gaps) * 1000)
    scores.add("p99", name, sorted(gaps)[len(gaps) * 99 // 100] * 1000)
    scores.add("held", name, _longest_turn(proxy))
    scores.add("errors", name, errors)


def _start_upload(place: Workplace, port: int, upload: Upload) -> subprocess.Popen[bytes]:
    if sys.platform != "linux":
        raise NotImplementedError
    argv = [sys.executable, "-m", "bench.big_body_server", "upload", str(port)]
    argv += [upload.path, upload.kind, str(upload.body)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, **_ENV})
    if place.cores:
        os.sched_setaffinity(process.pid, {place.cores[1]})
    return process


def _longest_turn(port: int) -> float:
    """Return the longest turn of the proxy's loop since it was asked last, in CPU milliseconds."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/bench/turn", timeout=_LIMIT) as answer:
        return float(answer.read())


class _Streams:
    """Streams that are read as they come, and when each came."""

    def __init__(self, port: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._times: dict[int, list[float]] = {}
        self._received: dict[int, bytearray] = {}
        ask = {"model": "stub", "stream": True, "max_tokens": EVENTS, "stub_rate": RATE}
        body = json.dumps(ask, separators=(",", ":")).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += "Accept: text/event-stream\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        for number in range(STREAMS):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(head.encode() + body)
            self._selector.register(sock, selectors.EVENT_READ, number)
            self._times[number] = []
            self._received[number] = bytearray()

    def __enter__(self) -> _Streams:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._selector.get_map().values()):
            self._end(key)
        self._selector.close()

    def read(self, *, until: float) -> None:
        """Read for so many seconds, or until all have ended."""
        deadline = time.perf_counter() + until
        while self._selector.get_map() and (left := deadline - time.perf_counter()) > 0:
            for key, _ in self._selector.select(left):
                assert isinstance(key.fileobj, socket.socket)
                got = key.fileobj.recv(65536)
                if got:
                    self._times[key.data].append(time.perf_counter())
                    self._received[key.data] += got
                else:
                    self._end(key)

    def rest(self) -> tuple[list[float], int]:
        """Read to the end; return the gaps after the first second, and how many were not whole."""
        self.read(until=_LIMIT)
        if self._selector.get_map():
            raise BenchError("the streams do not end")
        wrong = sum(
            one.count(b"data: {") != EVENTS or b"data: [DONE]" not in one
            for one in self._received.values()
        )
        gaps = [b - a for times in self._times.values() for a, b in pairwise(times)]
        return gaps, wrong

    def gaps(self, begin: float, end: float) -> list[float]:
        """Return the gaps that ended in a time, by the clock of `time.perf_counter`."""
        pairs = ((a, b) for times in self._times.values() for a, b in pairwise(times))
        return [b - a for a, b in pairs if begin <= b < end]

    def _end(self, key: selectors.SelectorKey) -> None:
        assert isinstance(key.fileobj, socket.socket)
        self._selector.unregister(key.fileobj)
        key.fileobj.close()
