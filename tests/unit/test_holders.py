"""Nobody else gets what is meant for a child: its port has to be held by the child itself."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import pwd
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.children import ChildReady, ChildSpawned, ChildSpec, FailureKind
from llamaswap_py.children import holders as holders_module
from llamaswap_py.children.ask import ask, get
from llamaswap_py.children.holders import PortWatch, look_at
from llamaswap_py.children.listeners import takers
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.proxy.upstream import UpstreamPool
from tests.fakes import fake_llama_server, fake_program
from tests.fakes.usurper import Usurper, user, usurping
from tests.unit.child_runs import alive, make_spec, running, until
from tests.unit.test_listeners import is_here
from tests.unit.test_program_child import spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamaswap_py.children.listeners import Listener

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="missing: Linux's tables of sockets"),
]
SECRET = b'{"prompt": "a secret"}'


def program(folder: Path, served_by: str = "cmd", line: str | None = None, **env: str) -> ChildSpec:
    ready = {"http": None if line else "/health", "line": line}
    spec = spec_of(folder, ready, env=env)
    assert spec.program is not None
    return dataclasses.replace(spec, program=dataclasses.replace(spec.program, served_by=served_by))


def port_of(pid: int) -> int:
    """Return the port in a command line, which any user can read."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return int(words[words.index(os.fsencode(str(fake_program.__file__))) + 1])


async def tell(endpoint: Endpoint) -> int:
    answer = await ask(endpoint, "POST", "/v1/audio/speech", timeout=90, body=SECRET)
    return answer.status


async def refused(endpoint: Endpoint) -> None:
    """Neither of the two ways to a child reaches whoever has its port."""
    with pytest.raises(ConnectionRefusedError):
        await tell(endpoint)
    async with UpstreamPool() as pool:
        with pytest.raises(ConnectionRefusedError):
            await pool.connect(endpoint)


def said_of(usurper: Usurper, port: int) -> str:
    return f"port {port} is held by process {usurper.pid} ("


@pytest.mark.parametrize("line", [None, "up and running"])
async def test_a_port_that_is_taken_before_the_child_listens(
    short_dir: Path, line: str | None
) -> None:
    gate = short_dir / "gate"
    spec = program(short_dir, line=line, PROGRAM_GATE_FIRST=str(gate))
    async with running(spec) as run:
        pid = (await run.seen(ChildSpawned)).pid
        await until(lambda: bool(Path(f"/proc/{pid}/cmdline").read_bytes().count(b"--x=")))
        port = port_of(pid)
        with usurping(port, short_dir) as usurper:
            await asyncio.to_thread(usurper.wait)
            if line is not None:  # it is not asked before its line, and could not listen then
                gate.touch()
            exited = await run.ended()
            assert not [event for event in run.events if isinstance(event, ChildReady)]
            assert usurper.heard == b""
            if line is None:
                assert exited.failure is not None
                assert exited.failure.kind is FailureKind.PORT
                assert exited.failure.summary.startswith(said_of(usurper, port))
                remedy = "{socket}" if user() != os.geteuid() else "served_by: container"
                assert remedy in exited.failure.summary
                assert any(said_of(usurper, port) in each for each in exited.tail)


@pytest.mark.parametrize("inside", ["", "child", "orphan"])
async def test_a_port_that_is_taken_after_the_child_let_go_of_it(
    short_dir: Path, inside: str
) -> None:
    """Also when nobody has noticed yet that the server is gone."""
    env = {"PROGRAM_INSIDE": inside} if inside else {}
    async with running(program(short_dir, **env)) as run:
        endpoint = (await run.seen(ChildReady)).endpoint
        told = (await get(endpoint, "/env", 20)).json()
        assert (told["pid"] == run.child.pid) == (not inside)
        assert await tell(endpoint) == 200
        with usurping(endpoint.port, short_dir) as usurper:
            os.kill(told["pid"], signal.SIGKILL)
            await asyncio.to_thread(usurper.wait)
            await refused(endpoint)
            exited = await run.ended()
            assert usurper.heard == b""
            if inside:  # else its end may be noticed before
                assert exited.failure is not None
                assert exited.failure.summary.startswith(said_of(usurper, endpoint.port))
        assert not alive(told["pid"])


