"""Watch over a child that serves: look at it now and then, and ask it when it is silent."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from llamaswap_py.beat import BEAT, until_beat
from llamaswap_py.children.liveness import Liveness, Work
from llamaswap_py.children.probe import get
from llamaswap_py.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.children.liveness import Requests
    from llamaswap_py.endpoint import Endpoint

_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
_LOOKS: Final = 32
"""Looks in the time that a child may be silent."""
_IDLE_LOOKS: Final = 8
"""The same while no request is open: of that time only a short pause can count as silence."""


async def keep_vigil(
    pid: int,
    endpoint: Endpoint,
    patience: float,
    requests: Callable[[], Requests],
    lines: Callable[[], int],
) -> str:
    """Return what a child does not show any more, once it counts as hung.

    An idle child costs a comparison every other second; one that answers, a look into /proc.
    """
    loop = asyncio.get_running_loop()
    pause, idle_pause = min(BEAT, patience / _LOOKS), min(BEAT, patience / _IDLE_LOOKS)
    liveness = Liveness(patience, loop.time())
    idle = False
    while True:
        await asyncio.sleep(until_beat(loop.time(), idle_pause if idle else pause))
        longest = pause if idle else 4 * pause + patience / 4
        now = requests()
        idle = now.owing == now.others == 0
        work = None if idle else work_of(pid)
        liveness.look(loop.time(), now, lines(), work, longest=longest)
        if liveness.asks:
            liveness.answered(await _slots(endpoint, patience / 4))
        if liveness.spins:
            busy = format_duration(round(liveness.spinning))
            return f"for {busy} processor time, but no byte of an answer, no line"
        if liveness.hung:
            return f"for {format_duration(patience)} no byte of an answer, no processor time"


async def _slots(endpoint: Endpoint, patience: float) -> bytes | None:
    """Return what the child says of its slots, None when it does not."""
    try:
        answer = await get(endpoint, "/slots", patience)
    except OSError:
        return None
    return answer.body if answer.status == 200 else None


def work_of(pid: int) -> Work | None:
    """Read /proc/PID/stat and io; None where there is no /proc or the process is gone.

    See proc(5): the fields 14 and 15 of stat are utime and stime, counted from behind the name.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
    except (OSError, ValueError, IndexError):
        return None
    fetched = 0
    try:
        with open(f"/proc/{pid}/io", "rb") as file:
            fetched = int(dict(line.split(b": ") for line in file)[b"read_bytes"])
    except (OSError, ValueError, KeyError):
        pass  # not for everybody's eyes
    return Work(ticks * _TICK, fetched)
