"""What lswap does on a card of NVIDIA, in at most ten minutes.

    python -m bench.gpu [--engine PATH] [--device CUDA0] [--only SECTION …] [--write docs/memory.md]

Takes an engine with CUDA, or builds one. Every section runs in a process of its own with its own
time limit, so one that fails or hangs leaves the others standing. The exit status is 1 if one
failed. `--tiny` runs all of it with tiny models in a minute, to see that it works.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.gpu_card import Card, cuda_engine, find_card
from bench.gpu_sections import SECTIONS, Job, Section, described
from bench.markers import write_into
from bench.workplace import Workplace
from llamaswap_py.errors import LswapError

COMMAND = "python -m bench.gpu --write docs/memory.md"
MINUTES = 10.0
BUILD_SHARE = 0.5
"""The most of the time that a build may take."""
_PATIENCE_IF_TINY = 5
"""Nobody pays for the machine then, and it may be a busy one."""
_GRACE = 10.0
_SHOWN = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Measure on one card; print or write the tables. Return 1 if a section failed."""
    asked = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every server is ended
    ends = time.monotonic() + asked.minutes * 60
    try:
        engine = cuda_engine(asked.engine, asked.minutes * 60 * BUILD_SHARE)
        card = find_card(engine, asked.device)
        if asked.section:
            return _measure_here(asked.section, card, tiny=asked.tiny, folder=asked.folder)
    except LswapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    head = f"{datetime.now(UTC):%Y-%m-%d}, {described(card)}, llama.cpp {engine.label}."
    if asked.tiny:
        head += " Tiny models: the figures mean nothing."
    parts, failed = [head], 0
    for section in SECTIONS:
        if not asked.only or section.name in asked.only:
            began = time.monotonic()
            text, status = _measure_apart(section, card, asked, ends)
            print(f"{section.name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
            parts.append(f"### {section.title}\n\n{text}")
            failed += status != 0
            print(parts[-1], end="\n\n", flush=True)
    if asked.write:
        write_into(asked.write, COMMAND, "\n\n".join(parts))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [one.name for one in SECTIONS]
    parser.add_argument("--engine", metavar="PATH", help="a llama-server (one with CUDA, or built)")
    parser.add_argument("--device", metavar="NAME", help="the engine's name (its first of CUDA)")
    parser.add_argument("--only", nargs="*", metavar="SECTION", choices=names, help=str(names))
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"at most ({MINUTES:g})")
    parser.add_argument("--folder", type=Path, help="where models are written (8 GiB)")
    parser.add_argument("--tiny", action="store_true", help="see that it works")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put it between its markers")
    parser.add_argument("--section", choices=names, help=argparse.SUPPRESS)
    return parser


def _measure_here(name: str, card: Card, *, tiny: bool, folder: Path | None) -> int:
    """Measure one section in this process, and print its table."""
    section = next(one for one in SECTIONS if one.name == name)
    where = Path(tempfile.mkdtemp(prefix="lswap-gpu-", dir=folder))
    try:
        print(section.measure(Job(card, Workplace(where, None), tiny)))
    finally:
        shutil.rmtree(where, ignore_errors=True)
    return 0


def _measure_apart(
    section: Section, card: Card, asked: argparse.Namespace, ends: float
) -> tuple[str, int]:
    """Run a section as a process of its own; return its table, or why there is none."""
    patience = _PATIENCE_IF_TINY if asked.tiny else 1
    limit = min(section.limit * patience, ends - time.monotonic())
    if limit <= 0:
        return "Not measured: the time is over.", 1
    argv = [sys.executable, "-m", "bench.gpu", "--section", section.name]
    argv += ["--engine", str(card.engine.path), "--device", card.name]
    argv += ["--tiny"] * asked.tiny + (["--folder", str(asked.folder)] if asked.folder else [])
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, complained = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        _end(process)
        return f"Not measured: it was not done in {limit:.0f} s.", 1
    if process.returncode:
        lines = [line for line in complained.splitlines() if line.strip()][-_SHOWN:]
        return f"Not measured: {' / '.join(lines) or f'status {process.returncode}'}", 1
    return said.strip(), 0


def _end(process: subprocess.Popen[str]) -> None:
    """End a section with its servers: first politely."""
    process.terminate()
    try:
        process.communicate(timeout=_GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


if __name__ == "__main__":
    sys.exit(main())
