"""10,000 presets in a file: until `lswap up` answers, and what a request costs, against 10."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from statistics import median

from bench.limits import PRESETS, lswap, stub_preset
from bench.measure import Column, Rounds, cpu_seconds, in_turns, render
from bench.peers import Peer
from bench.process import MIB, pss
from bench.relay import CHAT, Load, drive
from bench.rows import LSWAP, Row, Target
from bench.run import Run, Section

FEW = "10 presets"
RATIO = "request_ratio"
SLICES = 6
"""Pairs of slices within a round, whose median ratio counts: neighbours are busy for longer."""
_PATIENCE, _LOOK = 30.0, 2.0
_COLUMNS = [
    Column("listens", "until it answers, s", 2),
    Column("start_cpu", "CPU until then, s", 2),
    Column("request_cpu", "CPU µs/request", 1),
    Column("memory", "PSS MiB", 0),
]


def measure_presets(run: Run) -> Iterator[Section]:
    """Start both sizes in turns; then drive them in turns."""
    how_many = PRESETS // 10 if run.quick else PRESETS
    many = f"{how_many:,} presets"
    names = [f"model-{number:05}" for number in range(how_many)]
    place, scores = run.place, Rounds()
    presets = {name: stub_preset(place, name) for name in names}
    sizes = {FEW: {name: presets[name] for name in names[:10]}, many: presets}
    with lswap(place, sizes[FEW]):
        pass  # its modules are compiled
    for count in range(min(run.rounds, 3)):
        for size in in_turns(list(sizes), count):
            run.note(f"start with {size}, round {count + 1}")
            with lswap(place, sizes[size]) as server:
                scores.add("listens", size, server.listened)
                scores.add("start_cpu", size, cpu_seconds(server.pid))
    body = place.folder / "preset.json"
    ask = {"messages": [{"role": "user", "content": "hello"}], "model": names[5]}
    body.write_text(json.dumps(ask, separators=(",", ":")))
    load = Load(CHAT, body, 1, 0.1 if run.quick else 0.3)
    with ExitStack() as stack:
        servers = {size: stack.enter_context(lswap(place, of)) for size, of in sizes.items()}
        found = {size: Peer(server.port, server.pid) for size, server in servers.items()}
        for peer in found.values():
            drive(place, peer, load)
            _await_quiet(peer)
        for count in range(run.rounds):
            run.note(f"requests, round {count + 1} of {run.rounds}")
            _drive_in_turns(run, scores, found, load)
        for size, server in servers.items():
            scores.add("memory", size, pss(server.pid) / MIB)
    title = f"Presets: medians of {run.rounds} interleaved rounds"
    yield Section(render(title, scores, _COLUMNS, [*found], FEW), _rows(scores, many))


def _await_quiet(peer: Peer) -> None:
    """Wait until nothing is done any more that a start leaves to do: it would count as requests."""
    deadline = time.monotonic() + _PATIENCE
    while peer.pid is not None and time.monotonic() < deadline:
        before = cpu_seconds(peer.pid)
        time.sleep(_LOOK)
        if cpu_seconds(peer.pid) - before < _LOOK / 200:
            return


def _drive_in_turns(run: Run, scores: Rounds, found: Mapping[str, Peer], load: Load) -> None:
    costs: dict[str, list[float]] = {size: [] for size in found}
    for turn in range(SLICES):
        for size in in_turns(list(found), turn):
            said, cpu = drive(run.place, found[size], load)
            costs[size].append((cpu or 0.0) / max(said["answers"], 1) * 1e6)
    for size, each in costs.items():
        scores.add("request_cpu", size, median(each))
    few, many = costs.values()
    scores.add(RATIO, LSWAP, median(b / a for a, b in zip(few, many, strict=True)))


def _rows(scores: Rounds, many: str) -> list[Row]:
    listens, ratios = scores.values["listens"], scores.values[RATIO][LSWAP]
    first = Row(
        f"{many}: until `lswap up` answers",
        {LSWAP: listens[many]},
        (Target(2.0),),
        unit="s",
        digits=2,
        alone="presets",
    )
    second = Row(
        f"{many}: CPU of a request, × that with 10",
        {LSWAP: ratios},
        (Target(1.05),),
        digits=2,
        alone="presets",
    )
    return [first, second]
