"""The HTTP session of huggingface_hub, made safe for a process that forks."""

from __future__ import annotations

import os
from functools import cache, partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx


@cache
def prepare_session() -> None:
    """Call this before huggingface_hub asks anything, where processes are started meanwhile.

    It closes its session in every forked child (utils/_http.py, os.register_at_fork). A lock of the
    session that another thread holds at that moment is held in the child for ever: it would never
    come to its program, nor whoever waits for that. uvloop starts processes by such a fork.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def session() -> httpx.Client:
        client = default_client_factory()
        client.close = partial(_close, client.close, os.getpid())  # type: ignore[method-assign]
        return client

    set_client_factory(session)


def _close(close: Callable[[], None], owner: int) -> None:
    if os.getpid() == owner:
        close()
