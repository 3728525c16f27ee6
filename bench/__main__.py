"""`make bench`: measure lswap side by side with its peers.

Print a summary in Markdown: every figure with its target, what each peer scored in the same run,
the ratio, its spread, and whether it was met.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.machine import describe_machine
from bench.peer_option import PeerOption, read_peer_option
from bench.registry import PARTS, Part
from bench.rows import Row, summarise
from bench.run import Run
from bench.workplace import Workplace, free_port, open_workplace
from llamaswap_py.errors import EngineError, LswapError
from llamaswap_py.llamacpp.binaries import Engine, locate_engine


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for; return 1 if something could not be measured."""
    asked = _parser().parse_args(argv)
    if asked.what[:1] == ["models"]:
        return _write_models_into(asked.what[1:])
    known = {part.name: part for part in PARTS}
    unknown = [name for name in asked.what if name not in known]
    if unknown:
        return _refuse(f"no part is named {unknown[0]!r}; known: {', '.join(known)}")
    parts = [known[name] for name in asked.what] or [one for one in PARTS if one.default]
    _prepare_process()
    try:
        with open_workplace() as place:
            return _measure(parts, _start(place, asked), asked.write)
    except LswapError as error:
        return _refuse(str(error))


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {part.name:11} {part.about}" for part in PARTS)
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=f"parts:\n{listed}\n  models DIR  write the two tiny models, for a --peer by URL",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", metavar="PART", help="default: all of them")
    parser.add_argument("--rounds", type=int, metavar="N", help="at least 1 (5; --quick: 1)")
    parser.add_argument("--quick", action="store_true", help="see that it works: figures are noise")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        type=_peer_option,
        metavar="NAME=WHAT",
        help="another peer: http://127.0.0.1:PORT, or a command with {port} and what it needs of "
        "{config} {ini} {engine} {upstream} (bench/peer_option.py); again and again",
    )
    parser.add_argument("--upstream", type=int, metavar="PORT", help="the stub's TCP port (any)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the Markdown into a file, too")
    return parser


def _peer_option(text: str) -> PeerOption:
    try:
        return read_peer_option(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _prepare_process() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every server is ended


def _start(place: Workplace, asked: argparse.Namespace) -> Run:
    engine: Engine | str
    try:
        engine = locate_engine("auto")
    except EngineError as error:
        engine = f"no llama-server: {error}"
    rounds = asked.rounds or (1 if asked.quick else 5)
    return Run(
        place=place,
        rounds=max(rounds, 1),
        note=_note,
        engine=engine,
        models=write_models(place.folder),
        upstream=asked.upstream or free_port(),
        further_peers=asked.peer,
        quick=asked.quick,
    )


def _measure(parts: Sequence[Part], run: Run, write: Path | None) -> int:
    began = time.monotonic()
    rounds = "1 round" if run.rounds == 1 else f"{run.rounds} rounds"
    text = [f"{describe_machine(run.engine)}; {rounds}.{_busy()}"]
    print(text[0], end="\n\n", flush=True)
    rows: list[Row] = []
    failed = False
    for part in parts:
        try:
            for section in part.measure(run):
                rows += section.rows
                if section.table:
                    _note("")
                    text.append(section.table)
                    print(section.table, end="\n\n", flush=True)
        except (LswapError, OSError, TimeoutError) as error:
            failed = True
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            rows.append(Row(part.about, {}, alone=part.name, failed=why))
            _note("")
            print(f"{part.name}: {error}", file=sys.stderr, flush=True)
    took = f"{(time.monotonic() - began) / 60:.1f} minutes; load average at the end "
    took += " ".join(f"{value:.2f}" for value in os.getloadavg())
    summary = f"## Summary\n\n{text[0]}\n\n{summarise(rows)}\n\nIt took {took}."
    _note("")
    print(summary, flush=True)
    if write is not None:
        write.write_text("\n\n".join([summary, "## Tables", *text[1:]]) + "\n", encoding="utf-8")
    return 1 if failed else 0


def _busy() -> str:
    if sys.platform != "linux":
        raise NotImplementedError
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load <= cores / 2:
        return ""
    return " The machine was busy: only figures of CPU and memory mean much."


def write_models(folder: Path) -> dict[str, Path]:
    """Write two tiny real models; return their paths by name."""
    from llamaswap_py.demo.tiny_gguf import write_tiny_model

    said = {"alpha": "alpha says a few plain words", "beta": "beta answers with other words"}
    paths = {name: folder / f"{name}.gguf" for name in said}
    for name, sentence in said.items():
        write_tiny_model(paths[name], sentence)
    return paths


def _write_models_into(where: Sequence[str]) -> int:
    if len(where) != 1 or not Path(where[0]).is_dir():
        return _refuse("python -m bench models FOLDER: a folder that exists, please")
    for path in write_models(Path(where[0])).values():
        print(path)
    return 0


def _refuse(what: str) -> int:
    print(f"error: {what}", file=sys.stderr)
    return 2


def _note(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
