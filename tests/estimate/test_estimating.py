"""Estimating beside a server that goes on: presets may be removed at any moment."""

from __future__ import annotations

import asyncio
import os
from typing import Any, cast

import pytest

from llamaswap_py.config.parse import load_config
from llamaswap_py.devices import Device
from llamaswap_py.estimate import Estimate
from llamaswap_py.estimate.types import Source
from llamaswap_py.supervisor.estimation import Estimation, ReadyChild
from llamaswap_py.supervisor.located_engines import Engines
from llamaswap_py.supervisor.prepare import prepare
from llamaswap_py.units import GIB, HOST

pytestmark = pytest.mark.anyio
TEXT = """
models:
  gone: {cmd: [sh, "{port}"], memory: {host: 1MiB}}
  stays: {cmd: [sh, "{port}"], memory: {host: 1MiB}}
"""


async def test_a_preset_that_is_removed_while_it_is_measured_harms_nobody() -> None:
    config = load_config(TEXT, path=None, base_dir="/", env={}, home="/")
    devices = (Device(HOST, GIB, 0, "declared"),)
    prepared = prepare(config, Engines(config), devices)
    loaded = [
        ReadyChild(name, one.plan.choices[0], os.getpid(), 1.0) for name, one in prepared.items()
    ]
    learned: list[str] = []
    done = asyncio.Event()

    class Learning:
        """Stands for the estimator; the file is reloaded while it writes."""

        async def estimate(self, wanted: Any) -> Estimate:
            return Estimate(Source.DECLARED, ())

        async def learn_ready(self, wanted: Any, *_: object) -> str:
            learned.append(wanted.preset)
            prepared.pop("gone", None)
            if wanted.preset == "stays":
                done.set()
            return "it was wrong"

    estimating = Estimation(
        prepared, devices, 0, lambda *_: None, list, estimator=cast("Any", Learning())
    )
    for ready in loaded:
        estimating.record_ready(ready)
    async with asyncio.TaskGroup() as tasks:
        work = tasks.create_task(estimating.run())
        await asyncio.wait_for(done.wait(), 30)
        work.cancel()
    assert learned == ["gone", "stays"]