async def test_requests_on_their_way_while_the_port_changes_hands(short_dir: Path) -> None:
    async with running(program(short_dir, PROGRAM_INSIDE="child")) as run:
        endpoint = (await run.seen(ChildReady)).endpoint
        told = (await get(endpoint, "/env", 20)).json()
        answered: list[int] = []

        async def go_on_asking() -> None:
            while not run.task or not run.task.done():
                try:
                    answered.append(await tell(endpoint))
                except OSError:
                    await asyncio.sleep(0.001)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(go_on_asking())
            with usurping(endpoint.port, short_dir) as usurper:
                await until(lambda: len(answered) > 50)
                os.kill(told["pid"], signal.SIGKILL)
                await asyncio.to_thread(usurper.wait)
                await run.ended()
                assert usurper.heard == b""


async def test_a_server_that_is_started_anew_inside_of_the_child(short_dir: Path) -> None:
    again = short_dir / "again"
    async with running(program(short_dir, PROGRAM_INSIDE="child", PROGRAM_AGAIN=str(again))) as run:
        endpoint = (await run.seen(ChildReady)).endpoint
        pids = set()
        for _ in range(3):
            before = takers("127.0.0.1", endpoint.port)
            told = (await get(endpoint, "/env", 20)).json()
            pids.add(told["pid"])
            async with UpstreamPool() as pool:
                (await pool.connect(endpoint)).abort()
            assert await tell(endpoint) == 200
            os.kill(told["pid"], signal.SIGKILL)
            again.touch()
            await until(functools.partial(is_another, endpoint.port, before))
        assert len(pids) == 3
        assert run.child.pid is not None
        assert alive(run.child.pid)


def is_another(port: int, before: list[Listener]) -> bool:
    """Return whether another socket than before listens there."""
    return bool(now := takers("127.0.0.1", port)) and now != before


@pytest.mark.parametrize("served_by", ["cmd", "container", "anyone"])
async def test_a_server_that_has_left_its_parent_and_session(
    short_dir: Path, served_by: str
) -> None:
    """It is still the child's: it is below its keeper, or in its cgroup."""
    async with running(program(short_dir, served_by, PROGRAM_INSIDE="daemon")) as run:
        endpoint = (await run.seen(ChildReady)).endpoint
        assert await tell(endpoint) == 200
        pid = (await get(endpoint, "/env", 20)).json()["pid"]
        run.child.stop()
        await run.ended()
        assert not alive(pid)


