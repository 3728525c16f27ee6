"""Child against the real llama-server: readiness, stop, failures, and that nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from llamaswap_py.children import (
    ChildExited,
    ChildReady,
    ChildSpawned,
    FailureKind,
    RuntimeDir,
    process,
)
from llamaswap_py.children.orphans import SweptHow
from tests.unit.child_runs import alive, file_text, gone, make_spec, running, until

if TYPE_CHECKING:
    from pathlib import Path

    from llamaswap_py.children import ChildSpec
    from llamaswap_py.endpoint import Endpoint
    from tests.conftest import TinyModel

pytestmark = pytest.mark.anyio
ARGS = ("--offline", "--fit", "off", "--cache-ram", "0", "--threads-http", "20", "-np", "2")


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


def real_spec(binary: str, folder: Path, model: Path, *more: str, **changes: Any) -> ChildSpec:
    """Return the spec of a child with a model, one thread, JSON logs, and `more` arguments."""
    args = ("-m", str(model), "-t", "1", "--log-jsonl", *ARGS, *more)
    return make_spec(binary, folder, **{"args": args, "files": (str(model),), **changes})


async def open_stream(endpoint: Endpoint) -> asyncio.StreamWriter:
    """Begin a long generation; return when its first event is here."""
    reader, writer = (
        await asyncio.open_unix_connection(endpoint.path)
        if endpoint.path
        else await asyncio.open_connection(endpoint.host, endpoint.port)
    )
    body = b'{"prompt":"x","n_predict":1000000,"ignore_eos":true,"stream":true}'
    writer.write(
        b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    await asyncio.wait_for(reader.readuntil(b"data: "), 30)
    return writer


@pytest.mark.parametrize("child_mode", [True, False])
@pytest.mark.parametrize("unix", [True, False])
async def test_ready_serves_and_stops(
    llama_server: str, tiny_model: TinyModel, short_dir: Path, child_mode: bool, unix: bool
) -> None:
    model = tiny_model("child", "one two three")
    changes: dict[str, Any] = {} if unix else {"socket_path": None}
    spec = real_spec(llama_server, short_dir, model, child_mode=child_mode, **changes)
    async with running(spec) as run:
        ready = await run.seen(ChildReady)
        assert ready.slots == 2
        assert ready.n_ctx
        if child_mode and ready.info:
            assert ready.info["object"] == "model"
        (await open_stream(ready.endpoint)).close()
        run.child.stop()
        exited = await run.ended()
    assert exited.failure is None
    assert exited.signal is None


async def test_plain_logs(llama_server: str, tiny_model: TinyModel, short_dir: Path) -> None:
    args = ("-m", str(tiny_model("child", "one two three")), "-t", "1", *ARGS)
    spec = make_spec(llama_server, short_dir, args=args, child_mode=False, socket_path=None)
    async with running(spec) as run:
        ready = await run.seen(ChildReady)
        assert ready.endpoint.port > 0
        run.child.stop()
        assert (await run.ended()).failure is None


@pytest.mark.parametrize("child_mode", [True, False])
async def test_stop_while_loading(
    llama_server: str, tiny_model: TinyModel, short_dir: Path, child_mode: bool
) -> None:
    model = tiny_model("child", "one two three")
    async with running(real_spec(llama_server, short_dir, model, child_mode=child_mode)) as run:
        await run.log_line("loading model")
        run.child.stop()
        exited = await run.ended()
    assert exited.failure is None
    assert exited.signal != signal.SIGKILL


@pytest.mark.parametrize("child_mode", [True, False])
async def test_stop_with_a_request_in_flight(
    llama_server: str, tiny_model: TinyModel, short_dir: Path, child_mode: bool
) -> None:
    model = tiny_model("endless", "round and round", loop=True)
    spec = real_spec(llama_server, short_dir, model, child_mode=child_mode, stop_timeout=2.0)
    async with running(spec) as run:
        ready = await run.seen(ChildReady)
        writer = await open_stream(ready.endpoint)
        run.child.stop()
        exited = await run.ended()
        writer.close()
    assert exited.failure is None


async def test_a_killed_child(llama_server: str, tiny_model: TinyModel, short_dir: Path) -> None:
    model = tiny_model("endless", "round and round", loop=True)
    async with running(real_spec(llama_server, short_dir, model)) as run:
        ready = await run.seen(ChildReady)
        writer = await open_stream(ready.endpoint)
        assert run.child.pid is not None
        os.kill(run.child.pid, signal.SIGKILL)
        exited = await run.ended()
        writer.close()
    assert exited.signal == signal.SIGKILL
    assert exited.failure is not None
    assert exited.failure.kind is FailureKind.KILLED


async def test_files_that_are_no_models(
    llama_server: str, tiny_model: TinyModel, short_dir: Path
) -> None:
    whole = tiny_model("child", "one two three").read_bytes()
    files = {
        "missing": (None, FailureKind.FILE_MISSING),
        "short": (whole[: len(whole) * 2 // 3], FailureKind.FILE_CORRUPT),
        "header": (whole[:20], FailureKind.FILE_CORRUPT),
        "empty": (b"", FailureKind.FILE_CORRUPT),
        "foreign": (b"hello there, this is text", FailureKind.FILE_CORRUPT),
        "arch": (whole.replace(b"llama", b"xlama"), FailureKind.UNKNOWN_ARCHITECTURE),
    }
    for name, (data, kind) in files.items():
        model = short_dir / f"{name}.gguf"
        if data is not None:
            model.write_bytes(data)
        async with running(real_spec(llama_server, short_dir, model)) as run:
            exited = await run.ended()
        assert exited.failure is not None
        assert exited.failure.kind is kind, (name, exited)
        assert f"{name}.gguf" in exited.failure.summary
        assert exited.code == 1


async def test_arguments_that_are_wrong(
    llama_server: str, tiny_model: TinyModel, short_dir: Path
) -> None:
    model = tiny_model("child", "one two three")
    for more in (("--bogus-flag",), ("-c", "many"), ("--cache-type-k", "q9")):
        async with running(real_spec(llama_server, short_dir, model, *more)) as run:
            exited = await run.ended()
        assert exited.failure is not None
        assert exited.failure.kind is FailureKind.BAD_ARGUMENT
        assert more[0] in exited.failure.summary


async def test_a_place_to_listen_that_is_not_there(
    llama_server: str, tiny_model: TinyModel, short_dir: Path
) -> None:
    model = tiny_model("child", "one two three")
    spec = real_spec(llama_server, short_dir, model, socket_path=str(short_dir / "no" / "x.sock"))
    async with running(spec) as run:
        exited = await run.ended()
    assert exited.failure is not None
    assert exited.failure.kind is FailureKind.PORT


async def test_cancelled_with_a_request_in_flight(
    llama_server: str, tiny_model: TinyModel, short_dir: Path
) -> None:
    model = tiny_model("endless", "round and round", loop=True)
    async with running(real_spec(llama_server, short_dir, model)) as run:
        writer = await open_stream((await run.seen(ChildReady)).endpoint)
    assert not alive((await run.seen(ChildSpawned)).pid)
    assert ChildExited not in [type(event) for event in run.events]
    writer.close()


# A supervisor in small: it runs one child, notes its pid once it is loading or ready, and waits.
SUPERVISOR = """
import asyncio, pathlib, sys, types
from llamaswap_py.children import Child, ChildLog, ChildReady, ChildSpawned, ChildSpec, RuntimeDir
from llamaswap_py.children import process
folder, binary, model, moment, death = sys.argv[1:6]
if death == "no":
    process.sys = types.SimpleNamespace(platform="other")
    process._guard_of = lambda group: None
