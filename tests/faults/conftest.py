"""The fixtures of the fault tests: the same lab as the end-to-end tests have, and a clock."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import needs
from tests.real.conftest import lab

__all__ = ["lab"]

_SOURCE = Path(__file__).parents[1] / "fakes" / "clock.c"


@dataclass(frozen=True)
class FakeClock:
    """A wall clock that `file` moves: seconds, as a 64-bit number."""

    file: Path
    env: dict[str, str]

    def move(self, seconds: int) -> None:
        """Set it that far from the true time; whoever maps the file sees it at once."""
        with self.file.open("r+b") as file:
            file.write(struct.pack("q", seconds))


@pytest.fixture(scope="session")
def clock_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = needs.C_COMPILER.require()
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    flags = ("-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE), "-ldl")
    subprocess.run([compiler, *flags], check=True)
    return library


@pytest.fixture
def clock(clock_library: Path, tmp_path: Path) -> FakeClock:
    """Return a clock for `lab.lswap(…, env=clock.env)` that shows the true time."""
    file = tmp_path / "clock"
    file.write_bytes(bytes(8))
    return FakeClock(file, {"LD_PRELOAD": str(clock_library), "FAKE_CLOCK": str(file)})
