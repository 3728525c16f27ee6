"""`make compat`: run the basics with each build, and write the table of docs/compatibility.md.

The table has a column for each build that was ever run here; the others keep their last results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from llamaswap_py.llamacpp.binaries import VARIABLE
from llamaswap_py.llamacpp.probe import probe_engine
from tests.compat import sections
from tests.compat.engines import BUILDS, Build, build, chosen
from tests.compat.plugin import RECORD
from tests.compat.rows import ROWS
from tests.compat.table import Outcome, Run, oldest_whole, section

ROOT: Final = Path(__file__).resolve().parents[2]
WORK: Final = ROOT / "build" / "compat"
PART: Final = "builds"


def main() -> int:
    """Build what is missing, run the tests, print the table; write it into a page if asked to."""
    asked = _parser().parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    for one in chosen(asked.builds):
        if not one.is_there and build(one):
            print(f"{one.ref} could not be built: it keeps its last results", file=sys.stderr)
            continue
        _keep(one, _run(one, asked.pytest))
    runs = {one: run for one in BUILDS if (run := _kept(one)) is not None}
    if not runs:
        return 1
    text = section(runs)
    print(text)
    if asked.write:
        sections.write(asked.write, PART, text)
    whole = oldest_whole(runs)
    print(f"the oldest build with which no test failed: {whole.ref if whole else 'none'}")
    return 0


def _run(one: Build, more: list[str]) -> Run:
    """Run all tests of the rows with one build."""
    record = WORK / f"{one.ref}.jsonl"
    record.unlink(missing_ok=True)
    record.touch()
    names = dict.fromkeys(test.partition("[")[0] for row in ROWS for test in row.tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.compat.plugin"]
    env = {**os.environ, VARIABLE: str(one.server), RECORD: str(record), "PYTHONPATH": str(ROOT)}
    print(f"{one.ref}: {len(names)} tests and their parameters", flush=True)
    subprocess.run([*command, *more, *names], cwd=ROOT, env=env, check=False)
    outcomes: dict[str, Outcome] = {}
    for line in record.read_text().splitlines():
        said = json.loads(line)
        if outcomes.get(said["test"], Outcome("")).outcome != "failed":
            outcomes[said["test"]] = Outcome(said["outcome"], said["why"])
    label = probe_engine(one.server, "test").label
    return Run(f"{datetime.now(UTC):%Y-%m-%d}", label, outcomes)


def _keep(one: Build, run: Run) -> None:
    (WORK / f"{one.ref}.json").write_text(json.dumps(run._asdict(), indent=1))


def _kept(one: Build) -> Run | None:
    path = WORK / f"{one.ref}.json"
    if not path.exists():
        return None
    said = json.loads(path.read_text())
    outcomes = {test: Outcome(*each) for test, each in said["outcomes"].items()}
    return Run(said["date"], said["label"], outcomes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.compat", description=__doc__)
    parser.add_argument("builds", nargs="*", metavar="BUILD", help="b9093, … (default: all)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the table there, too")
    parser.add_argument(
        "--pytest", nargs=argparse.REMAINDER, default=[], help="more words for pytest; comes last"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
