"""What serves for a program outside of its own processes: found, and seen to end."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from llamaswap_py.children import ChildOutlived, ChildReady, ChildSpec
from llamaswap_py.children import outside as outside_module
from llamaswap_py.children.cgroups import Group
from llamaswap_py.children.containers import Outside, began_at, find_publisher, read_engine, tops
from llamaswap_py.children.outside import OutsideSearch
from llamaswap_py.children.program import accepts
from tests.fakes import fake_container
from tests.unit.child_runs import alive, running, until
from tests.unit.test_program_child import spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="missing: Linux's tables of sockets"),
]
ID = "ab" * 32


@pytest.fixture
def folder(short_dir: Path) -> Iterator[Path]:
    """A folder in which containers start; nothing of them is below this process."""
    daemon = shlex.join([sys.executable, fake_container.__file__, "daemon", str(short_dir)])
    started = subprocess.run(
        ["sh", "-c", f"{daemon} >/dev/null 2>&1 & echo $!"],
        capture_output=True,
        text=True,
        check=True,
    )
    try:
        yield short_dir
    finally:
        os.kill(int(started.stdout), signal.SIGKILL)
    if pid := fake_container.running(short_dir / "box.pid"):
        os.kill(pid, signal.SIGKILL)


def box(folder: Path, served_by: str = "container", **changes: Any) -> ChildSpec:
    """Return the spec of a client that starts a container, which heeds no SIGTERM."""
    spec = spec_of(folder, {"http": "/", "line": None}, **{"stop_timeout": 0.3, **changes})
    words = (fake_container.__file__, "run", str(folder), "box", "{port}")
    assert spec.program is not None
    program = dataclasses.replace(spec.program, served_by=served_by)
    return dataclasses.replace(spec, args=words, program=program)


def pid_of(folder: Path) -> int:
    pid = fake_container.running(folder / "box.pid")
    assert pid is not None
    return pid


async def found(run: Any) -> OutsideSearch:
    """Wait until the child is ready, and look for what serves for it, as the supervisor does."""
    ready = await run.seen(ChildReady)
    search: OutsideSearch = run.child.search
    await search.look(ready.endpoint)
    return search


@pytest.mark.parametrize("served_by", ["container", "anyone"])
async def test_what_outlives_a_program_is_ended(folder: Path, served_by: str) -> None:
    async with running(box(folder, served_by)) as run:
        search = await found(run)
        pid = pid_of(folder)
        assert search.found is not None
        assert search.found.roots() == [pid]
        run.child.stop()
        exited = await run.ended()
        assert exited.failure is None
        assert not alive(pid)
        said = [line for line in exited.tail if f"process {pid} (" in line]
        assert said
        assert said[-1].endswith("runs on: lswap ends it (SIGKILL)]")
        assert not [event for event in run.events if isinstance(event, ChildOutlived)]


async def test_it_is_told_to_end_before_it_is_killed(folder: Path) -> None:
    """The client has ended by itself, so nobody told the container."""
    async with running(box(folder)) as run:
        await found(run)
        pid = pid_of(folder)
        assert run.child.pid is not None
        os.kill(run.child.pid, signal.SIGKILL)
        exited = await run.ended()
        assert not alive(pid)
        ways = [line.rpartition("(")[2] for line in exited.tail if "lswap ends it" in line]
        assert ways == ["SIGTERM)]", "SIGKILL)]"]
        assert exited.failure is not None


async def test_what_was_not_looked_for_yet_is_found_at_the_end(folder: Path) -> None:
    async with running(box(folder)) as run:
        await run.seen(ChildReady)
        pid = pid_of(folder)
        run.child.stop()
        await run.ended()
        assert not alive(pid)


async def test_the_end_of_what_cannot_be_ended_is_awaited(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a container of root, for an lswap that is another user's."""
    monkeypatch.setattr(outside_module, "_KILLED", 0.1)
    monkeypatch.setattr(OutsideSearch, "_send", lambda *_: None)
    async with running(box(folder)) as run:
        await found(run)
        pid = pid_of(folder)
        run.child.stop()
        outlived = await run.seen(ChildOutlived)
        assert outlived.text.startswith(f"process {pid} (")
        assert "lswap cannot end it - end it by hand, and write a stop_cmd" in outlived.text
        assert run.task is not None
        assert not run.task.done()
        assert alive(pid)
        os.kill(pid, signal.SIGKILL)
        await run.ended()


async def test_a_stop_of_lswap_leaves_what_cannot_be_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outside_module, "_KILLED", 0.1)
    monkeypatch.setattr(OutsideSearch, "_send", lambda *_: None)
    async with running(box(folder)) as run:
        await found(run)
        pid = pid_of(folder)
        run.child.stop()
        await run.seen(ChildOutlived)
        assert run.child.leave()
        await run.ended()
        assert alive(pid)
        os.kill(pid, signal.SIGKILL)


def started_after(older: int) -> subprocess.Popen[bytes]:
    """Start a process whose time is later than another's; the system counts in hundredths."""
    while True:
        program = subprocess.Popen(["sleep", "60"])
        if began_at(program.pid) > began_at(older):
            return program
        program.kill()
        program.wait()


