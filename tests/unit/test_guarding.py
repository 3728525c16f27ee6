"""Background work that fails is counted, reported, begun again; so are events of the scheduler."""

from __future__ import annotations

import ast
import asyncio
import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.endpoint import Endpoint
from llamaswap_py.scheduler import InstanceKey, Scheduler
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Grant, Reject, Spawn
from llamaswap_py.scheduler.invariants import check
from llamaswap_py.scheduler.types import ClientId, Pool, PresetId, RequestId
from llamaswap_py.supervisor import dispatcher
from llamaswap_py.supervisor.dispatcher import recover
from llamaswap_py.tasks import guard
from tests.fakes.chaos import callbacks
from tests.scheduler.play import HOST, plan
from tests.unit.supervisors import configured, loaded_supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamaswap_py.scheduler.actions import Action

A = PresetId("a")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_said", {})
    monkeypatch.setattr(guard, "FIRST_PAUSE", 0.0)
    guard.failures.clear()


@pytest.mark.anyio
async def test_work_that_fails_is_begun_again(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []

    async def work() -> str:
        seen.append(1)
        if len(seen) < 4:
            raise ValueError("a bug")
        return "done"

    with caplog.at_level(logging.ERROR, "lswap"):
        assert await guard.keep_going("work", work) == "done"
    assert guard.failures["work"] == 3
    (line,) = caplog.records
    assert line.exc_info is not None, "the first time with its traceback"


@pytest.mark.anyio
async def test_work_that_is_cancelled_ends_and_what_it_waits_for_may_not_end_it() -> None:
    waited: list[asyncio.Future[None]] = []

    async def work() -> None:
        waited.append(asyncio.get_running_loop().create_future())
        await waited[-1]

    task = asyncio.create_task(guard.keep_going("work", work))
    for count in (1, 2):
        while len(waited) < count:  # noqa: ASYNC110
            await asyncio.sleep(0)
        waited[-1].cancel()
    while len(waited) < 3:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert guard.failures["work"] == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.anyio
async def test_a_callback_and_a_thread_that_fail_are_counted() -> None:
    loop, before = asyncio.get_running_loop(), threading.excepthook

    def fail() -> None:
        raise ValueError("a bug")

    try:
        guard.heed(loop)
        loop.call_soon(fail)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    finally:
        loop.set_exception_handler(None)
        threading.excepthook = before
    assert guard.failures["callback"] == guard.failures["thread"] == 1


class Broken(Scheduler):
    """A scheduler of which one step fails once: before anything is done, or in the middle."""

    broken = ""

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        how, self.broken = self.broken, ""
        if how == "before":
            raise ValueError("a bug")
        if how == "pass":
            real = self._pass.run

            def run() -> None:
                self._pass.run = real  # type: ignore[method-assign]
                raise ValueError("a bug")

            self._pass.run = run  # type: ignore[method-assign]
        return super().handle(event, now)

    def feed(self, event: ev.Event) -> list[Action]:
        try:
            return self.handle(event, time.monotonic())
        except ValueError as error:
            return recover(self, event, error)


def scheduler() -> Broken:
    return Broken([plan("a", 40)], {HOST: Pool(100, 0)})


def arrival(name: str) -> ev.RequestArrived:
    return ev.RequestArrived(request=RequestId(name), preset=A, client=ClientId("c"))


@pytest.mark.parametrize("how", ["before", "pass"])
def test_a_request_whose_arrival_fails_is_refused_and_leaves_nothing(how: str) -> None:
    broken = scheduler()
    broken.broken = how
    actions = broken.feed(arrival("r"))
    (refused,) = [one for one in actions if isinstance(one, Reject)]
    assert (refused.request, refused.code) == ("r", "internal")
    assert not broken.state.waiters
    check(broken)
    again = [*actions, *broken.feed(arrival("s"))]
    assert any(isinstance(one, Spawn) for one in again), "serving goes on"


@pytest.mark.parametrize("how", ["before", "pass"])
def test_no_other_event_is_lost(how: str) -> None:
    """Readiness, the end of a request, the end of an instance: each fails once."""
    broken = scheduler()
    broken.feed(arrival("r"))
    key = InstanceKey(A, 1)
    broken.broken = how
    assert Grant(RequestId("r"), key) in broken.feed(ev.InstanceReady(key, 1))
    broken.broken = how
    broken.feed(ev.RequestFinished(RequestId("r"), ev.Outcome.OK))
    assert not broken.state.leases
    assert Grant(RequestId("s"), key) in broken.feed(arrival("s"))
    broken.broken = how
    broken.feed(ev.InstanceExited(key, None))
    assert not broken.state.instances
    assert guard.failures["scheduler"] == 3
    check(broken)


@pytest.mark.anyio
async def test_a_deadline_that_cannot_be_told_is_looked_at_again(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "_LOOK", 0.01)
    config = configured("models: {a: {model: /nowhere/a.gguf}}")
    async with loaded_supervisor(short_dir / "run", config, Endpoint(port=1)) as supervisor:
        asked: list[float] = []

        def fail(_: Scheduler) -> float | None:
            asked.append(time.monotonic())
            raise ValueError("a bug")

        with monkeypatch.context() as broken:
            broken.setattr(Scheduler, "deadline", fail)
            supervisor.dispatch(ev.RequestFinished(RequestId("r"), ev.Outcome.OK))
            async with asyncio.timeout(60):
                while len(asked) < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
    assert guard.failures["scheduler"] >= 2


# --- all of them ------------------------------------------------------------------------------

_BACKGROUND = {"_tasks", "tasks"}
"""What task groups are called whose tasks are no part of a request: one that fails ends lswap."""
_GUARD_THEMSELVES = {"_run_child", "_keep_and_stop", "_run"}
_CALLS_BACK = {"call_soon", "call_soon_threadsafe", "call_later", "call_at", "add_reader"}
_HARMLESS = {
    "_stop": "the end of a relay that stalls: the client's own deadline follows",
    "release": "a reservation without heartbeats: an operator can end it",
    "cancel": "the child of the web UI stays a while longer",
    "_set_exited": "sets an event",
    "settle_once": "sets a future",
    "extend": "lines of the log for those who follow it",
    "finish": "sets an event",
    "_steer": "lets go of a connection that is lost, of which nobody waits for anything",
}
"""Callbacks that chaos.py leaves alone, and why they may fail: the loop reports them."""


def _calls() -> Iterator[tuple[str, ast.Call, ast.AST]]:
    """Yield each call of a method in the parts that serve, with the function it stands in."""
    foreign = {"cli", "tui", "demo", "simulator", "hub", "importing", "llamacpp", "client.py"}
    root = Path(guard.__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] in foreign:
            continue
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                        yield f"{path.relative_to(root)}:{node.lineno}", node, function


def test_every_task_in_the_background_is_guarded() -> None:
    found = 0
    for place, call, function in _calls():
        assert isinstance(call.func, ast.Attribute)
        group = call.func.value
        name = group.attr if isinstance(group, ast.Attribute) else getattr(group, "id", "")
        if call.func.attr not in ("create_task", "start_soon") or name not in _BACKGROUND:
            continue
        found += 1
        work = ast.unparse(call.args[0])
        if isinstance(call.args[0], ast.Name):
            values = [
                ast.unparse(node.value)
                for node in ast.walk(function)
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == work
            ]
            work = " ".join(values) or work
        itself = any(f"self.{one}(" in work for one in _GUARD_THEMSELVES)
        part_of_a_child = place.startswith(("children/child.py", "children/loading.py"))
        assert "guard." in work or "keep_going" in work or itself or part_of_a_child, place
    assert found > 10


def test_every_callback_is_broken_once_or_harmless() -> None:
    broken = {name for names in callbacks().values() for name in names}
    found = 0
    for place, call, _ in _calls():
        assert isinstance(call.func, ast.Attribute)
        if call.func.attr in _CALLS_BACK:
            found += 1
            heard = call.args[0 if call.func.attr.startswith("call_soon") else 1]
            name = ast.unparse(heard).rpartition(".")[2]
            assert name in broken or name in _HARMLESS, f"{place}: {name}"
    assert found > 10
