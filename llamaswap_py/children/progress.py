"""Signs of a load that goes on: bytes that the kernel saw the child read or map."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Sample:
    """Bytes so far: read through system calls, fetched from disk, resident, and of those mapped."""

    rchar: int
    read_bytes: int
    resident: int
    mapped: int


def sample(pid: int) -> Sample | None:
    """Read /proc/PID/io and statm; None where there is no /proc or the process is gone."""
    try:
        with open(f"/proc/{pid}/io", "rb") as file:
            io = dict(line.split(b": ") for line in file.read().splitlines())
        with open(f"/proc/{pid}/statm", "rb") as file:
            pages = [int(field) for field in file.read().split()[1:3]]
        return Sample(int(io[b"rchar"]), int(io[b"read_bytes"]), pages[0] * _PAGE, pages[1] * _PAGE)
    except (OSError, ValueError, KeyError, IndexError):
        return None


def total_size(files: tuple[str, ...]) -> int:
    """Return the bytes of all files together; one that is missing counts nothing."""
    total = 0
    for file in files:
        try:
            total += os.path.getsize(file)
        except OSError:
            continue
    return total


class LoadProgress:
    """Join what the child reports with what the kernel shows; knows when it last moved.

    Times are the event loop's, in seconds.
    """

    def __init__(self, files: tuple[str, ...], now: float) -> None:
        self._total = total_size(files)
        self._best = Sample(0, 0, 0, 0)
        self.last_sign = now
        self.fraction: float | None = None
        self.stage: str | None = None

    def heard(self, now: float) -> None:
        """Note any line from the child."""
        self.last_sign = now

    def reported(self, fraction: float | None, stage: str | None, now: float) -> None:
        """Note a state line of the child."""
        self.last_sign = now
        self.stage = stage or self.stage
        self._raise_to(fraction)

    def sampled(self, seen: Sample | None, now: float) -> None:
        """Note what the kernel counts; only growth beyond the highest so far is a sign."""
        if seen is None:
            return
        best = self._best
        if (
            seen.rchar > best.rchar
            or seen.read_bytes > best.read_bytes
            or seen.resident > best.resident
        ):
            self.last_sign = now
        self._best = Sample(
            max(seen.rchar, best.rchar),
            max(seen.read_bytes, best.read_bytes),
            max(seen.resident, best.resident),
            max(seen.mapped, best.mapped),
        )
        if self._total:
            moved = max(self._best.rchar, self._best.read_bytes, self._best.mapped)
            self._raise_to(min(0.99, moved / self._total))

    def _raise_to(self, fraction: float | None) -> None:
        if fraction is not None:
            self.fraction = max(self.fraction or 0.0, fraction)
