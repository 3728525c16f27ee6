"""Whose a container's processes are: by its name, its cgroup, or the port that it holds."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import psutil
import pytest

from llamaswap_py.children.cgroups import Group, group_named, places_of
from llamaswap_py.children.containers import (
    ContainerCommand,
    Outside,
    find_container,
    find_holder,
    read_command,
    words_of,
)
from llamaswap_py.children.holders import holder_outside
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.scheduler.types import InstanceKey, PresetId
from llamaswap_py.supervisor.instances import Running
from llamaswap_py.supervisor.leases import OpenLeases
from tests.unit.supervisors import configured, make_supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ID = "ab" * 32


@pytest.mark.parametrize(
    ("line", "engine", "name", "cidfile"),
    [
        ("docker run --rm --name vllm -p 8000:8000 image --name other", "docker", "vllm", ""),
        ("/usr/bin/podman --runtime runc run --name=box image", "/usr/bin/podman --runtime runc",
         "box", ""),
        ("sudo docker --host unix:///x container run -d --cidfile /run/id image",
         "sudo docker --host unix:///x", "", "/run/id"),
        ("docker start -a box", "docker", "box", ""),
        ("nerdctl run --name a image", "nerdctl", "a", ""),
    ],
)  # fmt: skip
def test_a_command_names_its_container(line: str, engine: str, name: str, cidfile: str) -> None:
    expected = ContainerCommand(tuple(engine.split()), name, cidfile)
    assert read_command(line.split()) == expected
    assert read_command(["sh", "-c", f"exec {line}"])[1:] == expected[1:]  # type: ignore[index]


@pytest.mark.parametrize(
    "line", ["docker run image", "docker ps", "vllm serve --name x", "python docker.py run", ""]
)
def test_other_commands_name_none(line: str) -> None:
    assert read_command(line.split()) is None


def test_a_shell_line_that_cannot_be_read_names_none() -> None:
    assert read_command(["sh", "-c", "docker run --name 'x"]) is None


# --- by its cgroup ---------------------------------------------------------------------------

V1 = f"""\
9:name=systemd:/docker/{ID}
4:memory:/docker/{ID}
0::/
"""
V1_MOUNTS = """\
30 25 0:26 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,name=systemd
31 25 0:27 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory
32 25 0:28 / /sys/fs/cgroup/unified rw shared:11 - cgroup2 cgroup2 rw
"""
V2 = f"0::/system.slice/docker-{ID}.scope/inner\n"
V2_MOUNTS = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"


def recorded(root: Path, cgroup: str, mounts: str, folder: str, pids: str) -> Path:
    """Write a tree as the kernel shows it: one process in a container, one in none."""
    for pid, text in (("77", cgroup), ("78", "0::/user.slice\n"), ("self", "0::/\n")):
        (root / "proc" / pid).mkdir(parents=True)
        (root / "proc" / pid / "cgroup").write_text(text)
    (root / "proc/self/mountinfo").write_text(mounts)
    group = root / folder
    (group / "inner").mkdir(parents=True)
    (group / "cgroup.procs").write_text(pids)
    (group / "inner/cgroup.procs").write_text("79\n")
    return group


@pytest.mark.parametrize(
    ("cgroup", "mounts", "folder"),
    [
        (V1, V1_MOUNTS, f"sys/fs/cgroup/memory/docker/{ID}"),
        (V2, V2_MOUNTS, f"sys/fs/cgroup/system.slice/docker-{ID}.scope"),
    ],
    ids=["v1", "v2"],
)
def test_a_container_is_found_by_the_name_of_its_cgroup(
    tmp_path: Path, cgroup: str, mounts: str, folder: str
) -> None:
    group = recorded(tmp_path, cgroup, mounts, folder, "77\n")
    assert group_named(ID, str(tmp_path)) == Group((str(group),))
    assert group_named("cd" * 32, str(tmp_path)) is None
    assert places_of(12, str(tmp_path)) == []
    assert sorted(Group((str(group),)).pids()) == [77, 79]


def test_the_roots_of_a_container_have_its_other_processes_below_them(tmp_path: Path) -> None:
    """Trees are added up, so each process has to be in one of them only."""
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}; p.wait()"], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            (tmp_path / "cgroup.procs").write_text(f"{parent.pid}\n{child}\n")
            assert Outside(Group((str(tmp_path),))).roots() == [parent.pid]
        finally:
            os.kill(child, 9)
    (tmp_path / "cgroup.procs").write_text("")
    assert Outside(Group((str(tmp_path),))).roots() == []


@pytest.mark.anyio
async def test_its_engine_is_asked_for_the_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "docker"
    engine.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked; echo $ANSWER\n')
    engine.chmod(engine.stat().st_mode | stat.S_IXUSR)
    group = Group((str(tmp_path),))
    found = {ID: group}
    monkeypatch.setattr("llamaswap_py.children.containers.group_named", found.get)
    command = ContainerCommand((str(engine), "--host", "x"), "box", "")
    assert await find_container(command, {"ANSWER": ID}, None) == Outside(group)
    assert (tmp_path / "asked").read_text() == (
        "--host x inspect --type container --format {{.Id}} box\n"
    )
    for answer in ("", "no such object", "cd" * 32):
        assert await find_container(command, {"ANSWER": answer}, None) is None
    (tmp_path / "id").write_text(ID)
    by_file = ContainerCommand(("/no/such/engine",), "", "id")
    assert await find_container(by_file, {}, str(tmp_path)) == Outside(group)
    gone = ContainerCommand(("/no/such/engine",), "box", "none")
    assert await find_container(gone, {}, str(tmp_path)) is None


class Ended:
    """A child whose program has processes outside of its own."""

    process = None

    def __init__(self, *outside: int) -> None:
        self.search = self.found = self if outside else None
        self.outside = outside

    def roots(self) -> list[int]:
        return list(self.outside)


@pytest.mark.anyio
async def test_its_processes_are_accounted_for_as_ours(short_dir: Path) -> None:
    """Telemetry takes what these trees hold for the models', and the rest for other programs'."""
    config = configured("models: {alpha: {model: /a.gguf}}")
    supervisor = make_supervisor(short_dir, config, Endpoint(port=1))
    alpha = supervisor.prepared["alpha"]
    for epoch, (pid, outlived, outside) in enumerate(
        ((5, False, (7, 8)), (6, False, ()), (4, True, (10,)))
    ):
        child = cast("Any", Ended(*outside))
        one = Running(child, alpha, alpha.ways[""], OpenLeases(), pid=pid, outlived=outlived)
        supervisor.running[InstanceKey(PresetId("alpha"), epoch)] = one
    supervisor.reservations.ask({"host": 1}, name="held", pid=9)
    supervisor.reservations.record_held("held")
    assert sorted(supervisor._pids()) == [5, 6, 7, 8, 9, 10]


# --- by its port -------------------------------------------------------------------------------

_LISTEN = "import socket, sys; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); "
_LISTEN += "print(s.getsockname()[1], flush=True); sys.stdin.read()"


@pytest.fixture
def stranger() -> Iterator[tuple[int, int]]:
    """A process that is not below this one and listens; its pid and port."""
    outer = (
        "import subprocess, sys\n"
        f"p = subprocess.Popen([sys.executable, '-c', {_LISTEN!r}], start_new_session=True,\n"
        "    stdin=sys.stdin, stdout=sys.stdout)\n"
        "print(p.pid, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        assert started.stdin is not None
        numbers = sorted((int(started.stdout.readline()), int(started.stdout.readline())))
        started.wait()
        pid = next(one for one in numbers if _listens(one))
        port = next(one for one in numbers if one != pid)
        yield pid, port
        started.stdin.close()


def _listens(pid: int) -> bool:
    try:
        return "s.listen()" in " ".join(words_of(pid)) and psutil.Process(pid).is_running()
    except psutil.Error:
        return False


def test_what_holds_the_port_of_a_program_is_found(stranger: tuple[int, int]) -> None:
    pid, port = stranger
    with subprocess.Popen(["sleep", "60"]) as program:
        try:
            endpoint = Endpoint(port=port)
            assert holder_outside(program.pid, endpoint) == pid
            outside = find_holder(program.pid, endpoint)
            assert outside is not None
            assert outside.roots() == [pid]
            assert find_holder(pid, endpoint) is None  # its own process is not outside of it
        finally:
            program.kill()
    psutil.Process(pid).kill()
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=90)
    assert outside.roots() == []


def test_a_port_of_lswap_itself_is_nobodys_container() -> None:
    with socket.socket() as own, subprocess.Popen(["sleep", "60"]) as program:
        own.bind(("127.0.0.1", 0))
        own.listen()
        try:
            assert find_holder(program.pid, Endpoint(port=own.getsockname()[1])) is None
            assert find_holder(program.pid, Endpoint(port=1)) is None
        finally:
            program.kill()