async def main():
    with RuntimeDir.choose(name="one", env={"XDG_RUNTIME_DIR": folder}) as runtime:
        def on_event(event):
            if isinstance(event, ChildSpawned):
                runtime.record("alpha#1", event.pid, binary)
            if isinstance(event, ChildReady if moment == "ready" else ChildSpawned):
                part = pathlib.Path(folder, "part")
                part.write_text(str(child.pid))
                part.rename(pathlib.Path(folder, "pid"))
        args = ("-m", model, "-t", "1") if model != "-" else ()
        # No progress: it would write into a pipe which nothing reads any more, and end of that.
        env = {"FAKE_HANG": "1", "FAKE_LOAD_STEPS": "0"} if moment == "loading" else {}
        spec = ChildSpec("alpha#1", "alpha", 1, binary, args, env, runtime.socket_path(1), True,
                         (), None, 5.0, 60.0, 120.0)
        child = Child(spec, on_event, ChildLog())
        await child.run()
asyncio.run(main())
"""


def start_supervisor(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(folder), *words])


def test_the_real_one_is_spawned_the_quick_way(llama_server: str) -> None:
    """Python spawns with vfork only when setpriv can be used: 0.5 ms instead of 4."""
    assert process._is_native(llama_server)
    assert process._is_native(sys.executable)
    assert not process._is_native("/no/such/file")
    assert not process._is_native(__file__)


@pytest.mark.parametrize("moment", ["spawned", "loading", "ready"])
async def test_a_killed_supervisor_leaves_no_child(
    llama_server: str, tiny_model: TinyModel, short_dir: Path, moment: str
) -> None:
    from tests.fakes.fake_llama_server import install

    # The real one loads too fast to be caught at it for sure: a fake that hangs stands in there.
    binary = install(short_dir) if moment == "loading" else llama_server
    model = "-" if moment == "loading" else str(tiny_model("child", "one two three"))
    with start_supervisor(short_dir, binary, model, moment, "yes") as supervisor:
        pid = int(await file_text(short_dir / "pid"))
        supervisor.kill()
        supervisor.wait()
        async with asyncio.timeout(60):  # without its end it would stay for ever
            await gone(pid)


async def test_a_restart_sweeps_what_was_left(short_dir: Path) -> None:
    from tests.fakes.fake_llama_server import install

    fake = install(short_dir)
    with start_supervisor(short_dir, fake, "-", "loading", "no") as supervisor:
        pid = int(await file_text(short_dir / "pid"))
        await until((short_dir / "lswap" / "one" / "1.sock").exists)
        supervisor.kill()
        supervisor.wait()
    assert alive(pid)  # with nothing to end it, it would stay for ever
    env = {"XDG_RUNTIME_DIR": str(short_dir)}
    with RuntimeDir.choose(name="two", env=env) as other:
        assert [(s.how, s.record.pid) for s in other.sweep_orphans()] == [(SweptHow.KILLED, pid)]
    assert not alive(pid)
    with RuntimeDir.choose(name="one", env=env) as again:
        assert again.sweep_orphans() == []
        assert list(again.path.glob("*.sock")) == []