def test_a_process_that_was_there_before_is_not_the_programs(folder: Path) -> None:
    """It holds memory without the model, too, and must not be ended with it."""
    with subprocess.Popen(["sleep", "60"]) as older:
        spec = box(folder)
        search = OutsideSearch(spec, ())
        with started_after(older.pid) as program:
            try:
                search.begin(program.pid)
                began = began_at(program.pid)
                assert not Outside(process=psutil.Process(older.pid)).began_after(began)
                search.found = Outside(process=psutil.Process(older.pid))
                search._send(search.found, signal.SIGKILL)
                assert older.poll() is None
            finally:
                older.kill()
                program.kill()


async def test_a_program_that_serves_itself_has_nothing_outside(short_dir: Path) -> None:
    spec = spec_of(short_dir)
    assert spec.program is not None
    program = dataclasses.replace(spec.program, served_by="container")
    async with running(dataclasses.replace(spec, program=program)) as run:
        search = await found(run)
        assert search.found is None
        assert not search.unseen
        run.child.stop()
        assert (await run.ended()).failure is None


async def test_the_same_socket_proves_that_it_lives(folder: Path) -> None:
    """For a holder that this user may not look at: docker-proxy, of root."""
    async with running(box(folder)) as run:
        search = await found(run)
        pid = pid_of(folder)
        search.found = None
        endpoint = run.child._endpoint
        assert await search.living() == f"the program that listens at {endpoint}"
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not alive(pid))
        assert await search.living() == ""
        assert endpoint is not None
        with socket.create_server(("127.0.0.1", endpoint.port)):
            assert await accepts(endpoint)
            assert await search.living() == "", "another program has its port by now"


# --- containers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "engine"),
    [
        ("docker run --rm image", "docker"),
        ("sudo docker --host unix:///x container run image", "sudo docker --host unix:///x"),
        ("/usr/bin/podman run image", "/usr/bin/podman"),
        ("docker compose -f a.yaml up", "docker"),
        ("sh -c 'exec docker run image'", "exec docker"),
        ("docker ps", ""),
        ("vllm serve", ""),
    ],
)
def test_an_engine_is_known_without_a_name(line: str, engine: str) -> None:
    assert read_engine(shlex.split(line)) == tuple(engine.split())


def write_engine(folder: Path, script: str) -> str:
    """Write what stands for `docker`; it notes how it is called."""
    engine = folder / "docker"
    engine.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n{script}\n')
    engine.chmod(engine.stat().st_mode | stat.S_IXUSR)
    return str(engine)


async def test_a_container_without_a_name_is_found_by_its_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group((str(tmp_path),))
    groups = {ID: group}
    monkeypatch.setattr("llamaswap_py.children.containers.group_named", groups.get)
    lines = [f"{'cd' * 32} 0.0.0.0:80->80/tcp", f"{ID} 127.0.0.1:5001->8000/tcp, 9000/tcp"]
    engine = write_engine(tmp_path, f"printf '%s\\n' '{lines[0]}' '{lines[1]}'")
    outside = await find_publisher((engine,), 5001, {}, None)
    assert outside == Outside(group)
    assert outside is not None
    assert (outside.id, outside.engine) == (ID, (engine,))
    assert await find_publisher((engine,), 500, {}, None) is None
    assert "ps --no-trunc --format" in (tmp_path / "asked").read_text()


async def test_a_container_is_ended_by_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon may end it where this user may not; it would also start it again otherwise."""
    with subprocess.Popen(["sleep", "60"]) as box_process:  # noqa: ASYNC220
        (tmp_path / "cgroup.procs").write_text(f"{box_process.pid}\n")
        kill = f'[ "$1" = kill ] && kill -9 {box_process.pid}'
        engine = write_engine(tmp_path, kill)
        monkeypatch.setattr(OutsideSearch, "_send", lambda *_: None)
        search = OutsideSearch(spec_of(tmp_path), ())
        search.begin(os.getpid())
        search.found = Outside(Group((str(tmp_path),)), id=ID, engine=(engine,))
        said: list[str] = []
        left = asyncio.create_task(search.end(0.2, told=False, say=said.append))
        await asyncio.to_thread(box_process.wait)
        assert await left == ""
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [f"stop -t 1 {ID}", f"kill {ID}"]
    assert said[0].startswith(f"container {ID[:12]} (process {box_process.pid}, sleep) runs on")


@pytest.mark.parametrize(
    ("options", "asked"), [("--rm", True), ("--rm=true", True), ("--name box", False)]
)
async def test_what_is_left_of_a_container_is_removed_if_its_command_says_so(
    tmp_path: Path, options: str, asked: bool
) -> None:
    """What Podman leaves if its client is killed has the name, and the next load would fail."""
    engine = write_engine(tmp_path, "true")
    search = OutsideSearch(spec_of(tmp_path), (engine, "run", *options.split(), "image"))
    search.begin(os.getpid())
    await search.look()
    search.found = Outside(Group((str(tmp_path),)), id=ID)
    (tmp_path / "asked").unlink(missing_ok=True)
    await search.tidy()
    assert (tmp_path / "asked").exists() == asked
    if asked:
        assert (tmp_path / "asked").read_text().splitlines() == [
            f"rm --force {ID}",
            f"inspect --type container --format {{{{.Id}}}} {ID}",
        ]


def test_the_tops_of_some_processes() -> None:
    own = os.getpid()
    assert tops([own, os.getppid()]) == [os.getppid()]
