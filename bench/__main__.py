"""`python -m bench [relay] [swap] [hot] [big_body] [--rounds N] [--seconds S]`.

Run the benchmarks and print their tables."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from bench.relay import measure_real_relay, measure_relay
from bench.workplace import Workplace, open_workplace
from llamaswap_py.errors import EngineError, LswapError


def main() -> int:
    """Run what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "what", nargs="*", choices=[[], "relay", "swap", "hot", "big_body"], help="default: all"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="at least 1 (5)")
    parser.add_argument("--seconds", type=float, default=60, metavar="S", help="of `hot` (60)")
    asked = parser.parse_args()
    what = asked.what or ["relay", "swap", "hot", "big_body"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every server is ended
    try:
        with open_workplace() as place:
            _run(place, what, max(asked.rounds, 1), asked.seconds)
    except LswapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(place: Workplace, what: list[str], rounds: int, seconds: float) -> None:
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load average {load} before\n")
    if "relay" in what:
        print(measure_relay(place, rounds, _note), end="\n\n", flush=True)
    if "big_body" in what:
        from bench.big_body import measure_big_body

        print(measure_big_body(place, rounds, _note), end="\n\n", flush=True)
    if what == ["big_body"]:
        return
    models = _write_models(place.folder)
    try:
        from llamaswap_py.engine.locate import locate_engine

        engine = locate_engine("auto")
    except EngineError as error:
        print(f"not measured, for want of a llama-server: {error}")
        return
    if "relay" in what:
        table = measure_real_relay(place, engine, models["alpha"], rounds, _note)
        print(table, end="\n\n", flush=True)
    if "swap" in what:
        from bench.swap import measure_swaps

        for table in measure_swaps(place, engine, models, rounds, _note):
            print(table, end="\n\n", flush=True)
    if "hot" in what:
        from bench.hot import measure_hot

        print(measure_hot(place, engine, models, seconds, _note), end="\n\n", flush=True)


def _write_models(folder: Path) -> dict[str, Path]:
    from llamaswap_py.demo.tiny_gguf import write_tiny_model

    said = {"alpha": "alpha says a few plain words", "beta": "beta answers with other words"}
    paths = {name: folder / f"{name}.gguf" for name in said}
    for name, sentence in said.items():
        write_tiny_model(paths[name], sentence)
    return paths


def _note(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
