"""wire and api with a scheduler of one line: what the relay itself costs.

    python -m bench.fake_relay PORT UPSTREAM.sock

Every request for the model `stub` is granted the upstream at once.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from typing import TYPE_CHECKING, cast

import uvloop

from llamaswap_py.api import App
from llamaswap_py.api.errors import render_wire_error
from llamaswap_py.config.parse import load_config
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.proxy import bind, serve
from llamaswap_py.proxy.upstream import UpstreamPool
from llamaswap_py.scheduler.types import InstanceKey, PresetId
from llamaswap_py.supervisor.event_log import EventLog
from llamaswap_py.supervisor.leases import Lease, OpenLeases

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from llamaswap_py.supervisor.supervisor import Supervisor

CONFIG = "models: {stub: {model: /nowhere/stub.gguf}}"


class _Ticket:
    def __init__(self, endpoint: Endpoint, preset: str) -> None:
        self._lease = Lease(endpoint, InstanceKey(PresetId(preset), 1), 0.0, 0.0, OpenLeases())

    async def __aenter__(self) -> Lease:
        self._lease.began(time.monotonic())
        return self._lease

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


class AlwaysReady:
    """What the api asks of a supervisor, for models that are loaded for ever."""

    def __init__(
        self, endpoints: Mapping[str, Endpoint], pool: UpstreamPool, config: str = CONFIG
    ) -> None:
        self.config = load_config(config, path=None, base_dir="/", env={}, home="/")
        self.pool = pool
        self.names = self
        self.event_log = EventLog()
        self._endpoints = endpoints

    def resolve(self, name: str, seed: str = "") -> str | None:
        return name if name in self._endpoints else None

    def known(self, name: str) -> str | None:
        return self.resolve(name)

    def nearest(self, name: str) -> list[str]:
        return [*self._endpoints]

    def fixed(self, name: str) -> str | None:
        return self.resolve(name)

    def lease(self, preset: str, **_: object) -> _Ticket:
        return _Ticket(self._endpoints[preset], preset)


async def _main(port: int, upstream: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with UpstreamPool() as pool:
        app = App(cast("Supervisor", AlwaysReady({"stub": Endpoint(path=upstream)}, pool)))
        sockets = [bind(Endpoint(port=port))]
        async with serve(sockets, app.handle, on_wire_error=render_wire_error):
            await stop.wait()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1]), sys.argv[2]))
