"""What it costs to start a command: `lswap --help`, `lswap ps`; in CPU time, its children too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from bench import peers
from bench.measure import Column, Rounds, in_turns, render
from bench.rows import LSWAP, Row, Target
from bench.run import Run, Section
from bench.workplace import BenchError

TIMES = 3
"""How often each is started in a round."""
_COLUMNS = [Column("cpu", "CPU ms", 1, ratio=False)]
_BARE = "python -c pass"


def measure_commands(run: Run) -> Iterator[Section]:
    """Start each again and again, in turns."""
    scores = Rounds()
    own = [sys.executable, "-m", "llamaswap_py"]
    with ExitStack() as stack:
        model = run.place.folder / "stub.gguf"
        model.write_bytes(b"GGUF")
        lswap = peers.start_lswap(run.place, stack, engine=run.place.stub, models={"stub": model})
        commands: dict[str, list[str]] = {
            _BARE: [sys.executable, "-c", "pass"],
            "lswap --help": [*own, "--help"],
            "lswap ps": [*own, "ps", "--url", f"http://127.0.0.1:{lswap.port}"],
        }
        for argv in commands.values():
            _cpu_of(argv)  # compiled, and in the page cache
        for number in range(run.rounds):
            run.note(f"commands, round {number + 1} of {run.rounds}")
            for name in in_turns(list(commands), number):
                took = sorted(_cpu_of(commands[name]) for _ in range(TIMES))
                scores.add("cpu", name, took[TIMES // 2] * 1000)
    title = f"Commands: CPU time from start to end, medians of {run.rounds} interleaved rounds"
    rows = [
        Row(
            f"`{name}`: CPU",
            {LSWAP: scores.values["cpu"][name]},
            (Target(limit),),
            unit="ms",
            digits=0,
            alone="commands",
        )
        for name, limit in (("lswap --help", 150), ("lswap ps", 250))
    ]
    yield Section(render(title, scores, _COLUMNS, list(commands), ""), rows)


def _cpu_of(argv: Sequence[str]) -> float:
    """Run a program to its end; return its CPU seconds. Raises BenchError if it fails."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    with process.stderr:
        said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise BenchError(f"{' '.join(argv)} failed: {said.decode(errors='replace')[-500:]}")
    return used.ru_utime + used.ru_stime
