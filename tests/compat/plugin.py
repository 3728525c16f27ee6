"""A pytest plugin: writes what became of each test into the file that COMPAT_RECORD names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

RECORD = "COMPAT_RECORD"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write a line for each step of a test that says something."""
    if report.when == "call" or report.outcome != "passed":
        line = {"test": report.nodeid, "outcome": report.outcome, "why": _why(report)}
        with Path(os.environ[RECORD]).open("a") as file:
            file.write(json.dumps(line) + "\n")


def _why(report: pytest.TestReport) -> str:
    """Return why it was skipped or failed, in one line."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return "" if crash is None else str(crash.message).splitlines()[0][:300]
