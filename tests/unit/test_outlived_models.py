"""Models whose stop does not go as it should: what `unload` waits for, and what it says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.children import ChildOutlived, ChildStopFailed
from llamaswap_py.endpoint import Endpoint
from tests.unit import supervisors
from tests.unit.supervisors import ScriptedChild, configured, instances_of, loaded_supervisor

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio
CONFIG = configured('models:\n  box: {cmd: [vllm, "{port}"]}\n')
ELSEWHERE = Endpoint(path="/nowhere")
FAILED, OUTLIVED = "stop_cmd failed: exit code 3", "process 7 (vllm) still runs"


class Failing(ScriptedChild):
    """Ends, although its stop command failed."""

    def stop(self, *, unasked: bool = False) -> None:
        self._emit(ChildStopFailed(FAILED))
        super().stop(unasked=unasked)


class Outlived(ScriptedChild):
    """Its program ends, and what that started runs on."""

    def stop(self, *, unasked: bool = False) -> None:
        self._emit(ChildStopFailed(FAILED))
        asyncio.get_running_loop().call_soon(self._emit, ChildOutlived(OUTLIVED))

    def leave(self) -> bool:
        super().stop()
        return True


async def test_a_stop_command_that_failed_is_told(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "ScriptedChild", Failing)
    async with loaded_supervisor(short_dir, CONFIG, ELSEWHERE) as supervisor:
        assert supervisor.unload("box", force=False)
        assert await supervisor.unloaded("box") == FAILED
        assert not instances_of(supervisor)
        noted = [one for one in supervisor.decisions(model="box") if one.kind == "stop failed"]
        assert [one.reason for one in noted] == [FAILED]
        assert await supervisor.unloaded("box") == ""


async def test_nobody_waits_for_the_end_of_what_outlives_a_model(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a person can end it: `unload` says which process it is, and its memory stays charged."""
    monkeypatch.setattr(supervisors, "ScriptedChild", Outlived)
    async with loaded_supervisor(short_dir, CONFIG, ELSEWHERE) as supervisor:
        for again in range(2):
            assert supervisor.unload("box", force=False), again
            assert await supervisor.unloaded("box") == f"{FAILED}; {OUTLIVED}"
            assert supervisor.snapshot().models[0].state == "stopping"
        assert len(instances_of(supervisor)) == 1
