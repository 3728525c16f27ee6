"""Watches a child that serves: looks at it at intervals, and asks for its slots if it is silent."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from llamaswap_py.children.ask import get
from llamaswap_py.children.family import work_of, work_of_family
from llamaswap_py.children.holders import serves_itself
from llamaswap_py.children.liveness import Liveness
from llamaswap_py.tasks.guard import keep_going
from llamaswap_py.tasks.tick import BEAT, until_beat
from llamaswap_py.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.children.liveness import ChildRequests
    from llamaswap_py.endpoint import Endpoint

_LOOKS: Final = 32
"""Number of looks in the time that a child may be silent."""
_IDLE_LOOKS: Final = 8
"""The same while no request is open: at most one short pause of that time counts as silence."""

_PROGRAM_BUSY: Final = 0.01
"""The share of its silence that processor time must reach to count as work, for other programs than
llama-server: they may mostly wait for a GPU."""


async def watch_child(
    pid: int,
    endpoint: Endpoint,
    patience: float,
    requests: Callable[[], ChildRequests],
    lines: Callable[[], int],
    *,
    program: bool,
) -> str:
    """Return which signs of life a child, or another `program`, lacks; a bug here ends no child."""
    watch = watch_program if program else watch_llama_server
    look = partial(watch, pid, endpoint, patience, requests, lines)
    silence = await keep_going("liveness", look)
    return f"{silence}, {'' if program else 'no change in /slots, '}no log line"


async def watch_llama_server(
    pid: int,
    endpoint: Endpoint,
    patience: float,
    requests: Callable[[], ChildRequests],
    lines: Callable[[], int],
) -> str:
    """Return which signs of life a child lacks, once it counts as hung.

    For an idle child each look is only a comparison, every other second; for one that answers it
    reads /proc.
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
    """Return the child's answer to /slots, None if it does not answer."""
    try:
        answer = await get(endpoint, "/slots", patience)
    except OSError:
        return None
    return answer.body if answer.status == 200 else None


async def watch_program(
    pid: int,
    endpoint: Endpoint,
    patience: float,
    requests: Callable[[], ChildRequests],
    lines: Callable[[], int],
) -> str:
    """Return which signs of life another program lacks, once it counts as hung.

    It is judged only while it owes an answer, by the work of all its processes. If none of them
    holds the socket, it is not judged: another process serves (a container).
    """
    loop = asyncio.get_running_loop()
    pause = min(BEAT, patience / _LOOKS)
    liveness = Liveness(patience, loop.time(), busy_share=_PROGRAM_BUSY)
    received = 0
    while True:
        await asyncio.sleep(until_beat(loop.time(), pause))
        now = replace(requests(), others=0)
        silent = now.owing and now.received == received
        received = now.received
        work = await asyncio.to_thread(work_of_family, pid) if silent else None
        liveness.look(loop.time(), now, lines(), work, longest=4 * pause + patience / 4)
        if liveness.silence >= patience:
            if await asyncio.to_thread(serves_itself, pid, endpoint):
                return f"for {format_duration(patience)} no byte of an answer, no processor time"
            liveness = Liveness(patience, loop.time(), busy_share=_PROGRAM_BUSY)
