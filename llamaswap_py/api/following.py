"""Lets a request follow an alias to its next model, if an RPC server of the first one is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamaswap_py.errors import ApiError
from llamaswap_py.scheduler.types import RPC_LOST

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llamaswap_py.api.request import Call


async def follow_alias(call: Call, name: str, attempt: Callable[[str], Awaitable[None]]) -> str:
    """Attempt a request with the preset that `name` means, and return the one that took it.

    `attempt` raises ApiError before the client got any of an answer. If the reason is that an RPC
    server is gone, and `name` now means another preset, that one is attempted: each at most once.
    """
    tried: set[str] = set()
    while True:
        preset = call.find_preset(name)
        tried.add(preset)
        try:
            await attempt(preset)
        except ApiError as error:
            following = call.supervisor.names.resolve(name, call.id)
            lost = error.details.get("failure") == RPC_LOST
            if not lost or following is None or following in tried or not call.may_use(following):
                raise
        else:
            return preset
