"""Tries whether an RPC server answers, for the scheduler, which asks before it loads a preset."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.rpc_connect import CONNECT, connect
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.types import RPC_LOST, Failure
from llamaswap_py.tasks import guard

_PATIENCE: Final = 3 * CONNECT
"""Seconds until a try ends in any case: to look up a name may take long."""


def begin_try(
    endpoint: str, tasks: asyncio.TaskGroup, dispatch: Callable[[ev.Event], None]
) -> None:
    """Try a server in a task; `ServerTried` follows in any case."""
    tasks.create_task(guard.contained("rpc", _try(endpoint, dispatch)), name=f"try {endpoint}")


async def _try(endpoint: str, dispatch: Callable[[ev.Event], None]) -> None:
    failure: Failure | None = Failure(RPC_LOST, f"lswap failed to try the RPC server {endpoint}")
    try:
        failure = await failure_of(endpoint)
    finally:
        dispatch(ev.ServerTried(endpoint, failure))


async def failure_of(endpoint: str) -> Failure | None:
    """Return why an RPC server cannot be used, None if it takes a connection."""
    try:
        async with asyncio.timeout(_PATIENCE):
            await asyncio.to_thread(connect, endpoint)
    except TimeoutError:
        text = f"the RPC server {endpoint} does not answer within {_PATIENCE:g} s"
        return Failure(RPC_LOST, text)
    except EngineError as error:
        return Failure(RPC_LOST, str(error))
    return None
