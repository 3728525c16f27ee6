"""`lswap engine compare` with two real engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


async def _compared(lab: Lab, old: str, new: str) -> dict[str, Any]:
    done = await lab.cli("engine", "compare", old, new, "--json")
    assert done.code == 0, done.err
    record: dict[str, Any] = done.json()
    return record


async def test_the_same_build_for_other_devices(lab: Lab, rpc_engine: str) -> None:
    """It has the same options and routes, and behaves in the same way."""
    found = await _compared(lab, lab.engine, rpc_engine)
    assert (found["features"], found["new_routes"], found["gone_routes"]) == ({}, [], [])
    assert all(not changes for changes in found["options"].values()), found["options"]
    for what, said in found["trial"].items():
        assert said["old"] == said["new"], what
    assert found["log"]["unread"] == {}
    assert found["log"]["same"] > 10
    said = found["trial"]
    assert said["ready"]["new"] == "by its state line"
    assert said["answer"]["new"] == "as it should"
    assert said["stop"]["new"] == "the exit command"
    assert said["a file that is cut short"]["new"] == "file_corrupt"
    assert said["an unknown architecture"]["new"] == "unknown_architecture"


async def test_an_older_engine_and_the_real_one(lab: Lab) -> None:
    """The older one has no child mode and no JSON logs, and its log says less."""
    older = lab.old_engine("log-jsonl", "LOG_JSONL")
    found = await _compared(lab, older, lab.engine)
    assert found["features"]["child_mode"] == {"old": False, "new": True}
    assert found["features"]["log_jsonl"] == {"old": False, "new": True}
    assert found["options"]["added"] == ["--log-jsonl"]
    assert found["trial"]["ready"] == {"old": "by a line of its log", "new": "by its state line"}
    assert found["trial"]["stop"] == {"old": "SIGTERM", "new": "the exit command"}
    back = await lab.cli("engine", "compare", lab.engine, older)
    assert "  - --log-jsonl: lswap leaves it out\n" in back.out
    assert "  ready: by its state line → by a line of its log\n" in back.out


async def test_one_that_does_not_start_is_named(lab: Lab) -> None:
    """The other is not to blame, and the command says how to look further."""
    broken = lab.engine_behind('case "$*" in *--model*) echo "error: no" >&2; exit 3;; esac')
    done = await lab.cli("engine", "compare", lab.engine, broken)
    assert done.code == 1
    assert "did not get ready: llama-server ended with exit code 3: error: no" in done.err
    assert f"run it by hand: {broken} --model" in done.err
    missing = await lab.cli("engine", "compare", "b1-cpu", lab.engine)
    assert "no engine named b1-cpu" in missing.err