async def test_another_user_does_not_pass_for_a_container(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(program(short_dir, "container", PROGRAM_INSIDE="daemon")) as run:
        endpoint = (await run.seen(ChildReady)).endpoint
        pid = (await get(endpoint, "/env", 20)).json()["pid"]
        name = pwd.getpwuid(user()).pw_name
        with usurping(endpoint.port, short_dir) as usurper:
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(usurper.wait)
            if user() == os.geteuid():  # only root may have the usurper be somebody else
                monkeypatch.setattr(os, "geteuid", lambda: 2**31)
            await refused(endpoint)
            exited = await run.ended()
            assert usurper.heard == b""
        assert exited.failure is not None
        assert f"user {name})" in exited.failure.summary


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
async def test_a_port_that_others_hold_at_another_address(short_dir: Path, address: str) -> None:
    if not is_here(address):
        return
    gate = short_dir / "gate"
    async with running(program(short_dir, PROGRAM_GATE_FIRST=str(gate))) as run:
        pid = (await run.seen(ChildSpawned)).pid
        await until(lambda: bool(Path(f"/proc/{pid}/cmdline").read_bytes().count(b"--x=")))
        port = port_of(pid)
        with usurping(port, short_dir, "--address", address) as usurper:
            await asyncio.to_thread(usurper.wait)
            exited = await run.ended()
            assert usurper.heard == b""
        assert exited.failure is not None
        assert exited.failure.summary.startswith(said_of(usurper, port))


async def test_one_that_shares_the_port(short_dir: Path) -> None:
    """The kernel spreads connections over all that listen: it lets only the same user join."""
    async with running(program(short_dir, PROGRAM_REUSE_PORT="1")) as run:
        endpoint = (await run.seen(ChildReady)).endpoint
        assert await tell(endpoint) == 200
        with joining(endpoint.port, short_dir) as usurper:
            await refused(endpoint)
            exited = await run.ended()
            assert usurper.heard == b""
        assert exited.failure is not None
        assert f"is held by process {usurper.pid} (" in exited.failure.summary


@contextlib.contextmanager
def joining(port: int, folder: Path) -> Iterator[Usurper]:
    usurper = Usurper(port, folder / "heard", "--reuse", own=True)
    try:
        usurper.wait()
        yield usurper
    finally:
        usurper.end()


async def test_a_llama_server_on_a_port_is_watched_too(short_dir: Path) -> None:
    """It is one that is too old for unix sockets."""
    fake = fake_llama_server.install(short_dir)
    spec = make_spec(fake, short_dir, child_mode=False, args=(), socket_path=None)
    async with running(spec) as run:
        endpoint = (await run.seen(ChildReady)).endpoint
        assert (await get(endpoint, "/props", 20)).status == 200
        pid = run.child.pid
        assert pid is not None
        with usurping(endpoint.port, short_dir) as usurper:
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(usurper.wait)
            await refused(endpoint)
            await run.ended()
            assert usurper.heard == b""


def watch(port: int, pid: int, said: list[str], served_by: str = "cmd") -> PortWatch:
    return PortWatch(Endpoint(port=port), served_by, lambda: pid, said.append)


async def test_somebody_answers_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a container whose port the kernel passes on. Once may be a server that ends."""
    monkeypatch.setattr(holders_module, "takers", lambda host, port: [])
    said: list[str] = []
    one = watch(5000, os.getpid(), said)
    for number in range(3):
        assert len(said) == 0, number
        with pytest.raises(ConnectionRefusedError):
            await one.confirm()
    assert "port 5000, which no process of this machine holds" in said[0]
    assert await watch(5000, os.getpid(), said, "container").confirm()


async def test_a_child_whose_sockets_are_not_shown(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sudo -u`: what its own user holds may be its own, what another one holds is not."""

    def not_for_us(pid: int) -> frozenset[int]:
        raise PermissionError(pid)

    monkeypatch.setattr(holders_module, "sockets_of", not_for_us)
    said: list[str] = []
    with asleep() as pid, socket.create_server(("127.0.0.1", 0)) as own:
        assert look_at(pid).hidden == {os.geteuid()}
        port = own.getsockname()[1]
        one = watch(port, pid, said)
        assert [await one.confirm(), await one.confirm()] == [False, True]
        own.close()
        if user() == os.geteuid():
            return
        with usurping(port, short_dir) as usurper:
            await asyncio.to_thread(usurper.wait)
            with pytest.raises(ConnectionRefusedError):
                await one.confirm()
            assert said[0].startswith(f"port {port} is held by a process of user nobody, not by")


@contextlib.contextmanager
def asleep() -> Iterator[int]:
    """Yield the id of a process that does nothing."""
    process = subprocess.Popen(["sleep", "600"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


async def test_a_socket_that_stops_listening_while_it_is_looked_at_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It could listen again, as the same socket."""
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        seen = takers("127.0.0.1", port)
        answers = [seen, []]
        monkeypatch.setattr(holders_module, "takers", lambda host, port: answers.pop(0))
        one = watch(port, 2**22, said)
        assert not await one.confirm()
        answers[:] = [seen] * 5
        with pytest.raises(ConnectionRefusedError):
            await one.confirm()
    assert f"is held by process {os.getpid()} (" in said[0]


async def test_a_process_id_of_a_child_that_is_reaped_means_nobody(short_dir: Path) -> None:
    """It may be given to somebody else by then."""
    async with running(program(short_dir)) as run:
        endpoint = (await run.seen(ChildReady)).endpoint
        run.child.stop()
        await run.ended()
        run.child.process.pid = os.getpid()  # type: ignore[union-attr]
        with socket.create_server(("127.0.0.1", endpoint.port)):
            await refused(endpoint)
