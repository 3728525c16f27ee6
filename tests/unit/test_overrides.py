"""Arguments for one load, while the file or another administrator changes the same model."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from llamaswap_py.errors import ApiError
from llamaswap_py.supervisor.overrides import Overrides
from llamaswap_py.supervisor.prepare import Prepared, Presets
from tests.unit.api_fakes import make_config
from tests.unit.supervisors import prepared

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.config.sections import Preset

pytestmark = pytest.mark.anyio


def _prepared() -> Prepared:
    return prepared(make_config().models["alpha"])


class _Presets(Presets):
    """One preset; `made` is called to prepare it anew."""

    def __init__(self, made: Callable[[], Prepared]) -> None:
        super().__init__(make_config(), {"alpha": _prepared()}, ())
        self.made = made

    async def prepare(self, preset: Preset) -> Prepared:
        return self.made()


def _overrides(presets: Presets) -> Overrides:
    """Return overrides whose loads never end."""

    async def load(preset: str) -> None:
        await asyncio.Event().wait()

    return Overrides(presets, load, lambda _: None)


async def test_a_model_that_is_removed_meanwhile_does_not_come_back() -> None:
    def removed() -> Prepared:
        presets.config = msgspec.structs.replace(presets.config, models={})
        del presets.prepared["alpha"]
        return _prepared()

    presets = _Presets(removed)
    with pytest.raises(ApiError) as error:
        await _overrides(presets).load("alpha", {"ctx-size": 512})
    assert error.value.code == "model_not_found"
    assert not presets.prepared


async def test_a_load_that_is_given_up_leaves_another_one_s_arguments() -> None:
    made = [_prepared(), _prepared()]
    first, second = made
    presets = _Presets(lambda: made.pop(0))
    of_the_file = presets.prepared["alpha"]
    overrides = _overrides(presets)
    loads = []
    for one in (first, second):
        loads.append(asyncio.create_task(overrides.load("alpha", {"ctx-size": 512})))
        async with asyncio.timeout(60):
            while presets.prepared["alpha"] is not one:  # noqa: ASYNC110 (nobody says so)
                await asyncio.sleep(0)
    loads[0].cancel()
    await asyncio.wait({loads[0]})
    assert presets.prepared["alpha"] is second
    loads[1].cancel()
    await asyncio.wait({loads[1]})
    assert presets.prepared["alpha"] is of_the_file
