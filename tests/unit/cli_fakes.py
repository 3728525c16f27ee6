"""A real wire and a real api in front of a fake supervisor, for the commands to talk to."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from llamaswap_py.api import App
from llamaswap_py.api.errors import render_wire_error
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.proxy import bind, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llamaswap_py.children import ChildLog
    from llamaswap_py.config.api_keys import KeyRing
    from tests.unit.api_fakes import FakeSupervisor


@contextmanager
def serving(
    supervisor: FakeSupervisor,
    path: Path,
    keys: KeyRing | None = None,
    own_log: ChildLog | None = None,
) -> Iterator[str]:
    """Serve at a unix socket from a thread; yields the URL for `--url`."""
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    ready = threading.Event()

    async def life() -> None:
        stop = asyncio.Event()
        app = App(cast("Any", supervisor), keys)
        app.services.own_log = own_log
        async with serve(
            [bind(Endpoint(path=str(path)))], app.handle, on_wire_error=render_wire_error
        ):
            started.append((asyncio.get_running_loop(), stop))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(life(),))
    thread.start()
    try:
        assert ready.wait(60)
        yield f"unix:{path}"
    finally:
        if started:
            loop, stop = started[0]
            loop.call_soon_threadsafe(stop.set)
        thread.join()
