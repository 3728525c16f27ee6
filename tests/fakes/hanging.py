"""A disk that hangs (hang.c), and begins and ends to do so when it is told."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.needs import C_COMPILER

_SOURCE = Path(__file__).parent / "hang.c"


@dataclass(frozen=True, slots=True)
class HangingDisk:
    """`env` goes into the environment of a process: what has `part` in its path hangs for it."""

    library: Path
    gate: Path
    part: str

    @classmethod
    def build(cls, folder: Path, part: str) -> HangingDisk:
        """Compile it; skips the test where there is no compiler."""
        library = folder / "hang.so"
        words = [C_COMPILER.require(), "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"]
        subprocess.run(words, check=True)
        return cls(library, folder / "hangs-now", part)

    @property
    def env(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(self.library),
            "FAKE_HANG": self.part,
            "FAKE_HANG_WHILE": str(self.gate),
        }

    def hang(self) -> None:
        self.gate.touch()

    def go_on(self) -> None:
        self.gate.unlink(missing_ok=True)
