"""The table of docs/scheduling.md: every case of the library under every policy.

Virtual time, so the figures are the same on any machine: `python -m bench.scheduling`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Final

from bench.markers import write_into
from llamaswap_py.simulator.cases import library
from llamaswap_py.simulator.peers import fewest_loads, most_runs
from llamaswap_py.simulator.policies import LSWAP, POLICIES, StuckError, run_case
from llamaswap_py.simulator.report import COLUMNS, markdown, row_of
from llamaswap_py.simulator.run_records import Case

COMMAND: Final = "python -m bench.scheduling --write docs/scheduling.md"


def measure_scheduling(cases: tuple[Case, ...] | None = None) -> str:
    """Return the table as Markdown, and below it what the audit found."""
    rows: list[tuple[str, ...]] = []
    found: list[str] = []
    for case in cases or library():
        title = case.name
        for policy in POLICIES:
            try:
                result = run_case(case, policy)
            except StuckError as error:
                rows.append((title, policy, *[""] * (len(COLUMNS) - 2), str(error)))
                continue
            if policy == LSWAP:
                found.append(f"{case.name}: {result.eta_used:.0%}")
                found += [f"BROKEN {breach}" for breach in result.breaches]
            rows.append((title, *row_of(result)))
            title = ""
        if best := optimum(case):
            rows.append(("", *best, *[""] * (len(COLUMNS) - 2)))
    notes = "; ".join(found)
    return f"{markdown(('case', *COLUMNS), rows)}\n\nShare of the promised longest wait: {notes}."


def optimum(case: Case) -> tuple[str, str] | None:
    """Return the fewest loads that any policy can do with, and how that is known."""
    if (loads := fewest_loads(case)) is not None:
        return "optimum", str(loads)
    if (runs := most_runs(case)) is not None and runs > 1:
        return "at least", str(runs)
    return None


def describe(cases: tuple[Case, ...]) -> str:
    """Return a list of what each case is."""
    return "\n".join(f"* **{case.name}**: {case.note}" for case in cases)


def main() -> None:
    """Print the table, with what each case is, or write both into a page."""
    parser = argparse.ArgumentParser(prog="python -m bench.scheduling", description=__doc__)
    parser.add_argument("cases", nargs="*", help="names of cases (default: all)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put it between its markers")
    asked = parser.parse_args()
    known = {case.name: case for case in library()}
    for name in asked.cases:
        if name not in known:
            parser.error(f"no case is named {name!r}; known: {', '.join(known)}")
    cases = tuple(known[name] for name in asked.cases) or tuple(known.values())
    began = time.perf_counter()
    text = f"{describe(cases)}\n\n{measure_scheduling(cases)}"
    if asked.write:
        write_into(asked.write, COMMAND, text)
    else:
        print(text)
    print(f"\n{time.perf_counter() - began:.1f} s of wall time")


if __name__ == "__main__":
    main()
