"""`python -m bench.read_ahead [--rounds N] [--gib N]`: a swap to a large model on a cold disk.

A generates for a client while another asks for B, where one fits. A's client leaves once the disk
could have delivered B's file. B's file is real data, written for this and removed at the end; its
pages are dropped before each turn (POSIX_FADV_DONTNEED).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from bench.client import Answer, chat, get_json
from bench.measure import Column, Rounds, in_turns, render
from bench.peers import Peer
from bench.workplace import BenchError, Workplace, free_port, open_workplace, running
from llamaswap_py.devices.page_cache import cached_bytes
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import LswapError
from llamaswap_py.llamacpp.binaries import Engine, locate_engine
from llamaswap_py.units import GIB, MIB, format_size

OFF, ON, KEPT = "without read-ahead", "with read-ahead", "keep_in_ram"
_SETTLE = 0.5
_LIMIT = 120.0
_COLUMNS = [
    Column("swap", "A's end → B's first word, s", 2),
    Column("total", "B's request → its first word, s", 2),
    Column("ahead", "read ahead, MiB", 0, ratio=False),
]


@dataclass(frozen=True, slots=True)
class _Case:
    """What every turn has: the engine, the two files, and how long A goes on."""

    place: Workplace
    engine: Engine
    alpha: Path
    beta: Path
    drain: float
    on: str = ""


def measure_read_ahead(
    place: Workplace,
    engine: Engine,
    rounds: int,
    note: Callable[[str], None],
    size: int = 4 * GIB,
    *,
    on: str = "",
    kept: bool = True,
) -> str:
    """Measure swaps to a model of at least `size` bytes on disk; return the tables.

    `on` is the device of both models, the host if it is "". With `kept` it also measures a file
    that lswap keeps in memory.
    """
    _check_room(place.folder, size)
    note(f"writing {format_size(size)}")
    alpha, beta = place.folder / "alpha.gguf", place.folder / "large.gguf"
    try:
        _write_models(alpha, beta, size)
        reads = []
        for number in range(3):
            note(f"a plain read, {number + 1} of 3")
            reads.append(_plain_read(beta))
        drain = max(reads)
        case = _Case(place, engine, alpha, beta, drain, on)
        speed = beta.stat().st_size / MIB / median(reads)
        title = (
            f"B is a file of {format_size(beta.stat().st_size)}; a plain sequential read of it "
            f"takes {median(reads):.1f} s ({min(reads):.1f} to {max(reads):.1f}; {speed:,.0f} "
            f"MiB/s). A goes on for {drain:.1f} s, the longest of them, after B was asked for. "
            f"Medians of {rounds} interleaved rounds, in brackets the median of the rounds' own "
            "ratios."
        )
        tables = [_drained(case, rounds, note)]
        if kept:
            tables.append(_kept(case, rounds, note))
        return "\n\n".join([title, *tables])
    finally:
        beta.unlink(missing_ok=True)


# --- while A drains ----------------------------------------------------------------------------


def _drained(case: _Case, rounds: int, note: Callable[[str], None]) -> str:
    tables = []
    cold, warm = Rounds(), Rounds()
    with ExitStack() as stack:
        servers = {
            OFF: _start(case, stack, memory={"read_ahead": "off"}),
            ON: _start(case, stack, memory={"read_ahead": "auto"}),
        }
        for number in range(rounds):
            for name in in_turns(list(servers), number):
                note(f"round {number + 1} of {rounds}, {name}")
                _drop(case.beta)
                _swap_while_draining(case, servers[name], cold, name)
                # B has just been loaded, and goes for A: its pages are still there.
                _swap_while_draining(case, servers[name], warm, name)
                _unload(servers[name])
    for heading, scores in (
        ("B's pages dropped, A drains", cold),
        ("B was just evicted, its pages are still there, A drains", warm),
    ):
        tables.append(render(f"**{heading}**", scores, _COLUMNS, [OFF, ON], OFF))
    return "\n\n".join(tables)


def _swap_while_draining(case: _Case, server: Peer, scores: Rounds, name: str) -> None:
    endpoint = Endpoint(port=server.port)
    answers: list[Answer] = []
    before = _read_so_far(endpoint)
    with _busy(endpoint):
        asking = threading.Thread(target=lambda: answers.append(chat(endpoint, "beta")))
        asking.start()
        time.sleep(case.drain)
        ended = time.perf_counter()
    asking.join(_LIMIT)
    answer = _good(answers)
    if answer.first < ended:
        raise BenchError("B answered while A still drained")
    scores.add("swap", name, answer.first - ended)
    scores.add("total", name, answer.first_event)
    scores.add("ahead", name, (_read_so_far(endpoint) - before) / MIB)


@contextmanager
def _busy(endpoint: Endpoint) -> Iterator[None]:
    """A client reads an endless answer of A; it hangs up at the end."""
    ask = {"model": "alpha", "stream": True, "messages": [{"role": "user", "content": "go"}]}
    body = json.dumps(ask).encode()
    head = f"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
    began = threading.Event()
    with socket.create_connection((endpoint.host, endpoint.port), timeout=_LIMIT) as sock:
        sock.sendall(head.encode() + body)

        def read() -> None:
            received = b""
            with contextlib.suppress(OSError):
                while piece := sock.recv(1 << 16):
                    if not began.is_set():
                        received += piece
                        if b"data: " in received:
                            began.set()

        reading = threading.Thread(target=read)
        reading.start()
        try:
            if not began.wait(_LIMIT):
                raise BenchError("A does not answer")
            time.sleep(_SETTLE)
            yield
        finally:
            sock.shutdown(socket.SHUT_RDWR)
    reading.join(_LIMIT)


# --- kept --------------------------------------------------------------------------------------


def _kept(case: _Case, rounds: int, note: Callable[[str], None]) -> str:
    """Nobody drains here: A is idle, B's pages were dropped some time ago."""
    scores = Rounds()
    kinds: dict[str, dict[str, Any]] = {OFF: {}, KEPT: {"keep_in_ram": True}}
    for number in range(rounds):
        for name in in_turns(list(kinds), number):
            note(f"round {number + 1} of {rounds}, {name}")
            with ExitStack() as stack:
                _drop(case.beta)
                endpoint = Endpoint(port=_start(case, stack, preset=kinds[name]).port)
                if not chat(endpoint, "alpha").whole:
                    raise BenchError("A does not answer")
                if name == KEPT:
                    _await_cached(case.beta)
                answer = _good([chat(endpoint, "beta")])
                scores.add("swap", name, answer.first_event)
    columns = [Column("swap", "B's request → its first word, s", 2)]
    title = "**A is idle, B's pages were dropped while it was not loaded**"
    return render(title, scores, columns, list(kinds), OFF)


