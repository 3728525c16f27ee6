"""A supervisor whose children are scripted: built by its constructor, and no process starts."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llamaswap_py.children import ChildExited, ChildReady, RuntimeDir
from llamaswap_py.config.parse import load_config
from llamaswap_py.devices import Device
from llamaswap_py.llamacpp.features import EngineFeatures
from llamaswap_py.llamacpp.probe import Engine
from llamaswap_py.scheduler.lifecycle import State
from llamaswap_py.scheduler.types import Choice, PoolId, PresetId, PresetPlan
from llamaswap_py.snapshot import EngineView
from llamaswap_py.supervisor.prepare import LoadWay, Prepared
from llamaswap_py.supervisor.snapshots import About
from llamaswap_py.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from llamaswap_py.children import ChildEvent, ChildSpec
    from llamaswap_py.config.sections import Config, Preset
    from llamaswap_py.endpoint import Endpoint
    from llamaswap_py.scheduler.state import Instance

SLOTS = 4
_ENGINE = Engine(Path("/nowhere/llama-server"), 1, "cpu", "test", EngineFeatures())


def configured(text: str) -> Config:
    return load_config(text, path=None, base_dir="/", env={}, home="/")


def prepared(preset: Preset) -> Prepared:
    """Return a preset that takes one byte of the host, as if its files were here."""
    plan = PresetPlan(
        preset=PresetId(preset.id), choices=(Choice({PoolId("host"): 1}),), concurrency=SLOTS
    )
    return Prepared(preset, plan, _ENGINE, {"": LoadWay(preset, (), ())}, ())


class ScriptedChild:
    """Says at once that it is ready, at an endpoint that somebody else serves."""

    process = None
    search = None

    def __init__(
        self, endpoint: Endpoint, spec: ChildSpec, on_event: Callable[[ChildEvent], None], *_: Any
    ) -> None:
        self.spec = spec
        self._endpoint, self._emit = endpoint, on_event
        self._ended = asyncio.Event()

    async def run(self) -> ChildExited:
        self._emit(ChildReady(self._endpoint, SLOTS, None, (), {}))
        await self._ended.wait()
        return ChildExited(0, None, None, ())

    def stop(self, *, unasked: bool = False) -> None:
        self._ended.set()

    def kill(self) -> None:
        self._ended.set()

    def wake(self) -> None: ...


def make_supervisor(folder: Path, config: Config, endpoint: Endpoint) -> Supervisor:
    """Return a supervisor whose children all answer at `endpoint`."""

    def child(*asked: Any) -> Any:
        return ScriptedChild(endpoint, *asked)

    return Supervisor(
        config,
        {name: prepared(preset) for name, preset in config.models.items()},
        (Device("host", 1 << 50, 0, "declared"),),
        RuntimeDir(folder),
        About("test", None, EngineView("", None, "none")),
        child=cast("Any", child),
    )


@asynccontextmanager
async def loaded_supervisor(
    folder: Path, config: Config, endpoint: Endpoint
) -> AsyncIterator[Supervisor]:
    """Run one whose models are all loaded."""
    async with make_supervisor(folder, config, endpoint) as supervisor:
        for name in config.models:
            supervisor.request_load(name)
        await loaded(supervisor)
        yield supervisor


async def loaded(supervisor: Supervisor) -> None:
    """Wait until all that is loading is ready."""
    async with asyncio.timeout(60):
        while any(one.state is not State.READY for one in instances_of(supervisor)):  # noqa: ASYNC110
            await asyncio.sleep(0)


def instances_of(supervisor: Supervisor) -> list[Instance]:
    return list(supervisor.scheduler.state.instances.values())
