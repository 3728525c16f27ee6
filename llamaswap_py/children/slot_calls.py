"""Ask a child about its slots, and have it write or read one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from llamaswap_py.children.probe import ask
from llamaswap_py.children.slots import prompt_speed, read_counts, read_slots

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamaswap_py.children.probe import Answer
    from llamaswap_py.children.slots import SlotUse
    from llamaswap_py.endpoint import Endpoint


async def look(
    endpoint: Endpoint, restored: Mapping[int, int], patience: float
) -> tuple[tuple[SlotUse, ...], float | None]:
    """Return the slots that hold something, and tokens per second of the prompts read so far.

    `restored` is as in read_slots(). Wakes a child that sleeps. Raises OSError.
    """
    answer, counts = await asyncio.gather(
        ask(endpoint, "GET", "/slots", timeout=patience), count_prompts(endpoint, patience)
    )
    try:
        slots = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        slots = None
    return read_slots(slots, restored), prompt_speed(counts)


async def count_prompts(endpoint: Endpoint, patience: float) -> dict[str, float]:
    """Return llama-server's counters of prompts, those that it has; raises OSError."""
    answer = await ask(endpoint, "GET", "/metrics", timeout=patience)
    return read_counts(answer.body.decode("utf-8", "replace"))


async def act(endpoint: Endpoint, slot: int, action: str, name: str, patience: float) -> Answer:
    """Have a slot saved to, or restored from, a file of the child's slot folder.

    Raises OSError: TimeoutError where the child is still at it, which nothing but its end stops.
    """
    path, body = f"/slots/{slot}?action={action}", msgspec.json.encode({"filename": name})
    return await ask(endpoint, "POST", path, timeout=patience, body=body)