def _await_cached(path: Path) -> None:
    deadline = time.perf_counter() + _LIMIT
    while _cached(path) < path.stat().st_size:
        if time.perf_counter() > deadline:
            raise BenchError("keep_in_ram does not bring the file in")
        time.sleep(0.05)


# --- the server --------------------------------------------------------------------------------


def _start(
    case: _Case,
    stack: ExitStack,
    *,
    memory: Mapping[str, Any] | None = None,
    preset: Mapping[str, Any] | None = None,
) -> Peer:
    """Start `lswap up` with A, which never stops talking, and the large B; one is loaded."""
    port = free_port()
    config = case.place.folder / f"lswap-{port}.yaml"
    args: dict[str, Any] = {"ctx-size": 512, "parallel": 1, "threads": 1}
    size = case.beta.stat().st_size + 512 * MIB
    alpha: dict[str, Any] = {
        "model": str(case.alpha),
        "args": {**args, "context-shift": True},
        "memory": {"host": "100MiB"},
    }
    beta = {"model": str(case.beta), "args": args, "memory": {"host": f"{size // MIB}MiB"}}
    said_memory: dict[str, Any] = {"cache_ram": 0, **(memory or {})}
    if case.on:  # one model at a time, so any size of the device will do
        args["n-gpu-layers"] = alpha["args"]["n-gpu-layers"] = 99
        alpha |= {"device": case.on, "memory": {case.on: "1GiB", "host": "100MiB"}}
        beta |= {"device": case.on, "memory": {case.on: "1GiB", "host": f"{size // MIB}MiB"}}
    said = {
        "listen": f"127.0.0.1:{port}",
        "engine": str(case.engine.path),
        "memory": said_memory,
        "policy": {"max_loaded": 1, "max_wait": "0s"},
        "models": {"alpha": alpha, "beta": {**beta, **(preset or {})}},
    }
    config.write_text(json.dumps(said))
    folders = ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")
    argv = [sys.executable, "-m", "llamaswap_py", "up", str(config)]
    log = case.place.folder / f"lswap-{port}.log"
    env = dict.fromkeys(folders, str(case.place.folder))
    return Peer(port, stack.enter_context(running(argv, port=port, log=log, env=env)))


