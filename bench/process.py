"""What the kernel says of a process: memory and wake-ups."""

from __future__ import annotations

from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20


def pss(pid: int) -> int:
    """Return its resident bytes, shared pages counted by share."""
    return _number(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") * KIB


def wakeups(pid: int) -> int:
    """Return how often its threads have slept and been woken."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(_number(task / "status", "voluntary_ctxt_switches:") for task in tasks)


def _number(path: Path, label: str) -> int:
    line = next(one for one in path.read_text().splitlines() if one.startswith(label))
    return int(line.split()[1])
