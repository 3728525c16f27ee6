"""`make compat`: run llama.cpp's server tests plain and through lswap, and say what differs.

The engine is the one that `lswap engine list` names first, or LSWAP_LLAMA_SERVER.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llamaswap_py.errors import LswapError
from llamaswap_py.llamacpp.binaries import VARIABLE, Engine, locate_engine
from tests.compat import sections
from tests.compat.engines import pinned
from tests.sources import source_of
from tests.upstream.models import write_cache
from tests.upstream.page import Outcomes, part_of, section

ROOT: Final = Path(__file__).resolve().parents[2]
WORK: Final = ROOT / "build" / "upstream"
_TESTS: Final = Path("tools/server/tests")
_NAME: Final = re.compile(r"""(?:["']model["']\s*:|\bmodel=)\s*["']([^"'{}]+)["']""")


@dataclass(frozen=True, slots=True)
class Suite:
    """Where the tests are, with what they run, and how long they may take."""

    tree: Path
    python: Path
    engine: Engine
    file_limit: int


def main() -> int:
    """Run both, print what passes only without lswap, and write the page if asked to."""
    asked = _parser().parse_args()
    try:
        engine = locate_engine()
        source = asked.source or source_of(engine.path, f"{_TESTS}/unit")
    except LswapError as error:
        print(error, file=sys.stderr)
        return 1
    suite = Suite(bring(source), environment(source), engine, asked.limit)
    write_cache(WORK / "cache")
    files = sorted(path.stem for path in (suite.tree / _TESTS / "unit").glob("test_*.py"))
    chosen = [name for name in files if not asked.files or name in asked.files]
    results = {
        how: run(suite, how, chosen, asked.jobs) for how in ("plain", "lswap") if how in asked.how
    }
    for how, outcomes in results.items():
        kept = _results(how, engine)
        known = json.loads(kept.read_text()) if kept.exists() and asked.files else {}
        kept.write_text(json.dumps(known | outcomes, indent=1))
    plain, through = (_kept(_results(how, engine)) for how in ("plain", "lswap"))
    text = section(plain, through, engine.label, listed=f"b{engine.build}" == pinned())
    print(text)
    if asked.write:
        sections.write(asked.write, part_of(engine.label), text)
    return 0


def bring(source: Path) -> Path:
    """Copy the tests, which write beside themselves; returns the root of the copy."""
    tree = WORK / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(source / _TESTS, tree / _TESTS)
    (tree / _TESTS / "tmp").mkdir(exist_ok=True)
    (tree / "models").symlink_to(source / "models")
    return tree


def environment(source: Path) -> Path:
    """Return the Python that has what the tests need, in an environment of its own."""
    wanted = source / _TESTS / "requirements.txt"
    folder = WORK / "venv"
    done = folder / "requirements.txt"
    python = folder / "bin" / "python"
    if not done.exists() or done.read_text() != wanted.read_text():
        venv.create(folder, clear=True, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "-r", str(wanted)]
        subprocess.run(install, check=True)
        shutil.copy(wanted, done)
    return python


def run(suite: Suite, how: str, files: Iterable[str], jobs: int) -> Outcomes:
    """Run files of tests, `jobs` of them at once, each in a process and with a port of its own."""
    record = WORK / f"record-{how}"
    shutil.rmtree(record, ignore_errors=True)
    record.mkdir(parents=True)
    ports = iter(range(18000, 60000, 20))
    work = [(name, next(ports)) for name in files]
    with ThreadPoolExecutor(jobs) as pool:
        for name in pool.map(lambda one: _run_file(suite, how, one[0], one[1], record), work):
            print(f"{how}: {name}", file=sys.stderr)
    return outcomes_of(path.read_text() for path in sorted(record.glob("*.jsonl")))


def outcomes_of(records: Iterable[str]) -> Outcomes:
    """Return what became of each test: a failure while it is set up or torn down counts."""
    found: Outcomes = {}
    for record in records:
        for line in record.splitlines():
            one = json.loads(line)
            if found.get(one["test"], ("passed",))[0] != "failed":
                found[one["test"]] = (one["outcome"], one["why"])
    return found


def _run_file(suite: Suite, how: str, name: str, port: int, record: Path) -> str:
    tests = suite.tree / _TESTS
    names = sorted(set(_NAME.findall((tests / "unit" / f"{name}.py").read_text())))
    server = suite.engine.path if how == "plain" else _wrapper()
    keep = ("PATH", "HOME", "LANG", "XDG_CACHE_HOME", "XDG_DATA_HOME")
    env = {key: value for key, value in os.environ.items() if key in keep} | {
        "PYTHONPATH": f"{tests}:{Path(__file__).parent}",
        "LLAMA_SERVER_BIN_PATH": str(server),
        "LLAMA_CACHE": str(WORK / "cache"),
        "PORT": str(port),
        VARIABLE: str(suite.engine.path),
        "UPSTREAM_RECORD": str(record / f"{name}.jsonl"),
        "UPSTREAM_MODEL": str(WORK / "cache" / "stand-in.gguf"),
        "UPSTREAM_WORK": str(WORK),
        "UPSTREAM_NAMES": json.dumps(names),
        "UPSTREAM_NAMED": "" if how == "plain" else "yes",
    }
    command = [str(suite.python), "-m", "pytest", "-q", "-p", "plugin", "-m", "not slow"]
    with (record / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"unit/{name}.py"],
            cwd=tests,
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(suite.file_limit)
        except subprocess.TimeoutExpired:
            print(f"{how}: {name} took too long, and was ended", file=sys.stderr)
        finally:
            _end_group(process)
    return name


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what a file of tests has started, whatever it left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wrapper() -> Path:
    """Write the program that stands for llama-server; it runs with this Python."""
    path = WORK / "llama-server"
    path.write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.upstream.served "$@"\n'
    )
    path.chmod(0o755)
    return path


def _results(how: str, engine: Engine) -> Path:
    return WORK / f"{how}-{engine.label}.json"


def _kept(path: Path) -> Outcomes:
    loaded = json.loads(path.read_text()) if path.exists() else {}
    return {test: (outcome, why) for test, (outcome, why) in loaded.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="test_basic, … (default: all)")
    parser.add_argument("--how", nargs="+", choices=("plain", "lswap"), default=("plain", "lswap"))
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="files at once")
    parser.add_argument("--limit", type=int, default=900, metavar="S", help="seconds for a file")
    parser.add_argument("--source", type=Path, metavar="DIR", help="llama.cpp's source tree")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write its part of the page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
