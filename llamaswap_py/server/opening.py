"""Put a supervisor together: engines, devices, presets, and then the thing itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llamaswap_py.children import RuntimeDir
from llamaswap_py.children.process import prepare_to_spawn
from llamaswap_py.config.records import Config
from llamaswap_py.devices import Device, read_devices
from llamaswap_py.llamacpp.binaries import Engine
from llamaswap_py.snapshot import EngineView
from llamaswap_py.supervisor.prepare import Engines, prepare
from llamaswap_py.supervisor.recorder import Record
from llamaswap_py.supervisor.snapshots import About
from llamaswap_py.supervisor.supervisor import Supervisor


@asynccontextmanager
async def open_supervisor(
    config: Config,
    engine: Engine | None,
    runtime_dir: RuntimeDir,
    record: Record | None = None,
) -> AsyncIterator[Supervisor]:
    """Run a supervisor for `config`; `engine` is the one of the file's top level, if it needs any.

    `record` takes what its scheduler is told and decides. Presets that cannot work are listed with
    their reason; they stop nobody.
    """
    engines = await asyncio.to_thread(Engines, config)
    devices, _ = await asyncio.gather(
        asyncio.to_thread(_devices, config, engines),  # a sick driver may take its time
        asyncio.to_thread(prepare_to_spawn),
    )
    about = About(
        name=runtime_dir.path.name,
        config_path=config.source,
        engine=_view(engine),
        listen=tuple(endpoint.url for endpoint in config.listen),
    )
    prepared = await asyncio.to_thread(prepare, config, engines, devices)  # it looks at files
    supervisor = Supervisor(config, prepared, devices, runtime_dir, about, record)
    async with supervisor:
        yield supervisor


def _devices(config: Config, engines: Engines) -> tuple[Device, ...]:
    memory = config.memory
    return read_devices(
        memory.devices, memory.margin.of, backends=engines.backends, environment=os.environ
    )


def _view(engine: Engine | None) -> EngineView:
    if engine is None:
        return EngineView(path="", build=None, backend="none")
    return EngineView(path=str(engine.path), build=engine.build, backend=engine.backend)
