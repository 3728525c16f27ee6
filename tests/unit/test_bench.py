"""That `make bench` works: its smallest parts, once. The figures are not looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import main
from tests import needs

ROOT = Path(__file__).parents[2]


def test_a_part_runs_and_is_summarised(tmp_path: Path) -> None:
    needs.C_COMPILER.require()
    page = tmp_path / "page.md"
    argv = [sys.executable, "-m", "bench", "leaving", "--quick", "--write", str(page)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    summary = done.stdout.partition("## Summary")[2]
    rows = [line for line in summary.splitlines() if "`leaving`" in line]
    assert len(rows) == 3
    assert not [row for row in rows if "not measured" in row or "not judged" in row]
    assert page.read_text().startswith("## Summary")


def test_a_part_that_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fast"]) == 2
    assert "no part is named 'fast'; known: relay, real_relay" in capsys.readouterr().err


def test_models_for_a_peer_that_runs_already(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", str(tmp_path)]) == 0
    assert sorted(one.name for one in tmp_path.iterdir()) == ["alpha.gguf", "beta.gguf"]
    assert main(["models", str(tmp_path / "none")]) == 2
    assert "a folder that exists" in capsys.readouterr().err
