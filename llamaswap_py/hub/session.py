"""The HTTP session of huggingface_hub, made safe for a process that forks, and against the hub."""

from __future__ import annotations

import os
import time
from functools import cache, partial
from typing import TYPE_CHECKING, Final, TypeVar

from llamaswap_py.hub.refs import HubError
from llamaswap_py.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx


ANSWERS: Final = 60.0
"""Seconds for an answer without a file: a byte now and then would satisfy a timeout per read."""
_T = TypeVar("_T")


def within(seconds: float, call: Callable[[], _T], moved: Callable[[], float] | None = None) -> _T:
    """Return what a call returns; raises HubError when it takes longer.

    `moved` says when it last got on, on `time.monotonic()`: so long after that it has failed. The
    call goes on in its thread, which keeps no process from ending.
    """
    threads = Workers(1, "hub")
    job = threads.submit(call)
    begun = time.monotonic()
    try:
        while True:
            since = max(begun, moved() if moved is not None else 0.0)
            try:
                return job.result(max(since + seconds - time.monotonic(), 0.0))
            except TimeoutError:
                if job.done() or (moved is not None and moved() > since):
                    continue
                raise HubError(
                    f"the hub has sent nothing usable for {seconds:.0f} s",
                    remedy="try again; what is there is kept",
                ) from None
    finally:
        threads.shutdown(wait=False)


@cache
def prepare_session() -> None:
    """Call this before huggingface_hub asks anything, where processes are started meanwhile.

    It closes its session in every forked child (utils/_http.py, os.register_at_fork). A lock of the
    session that another thread holds at that moment is held in the child for ever: it would never
    come to its program, nor whoever waits for that. uvloop starts processes by such a fork.
    """
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    from llamaswap_py.outgoing import Guard

    def session() -> httpx.Client:
        client = default_client_factory()
        Guard(constants.ENDPOINT).watch(client)
        client.close = partial(_close, client.close, os.getpid())  # type: ignore[method-assign]
        return client

    set_client_factory(session)


def _close(close: Callable[[], None], owner: int) -> None:
    if os.getpid() == owner:
        close()
