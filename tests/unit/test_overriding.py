"""Arguments for one load, while the file or another administrator changes the same model."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from llamaswap_py.errors import ApiError
from llamaswap_py.supervisor import overrides as overriding
from llamaswap_py.supervisor.overrides import Overrides
from tests.unit.api_fakes import make_config

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio


def _prepared() -> Any:
    return SimpleNamespace(problems=(), plan=None, engine=None)


class _Supervisor:
    """Keeps presets; its loads end when `loaded` is set."""

    def __init__(self) -> None:
        self.config = make_config()
        self.file = _prepared()
        self.prepared = {"alpha": self.file}
        self.devices = ()
        self.estimating = SimpleNamespace(forget=lambda _: None)
        self.loaded = asyncio.Event()
        self.feed: Callable[[Any], None] = lambda _: None

    async def load(self, preset: str) -> None:
        await self.loaded.wait()


def _overrides(supervisor: _Supervisor) -> Overrides:
    return Overrides(cast("Any", supervisor))


async def test_a_model_that_is_removed_meanwhile_does_not_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supervisor = _Supervisor()

    def removed(*_: Any) -> dict[str, Any]:
        supervisor.config = msgspec.structs.replace(supervisor.config, models={})
        del supervisor.prepared["alpha"]
        return {"alpha": _prepared()}

    monkeypatch.setattr(overriding, "_prepare", removed)
    with pytest.raises(ApiError) as error:
        await _overrides(supervisor).load("alpha", {"ctx-size": 512})
    assert error.value.code == "model_not_found"
    assert not supervisor.prepared


async def test_a_load_that_is_given_up_leaves_another_one_s_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supervisor = _Supervisor()
    made = [_prepared(), _prepared()]
    first, second = made
    monkeypatch.setattr(overriding, "_prepare", lambda *_: {"alpha": made.pop(0)})
    overrides = _overrides(supervisor)
    loads = []
    for one in (first, second):
        loads.append(asyncio.create_task(overrides.load("alpha", {"ctx-size": 512})))
        async with asyncio.timeout(30):
            while supervisor.prepared["alpha"] is not one:  # noqa: ASYNC110 (a thread says nothing)
                await asyncio.sleep(0.001)
    loads[0].cancel()
    await asyncio.wait({loads[0]})
    assert supervisor.prepared["alpha"] is second
    loads[1].cancel()
    await asyncio.wait({loads[1]})
    assert supervisor.prepared["alpha"] is supervisor.file
