"""Estimates of presets that leave the file while they are worked out."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from llamaswap_py.config.parse import load_config
from llamaswap_py.devices import Device
from llamaswap_py.estimate import Estimator
from llamaswap_py.scheduler.types import ANY_CHOICE
from llamaswap_py.supervisor.estimation import Estimation, ReadyChild
from llamaswap_py.supervisor.located_engines import Engines
from llamaswap_py.supervisor.prepare import Prepared, prepare
from tests.real.answers import PATIENCE, model_of

if TYPE_CHECKING:
    from llamaswap_py.estimate import Estimate, Wanted
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
DEVICES = (Device("host", 8 << 30, 0, "declared"),)


def _prepared(lab: Lab, *names: str) -> dict[str, Prepared]:
    models = {name: {"model": lab.preset(name)["model"]} for name in names}
    text = f"engine: {lab.engine}\nmodels: {models}\n"
    config = load_config(text, path=None, base_dir=str(lab.folder), env={}, home="/")
    return prepare(config, Engines(config), DEVICES)


class Removing(Estimator):
    """During whose work `at` a reload takes `alpha` out."""

    def __init__(self, prepared: dict[str, Prepared], at: str) -> None:
        super().__init__()
        self._presets = prepared
        self._at = at

    async def prove(self, wanted: Wanted) -> Estimate:
        found = await super().prove(wanted)
        if self._at == "estimate":
            self._presets.pop("alpha", None)
        return found

    async def learn_ready(self, *_: Any) -> str:
        if self._at == "learn_ready":
            self._presets.pop("alpha", None)
        return ""


@pytest.mark.parametrize("at", ["estimate", "learn_ready"])
async def test_one_that_goes_meanwhile_harms_no_other(lab: Lab, at: str) -> None:
    prepared = _prepared(lab, "alpha", "beta")
    told: list[str] = []
    last = asyncio.Event()

    def tell(preset: str, *_: Any) -> None:
        told.append(preset)
        if preset == "beta":
            last.set()

    estimating = Estimation(prepared, DEVICES, 0, tell, list, Removing(prepared, at))
    if at == "learn_ready":
        estimating.record_ready(ReadyChild("alpha", ANY_CHOICE, os.getpid(), 1.0))
    running = asyncio.create_task(estimating.run())
    beta = asyncio.create_task(last.wait())
    try:
        await asyncio.wait({running, beta}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        assert not running.done(), running.exception()
        assert "beta" in told
        assert "alpha" not in prepared
    finally:
        running.cancel()
        beta.cancel()
        await asyncio.wait({running, beta})


async def test_people_are_told_what_a_figure_is_made_of(lab: Lab) -> None:
    """A tiny model takes mostly what its prompt cache may grow to, which a key of the file sets."""
    path = lab.write_model("alpha", lab.sentence("alpha"))
    models: dict[str, dict[str, Any]] = {
        "alpha": {"model": str(path)},
        "beta": {"model": str(path), "memory": {"CUDA0": "1MiB"}},
    }
    memory = {"cache_ram": "64MiB", "devices": {"host": "300MiB", "CUDA0": "1GiB"}}
    async with lab.lswap(models, memory=memory) as lswap:
        await lswap.until(lambda now: model_of(now, "alpha").footprint is not None)
        for name in models:
            said = await lab.cli("why", name, "--url", lswap.url)
            (line,) = [one for one in said.out.splitlines() if one.startswith("host: ")]
            assert "64 MiB prompt cache (memory.cache_ram)" in line
        told = await lab.cli("estimate", str(lswap.config))
        assert "64 MiB prompt cache (memory.cache_ram)" in " ".join(told.out.split())
