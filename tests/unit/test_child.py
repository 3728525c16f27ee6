"""The life of one child, with a fake llama-server that misbehaves; on uvloop and on asyncio."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from llamaswap_py.children import (
    ChildEvent,
    ChildExited,
    ChildProgress,
    ChildReady,
    ChildSpawned,
    ChildStalled,
    FailureKind,
    process,
)
from llamaswap_py.endpoint import Endpoint
from tests.fakes.fake_llama_server import install
from tests.unit.child_runs import PATIENCE, Run, exists, file_text, gone, make_spec, running

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def fake(short_dir: Path) -> str:
    return install(short_dir)


@pytest.mark.parametrize("child_mode", [True, False])
@pytest.mark.parametrize("unix", [True, False])
@pytest.mark.parametrize("args", [(), ("--log-jsonl",)])
async def test_ready_and_stop(
    fake: str, short_dir: Path, child_mode: bool, unix: bool, args: tuple[str, ...]
) -> None:
    changes: dict[str, Any] = {"child_mode": child_mode, "args": ("--alias", "alpha", *args)}
    if not unix:
        changes["socket_path"] = None
    spec = make_spec(fake, short_dir, env={"FAKE_SLOTS": "7", "FAKE_N_CTX": "512"}, **changes)
    async with running(spec) as run:
        ready = await run.seen(ChildReady)
        assert (ready.slots, ready.n_ctx) == (7, 512)
        if unix:
            assert ready.endpoint == Endpoint(path=spec.socket_path)
        else:
            assert ready.endpoint.path is None
            assert ready.endpoint.port > 0
        run.child.stop()
        run.child.stop()
        exited = await run.ended()
    assert (exited.code, exited.signal, exited.failure) == (0, None, None)
    kinds = [type(event) for event in run.events if not isinstance(event, ChildProgress)]
    assert kinds == [ChildSpawned, ChildReady, ChildExited]


@pytest.mark.parametrize("dialect", ["old", "ancient"])
async def test_older_log_formats(fake: str, short_dir: Path, dialect: str) -> None:
    gate = short_dir / "gate"
    env = {"FAKE_FORMAT": dialect, "FAKE_LOAD_GATE": str(gate)}
    spec = make_spec(fake, short_dir, env=env, child_mode=False, args=(), socket_path=None)
    async with running(spec) as run:
        await run.log_line("HTTP server is listening" if dialect == "ancient" else "initializing")
        gate.touch()
        await run.seen(ChildReady)


async def test_ready_is_found_by_health_when_nothing_says_it(fake: str, short_dir: Path) -> None:
    env = {"FAKE_SILENT_READY": "1"}
    for path in (str(short_dir / "1.sock"), None):
        spec = make_spec(fake, short_dir, env=env, child_mode=False, socket_path=path)
        async with running(spec) as run:
            ready = await run.seen(ChildReady)
            assert ready.endpoint.path == path


async def test_the_environment_is_scrubbed_and_told(
    fake: str, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LLAMA_ARG_CTX_SIZE", "LLAMA_API_KEY", "LLAMA_SERVER_CHILD_MODE"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("KEPT", "yes")
    record = short_dir / "record"
    spec = make_spec(fake, short_dir, env={"FAKE_RECORD": str(record), "LLAMA_ARG_HOST": "mine"})
    async with running(spec) as run:
        told = json.loads(await file_text(record))
        assert told["argv"][1:] == [*spec.args, "--host", spec.socket_path]
        env = told["env"]
        assert {name for name in env if name.startswith("LLAMA_")} == {
            "LLAMA_SERVER_ROUTER_PORT",
            "LLAMA_ARG_HOST",
        }
        assert env["KEPT"] == "yes"
        assert env["GGML_NO_BACKTRACE"] == "1"
        assert not exists(env["XDG_CONFIG_HOME"])
        spawned = await run.seen(ChildSpawned)
        assert told["pid"] == spawned.pid == run.child.pid
        assert os.getpgid(spawned.pid) == os.getsid(spawned.pid) == spawned.pid


@pytest.mark.parametrize("knob", [{"FAKE_PROPS": "503:5"}, {"FAKE_PROPS": "401"}])
async def test_ready_waits_for_an_answer_but_needs_no_permission(
    fake: str, short_dir: Path, knob: dict[str, str]
) -> None:
    async with running(make_spec(fake, short_dir, env=knob)) as run:
        ready = await run.seen(ChildReady)
        assert ready.slots == (4 if "503:5" in knob.values() else 1)
        assert ready.n_ctx == 4096
        assert ready.info["id"] == "alpha"


@pytest.mark.parametrize("env", [{"FAKE_HANG": "1"}, {"FAKE_PROPS": "never"}])
async def test_a_stall_is_told_once_and_its_kill_is_a_timeout(
    fake: str, short_dir: Path, env: dict[str, str]
) -> None:
    spec = make_spec(fake, short_dir, env=env, load_stall=0.4)
    async with running(spec) as run:
        await run.seen(ChildStalled)
        run.child.kill()
        exited = await run.ended()
    assert exited.failure is not None
    assert exited.failure.kind is FailureKind.TIMEOUT
    assert ChildReady not in [type(event) for event in run.events]


async def test_progress_comes_from_states_and_from_the_kernel(fake: str, short_dir: Path) -> None:
    model = short_dir / "model"
    model.write_bytes(b"0" * 100_000_000)
    env = {"FAKE_HANG": "1", "FAKE_LOAD_STEPS": "1"}
    spec = make_spec(fake, short_dir, env=env, files=(str(model), "/no/such/file"))
    async with running(spec) as run:
        progress = await run.seen(ChildProgress)
        assert progress.fraction is not None
        assert 0 < progress.fraction < 0.9  # what it read so far is the interpreter
        assert progress.stage == "text_model"


@pytest.mark.parametrize(
    ("env", "code", "signal_", "kind"),
    [
        ({"FAKE_CRASH": "loading:11"}, None, 11, FailureKind.CRASHED),
        ({"FAKE_CRASH": "loading:9"}, None, 9, FailureKind.KILLED),
        ({"FAKE_CRASH": "ready:exit:3"}, 3, None, FailureKind.EXITED),
        (
            {"FAKE_CRASH": "loading:exit:1", "FAKE_STDERR": "error: invalid argument: --x"},
            1,
            None,
            FailureKind.BAD_ARGUMENT,
        ),
    ],
)
async def test_an_unasked_end_has_its_class(
    fake: str,
    short_dir: Path,
    env: dict[str, str],
    code: int | None,
    signal_: int | None,
    kind: FailureKind,
) -> None:
    async with running(make_spec(fake, short_dir, env=env)) as run:
        exited = await run.ended()
    assert (exited.code, exited.signal) == (code, signal_)
    assert exited.failure is not None
    assert exited.failure.kind is kind
    assert exited.tail


async def test_a_signal_from_elsewhere_is_a_failure_though_a_stop_had_begun(
    fake: str, short_dir: Path
) -> None:
    """Its connections are refused a moment before its end is known, and then it is stopped."""
    async with running(make_spec(fake, short_dir)) as run:
        ready = await run.seen(ChildReady)
        assert ready.endpoint.path is not None
        assert run.child.pid is not None
        os.kill(run.child.pid, signal.SIGKILL)
        run.child.stop()
        exited = await run.ended()
    assert exited.signal == signal.SIGKILL
    assert exited.failure is not None
    assert exited.failure.kind is FailureKind.KILLED


async def test_an_end_that_a_stop_only_hastens_has_its_exit_code(
    fake: str, short_dir: Path
) -> None:
    async with running(make_spec(fake, short_dir)) as run:
        await run.seen(ChildReady)
        run.child.stop(unasked=True)
        exited = await run.ended()
    assert (exited.code, exited.signal) == (0, None)
    assert exited.failure is not None
    assert exited.failure.kind is FailureKind.EXITED


async def test_what_cannot_be_executed_is_a_failure_of_the_engine(short_dir: Path) -> None:
    plain = short_dir / "plain"
    plain.write_text("hello")
    foreign = short_dir / "foreign"
    foreign.write_bytes(b"\x7fELF\x02\x01\x01" + b"\0" * 11 + b"\xf7\xff" + b"\0" * 100)
    lost = short_dir / "lost"
    lost.write_text("#!/no/such/interpreter\n")
    for path in (foreign, lost):
        path.chmod(0o700)
    for binary in ("/no/such/llama-server", str(plain), str(foreign), str(lost), str(short_dir)):
        async with running(make_spec(binary, short_dir)) as run:
            exited = await run.ended()
        assert exited.failure is not None
        assert exited.failure.kind is FailureKind.ENGINE, (binary, exited)
        assert "cannot run" in exited.failure.summary


STUBBORN: list[dict[str, Any]] = [
    {"env": {"FAKE_LOSE_TERM": "1"}, "child_mode": False},
    {"env": {"FAKE_LOSE_EXIT": "1"}},
    {"env": {"FAKE_IGNORE_TERM": "1", "FAKE_LOSE_EXIT": "1"}},
    {"env": {"FAKE_IGNORE_TERM": "1", "FAKE_LOSE_EXIT": "2"}},
    {"env": {"FAKE_IGNORE_EXIT": "1"}},
]


@pytest.mark.parametrize("changes", STUBBORN)
async def test_a_lost_word_is_repeated(fake: str, short_dir: Path, changes: dict[str, Any]) -> None:
    async with running(make_spec(fake, short_dir, stop_timeout=60.0, **changes)) as run:
        await run.seen(ChildReady)
        run.child.stop()
        exited = await run.ended()
    assert exited.signal is None  # it ended by itself, long before the kill
    assert exited.failure is None


@pytest.mark.parametrize("child_mode", [True, False])
async def test_deaf_children_are_killed_at_the_deadline(
    fake: str, short_dir: Path, child_mode: bool
) -> None:
    env = {"FAKE_IGNORE_TERM": "1", "FAKE_IGNORE_EXIT": "1"}
    spec = make_spec(fake, short_dir, env=env, child_mode=child_mode, stop_timeout=0.4)
    async with running(spec) as run:
        await run.seen(ChildReady)
        run.child.stop()
        exited = await run.ended()
    assert (exited.signal, exited.failure) == (signal.SIGKILL, None)
    assert any("did not stop within" in line for line in exited.tail)


@pytest.mark.parametrize("child_mode", [True, False])
async def test_a_loading_child_stops_at_once_and_is_never_ready(
    fake: str, short_dir: Path, child_mode: bool
) -> None:
    spec = make_spec(fake, short_dir, env={"FAKE_HANG": "1"}, child_mode=child_mode)
    async with running(spec) as run:
        await run.log_line("initializing")
        run.child.stop()
        exited = await run.ended()
    assert (exited.signal, exited.failure) == (signal.SIGTERM, None)
    assert ChildReady not in [type(event) for event in run.events]


async def test_stop_before_the_spawn_spawns_nothing(fake: str, short_dir: Path) -> None:
    run = Run(make_spec(fake, short_dir))
    run.child.stop()
    exited = await run.child.run()
    assert run.events == [exited]
    assert (exited.code, exited.signal, exited.failure, exited.tail) == (None, None, None, ())


def end_it(run: Run, how: str) -> None:
    match how:
        case "stop":
            run.child.stop()
        case "kill":
            run.child.kill()
        case "crash":
            assert run.child.pid is not None
            os.kill(run.child.pid, signal.SIGSEGV)


@pytest.mark.parametrize("how", ["cancel", "stop", "kill", "crash"])
async def test_grandchildren_and_held_pipes_do_not_outlive_it(
    fake: str, short_dir: Path, how: str
) -> None:
    note = short_dir / "grandchild"
    async with running(make_spec(fake, short_dir, env={"FAKE_GRANDCHILD": str(note)})) as run:
        grandchild = int(await file_text(note))
        ready = await run.seen(ChildReady)
        assert ready.slots == 4
        pid = run.child.pid
        assert pid is not None
        if how == "cancel":
            assert run.task is not None
            run.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run.task
            assert ChildExited not in [type(event) for event in run.events]
        else:
            end_it(run, how)
            await run.ended()
        assert not exists(f"/proc/{pid}")
        await gone(grandchild)


async def test_cancelled_while_loading_and_at_once(fake: str, short_dir: Path) -> None:
    for until in (ChildSpawned, None):
        async with running(make_spec(fake, short_dir, env={"FAKE_HANG": "1"})) as run:
            if until is not None:
                await run.seen(until)
        spawned = [e for e in run.events if isinstance(e, ChildSpawned)]
        assert len(spawned) == (until is not None)
        for event in spawned:
            assert not exists(f"/proc/{event.pid}")


async def test_an_error_in_the_listener_leaves_no_process(fake: str, short_dir: Path) -> None:
    def refuse(event: ChildEvent) -> None:
        raise RuntimeError(repr(event))

    run = Run(make_spec(fake, short_dir), refuse)
    with pytest.raises(RuntimeError):
        await run.child.run()
    assert not exists(f"/proc/{run.child.pid}")


async def test_a_flood_of_logs_is_read_and_bounded(fake: str, short_dir: Path) -> None:
    env = {"FAKE_FLOOD": "20000000", "FAKE_LONG_LINE": "500000"}
    path = short_dir / "log"
    async with running(make_spec(fake, short_dir, env=env, log_path=path)) as run:
        await run.seen(ChildReady)
        run.child.stop()
        await run.ended()
    assert len(run.logs.tail(10_000)) <= 2000
    assert max(len(line.text) for line in run.logs.tail(10_000)) <= 64 * 1024
    assert path.stat().st_mode & 0o077 == 0
    assert path.stat().st_size > 1_000_000


async def test_a_full_disk_is_told_once_and_stops_nothing(fake: str, short_dir: Path) -> None:
    env = {"FAKE_FLOOD": "130000"}
    spec = make_spec(fake, short_dir, env=env, log_path=Path("/dev/full"))
    async with running(spec) as run:
        await run.seen(ChildReady)
        run.child.stop()
        await run.ended()
    told = [line.text for line in run.logs.tail(2000) if "log file" in line.text]
    assert len(told) == 1
    assert "No space left" in told[0]


async def test_without_setpriv_and_without_pidfd(
    fake: str, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_death_wrapper", lambda: ())
    monkeypatch.delattr(os, "pidfd_open")
    async with running(make_spec(fake, short_dir)) as run:
        await run.seen(ChildReady)
        run.child.stop()
        exited = await run.ended()
    assert exited.code == 0


async def test_what_the_kernel_does_not_end_is_left(
    fake: str, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process in state D stays, SIGKILL or not: lswap stops all the same, but not at once."""
    async with running(make_spec(fake, short_dir)) as run:
        await run.seen(ChildReady)
        stuck = run.child.process
        assert stuck is not None
        with monkeypatch.context() as patch:
            patch.setattr(stuck, "_tell_keeper", lambda number: None)
            patch.setattr(os, "killpg", lambda group, number: None)
            assert not stuck.leave_if_stuck()
            run.child.kill()
            assert not stuck.leave_if_stuck()
            patch.setattr(process, "_STUCK_SECONDS", 0.0)
            assert stuck.leave_if_stuck()
            assert run.task is not None
            await asyncio.wait_for(run.task, PATIENCE)
        await gone(stuck.pid)  # its keeper goes on with it
    assert stuck.left
