"""What must hold after every fault, always the same list."""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING, Final

import psutil

from tests.real.answers import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llamaswap_py.snapshot import Snapshot
    from tests.faults.crowd import Crowd
    from tests.real.harness import Lswap

_SETTLED: Final = frozenset({"ready", "sleeping"})


async def check_all(
    lswap: Lswap, crowd: Crowd, *, hit: Iterable[str] = (), says: Iterable[str] = ()
) -> None:
    """Check the list of docs/design/targets.md, "Reliability"; `hit` are models that may fail."""
    # Every request was answered or errored properly, with no other model's words.
    assert not crowd.wrongs, crowd.wrongs
    failed = {model for model, _ in crowd.errors}
    assert failed <= set(hit), f"who was not hit must not notice: {crowd.errors}"
    # No lease leaked, nobody waits for ever.
    await lswap.until(lambda now: now.requests_open == 0)
    # The next request succeeds, of every model.
    for model in crowd.models:
        await answers_again(lswap, crowd, model)
    state = await lswap.until(_settled)
    assert all(one.leases == 0 and one.waiting == 0 for one in state.models)
    check_ledger(state)
    check_processes(lswap, state)
    # The log tells the story.
    for pattern in says:
        assert any(re.search(pattern, line) for line in lswap.log), f"the log lacks {pattern!r}"
    assert not any("Traceback" in line for line in lswap.log)


def check_ledger(state: Snapshot) -> None:
    """What is promised is what the children that live were declared to take, no byte else."""
    promised = {model.id: model.footprint or {} for model in state.models}
    for device in state.devices:
        held = sum(promised[one.preset].get(device.id, 0) for one in state.instances)
        assert device.used == held, f"{device.id}: {device.used} promised, {held} held"
        assert device.used <= device.total - device.margin


def check_processes(lswap: Lswap, state: Snapshot) -> None:
    """No orphan: the process groups that live are those it knows, and all of those do."""
    known = {one.pid for one in state.instances}
    seen = {os.getpgid(one.pid) for one in lswap.descendants()}
    assert seen == known, f"it knows {known}, the system shows {seen}"
    # Beside the children there is one guard, or each has a keeper (children/process.py).
    others = {one.pid for one in psutil.Process(lswap.pid).children()} - known
    assert len(others) <= max(1, len(known))
    assert all(psutil.Process(pid).status() != psutil.STATUS_STOPPED for pid in known if pid)


async def answers_again(lswap: Lswap, crowd: Crowd, model: str) -> None:
    """The next request succeeds; only one that comes within a back-off may be asked to wait."""
    async with asyncio.timeout(PATIENCE):
        while True:
            answer = await lswap.post_chat(model, max_tokens=40)
            if answer.status_code == 200:
                break
            error = answer.json()["error"]
            assert error["code"] == "model_failed", error
            await asyncio.sleep(0.2)
    text = answer.json()["choices"][0]["message"]["content"]
    assert text.startswith(crowd.models[model])


def _settled(state: Snapshot) -> bool:
    return state.requests_open == 0 and all(one.state in _SETTLED for one in state.instances)