def _unload(server: Peer) -> None:
    """Let B go, so that its pages can be dropped."""
    url = f"http://127.0.0.1:{server.port}/lswap/v1/models/beta/unload"
    urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=_LIMIT).close()
    deadline = time.perf_counter() + _LIMIT
    while get_json(Endpoint(port=server.port), "/lswap/v1/state")["instances"]:
        if time.perf_counter() > deadline:
            raise BenchError("B does not go")
        time.sleep(0.02)


def _read_so_far(endpoint: Endpoint) -> int:
    return int(get_json(endpoint, "/lswap/v1/state")["read_ahead_bytes_total"])


def _good(answers: list[Answer]) -> Answer:
    if not answers or not answers[0].whole:
        raise BenchError(f"B answered {answers[0].text[-500:] if answers else 'nothing'!r}")
    return answers[0]


# --- the files ---------------------------------------------------------------------------------


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + GIB:
        remedy = "set TMPDIR to a folder with more room, or ask for fewer --gib"
        raise BenchError(f"{folder} has {format_size(free)} free", remedy=remedy)
    memory = psutil.virtual_memory().available
    if memory < size + 3 * GIB:
        raise BenchError(f"{format_size(memory)} of memory are free", remedy="fewer --gib")


def _write_models(alpha: Path, beta: Path, size: int) -> None:
    from llamaswap_py.demo.tiny_gguf import write_tiny_model

    write_tiny_model(alpha, "alpha says the same for ever ", loop=True, layers=64)
    write_tiny_model(beta, "beta is large and says little", layers=4, pad_bytes=size)
    _fill_holes(beta)


def _fill_holes(path: Path) -> None:
    """Put tiny F16 numbers, never the same twice in a row, where the file has zeros of no disk."""
    chance = random.Random(0)
    with path.open("r+b") as file:
        descriptor, size = file.fileno(), path.stat().st_size
        at = 0
        while at < size:
            try:
                hole = os.lseek(descriptor, at, os.SEEK_HOLE)
            except OSError:
                break
            try:
                end = os.lseek(descriptor, hole, os.SEEK_DATA)
            except OSError:  # nothing but the hole is left
                end = size
            for start in range(hole, end, MIB):
                noise = bytearray(chance.randbytes(MIB))
                noise[1::2] = bytes(MIB // 2)  # the high byte of each number
                os.pwrite(descriptor, noise[start % 2 :][: end - start], start)
            at = end
        os.fsync(descriptor)


def _plain_read(path: Path) -> float:
    """Return the seconds that the disk takes for a file: in order, nothing is copied."""
    _drop(path)
    with path.open("rb") as file, open(os.devnull, "wb") as nowhere:
        size, at = path.stat().st_size, 0
        began = time.perf_counter()
        while at < size:
            at += os.sendfile(nowhere.fileno(), file.fileno(), at, MIB)
        return time.perf_counter() - began


def _drop(path: Path) -> None:
    if sys.platform != "linux":
        raise NotImplementedError
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if (left := _cached(path)) > path.stat().st_size // 50:
        remedy = "set TMPDIR to a folder on a disk"
        raise BenchError(f"{format_size(left)} of {path} cannot be dropped", remedy=remedy)


def _cached(path: Path) -> int:
    with path.open("rb") as file:
        found = cached_bytes(file.fileno(), 0, path.stat().st_size)
    if found is None:
        raise BenchError("this needs cachestat(2): Linux 6.5 or later")
    return found


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.read_ahead", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--gib", type=float, default=4, metavar="N", help="size of B's file (4)")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every server is ended

    def note(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        with open_workplace() as place:
            engine = locate_engine("auto")
            size = int(asked.gib * GIB)
            print(measure_read_ahead(place, engine, max(asked.rounds, 1), note, size))
    except LswapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
