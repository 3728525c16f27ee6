"""docs/compatibility.md: how many of llama.cpp's server tests pass, and why some do only plain."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypeAlias

Outcomes: TypeAlias = dict[str, tuple[str, str]]
"""Test -> its outcome (`passed`, `failed`, `skipped`) and the first line of what was wrong."""


class Reason(NamedTuple):
    """Why tests pass only on plain llama-server: a name for the kind, the tests, the reason."""

    kind: str
    tests: str
    text: str


REASONS: Final[Sequence[Reason]] = ()


def only_plain(plain: Outcomes, through: Outcomes) -> list[str]:
    """Return the tests that pass on plain llama-server alone, in their order."""
    return [
        test
        for test, (outcome, _) in plain.items()
        if outcome == "passed" and through.get(test, ("missing", ""))[0] != "passed"
    ]


def sorted_by_reason(
    tests: Sequence[str], reasons: Sequence[Reason] = REASONS
) -> dict[Reason | None, list[str]]:
    """Return the tests of each reason; None has those that no reason is written for."""
    found: dict[Reason | None, list[str]] = {}
    for test in tests:
        reason = next((one for one in reasons if re.search(one.tests, test)), None)
        found.setdefault(reason, []).append(test)
    return found


def page(plain: Outcomes, through: Outcomes, engine: str) -> str:
    """Return the page."""
    differ = only_plain(plain, through)
    passed = [sum(one[0] == "passed" for one in each.values()) for each in (plain, through)]
    both = passed[0] - len(differ)
    lines = [
        "# Compatibility with llama-server",
        "",
        "llama.cpp's own server tests, from the source tree of the engine, run against plain",
        "llama-server and through lswap: `make compat` writes this page. The models that the tests",
        "fetch from Hugging Face are replaced by tiny ones, so tests of what a model says, of",
        "images, of rerankers and of downloads fail in both and tell nothing.",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, llama-server {engine}:",
        f"{len(plain)} tests run, {passed[0]} pass plain, {both} of these through lswap.",
        "",
    ]
    groups = sorted_by_reason(differ)
    lines += ["## What passes only without lswap", "", "| kind | tests | why |", "|---|---|---|"]
    for reason, tests in groups.items():
        if reason is not None:
            lines.append(f"| {reason.kind} | {len(tests)} | {reason.text} |")
    if None in groups:
        lines.append(f"| not looked at yet | {len(groups[None])} | see below |")
    for reason, tests in groups.items():
        lines += ["", f"### {reason.kind if reason else 'Not looked at yet'}", ""]
        lines += [f"* `{_short(test)}`" for test in tests]
    return "\n".join(lines) + "\n"


def _short(test: str) -> str:
    return test.removeprefix("unit/").replace(".py::", ": ")
