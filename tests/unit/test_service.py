"""Unit files, sd_notify, sockets that are handed over, and `lswap service`."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llamaswap_py.cli import service as commands
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import ConfigError, StateError
from llamaswap_py.llamacpp.backends import DEVICE_VARIABLES, SELECTABLE
from llamaswap_py.server import Notifier, Unit, inherited_sockets, service_text, socket_text
from llamaswap_py.server.systemd import endpoint_of
from tests import needs

ROOT = Path(__file__).resolve().parents[2]
UNIT = Unit(
    name="lswap",
    command=("/bin/sh", "up", "/etc/lswap/models.yaml"),
    folder="/etc",
    shutdown_timeout=30.0,
    stop_timeout=10.5,
    listen=(Endpoint(host="::1", port=8080), Endpoint(path="/run/lswap/lswap.sock")),
    user="root",
    writable=("/home/some one/.cache",),
    env=(("HF_HOME", '/data/100%/"x"'),),
    modprobe="/bin/sh",
)


def settings(text: str) -> dict[str, list[str]]:
    """Return what a unit sets, by name."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def verify(tmp_path: Path) -> object:
    """Have systemd itself read a unit; returns what it complains of."""
    needs.SYSTEMD.require()

    def read(files: dict[str, str], *options: str) -> str:
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        done = subprocess.run(
            ["systemd-analyze", *options, "verify", *(tmp_path / name for name in files)],
            env={
                **os.environ,
                "SYSTEMD_UNIT_PATH": f"{tmp_path}:",
                "XDG_RUNTIME_DIR": str(tmp_path),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    return read


# --- units


@pytest.mark.parametrize("unit", [UNIT, replace(UNIT, user=None), replace(UNIT, groups=("root",))])
def test_systemd_finds_nothing_to_complain_of(verify, unit: Unit) -> None:  # type: ignore[no-untyped-def]
    options = ("--user",) if unit.user is None else ()
    assert verify({"lswap.service": service_text(unit)}, *options) == ""


def test_systemd_reads_the_socket(verify) -> None:  # type: ignore[no-untyped-def]
    unit = replace(UNIT, by_socket=True)
    files = {"lswap.socket": socket_text(unit), "lswap.service": service_text(unit)}
    assert verify(files) == ""
    assert settings(files["lswap.socket"])["ListenStream"] == [
        "[::1]:8080",
        "/run/lswap/lswap.sock",
    ]
    assert settings(files["lswap.service"])["Requires"] == ["lswap.socket"]


def test_systemd_would_complain_of_a_typo(verify) -> None:  # type: ignore[no-untyped-def]
    text = service_text(UNIT).replace("WatchdogSec", "WatchDogSec")
    assert "WatchDogSec" in verify({"lswap.service": text})


def test_a_stop_may_take_as_long_as_draining_and_stopping_the_children() -> None:
    found = settings(service_text(UNIT))
    assert found["TimeoutStopSec"] == ["51s"]
    assert found["KillMode"] == ["mixed"]
    assert found["Delegate"] == ["yes"]
    assert "ProtectControlGroups" not in found
    assert found["Type"] == ["notify"]
    assert found["RuntimeDirectory"] == ["lswap"]


def test_words_are_quoted_for_systemd() -> None:
    unit = replace(UNIT, command=("/opt/my lswap", "up", "/a/100%/$HOME;x.yaml"))
    found = settings(service_text(unit))
    assert found["ExecStart"] == ['"/opt/my lswap" up "/a/100%%/$$HOME;x.yaml"']
    assert found["Environment"] == ['"HF_HOME=/data/100%%/\\"x\\""']
    assert found["ReadWritePaths"] == ['"-/home/some one/.cache"']


def test_the_gpus_stay_reachable() -> None:
    found = settings(service_text(replace(UNIT, groups=("video", "render"))))
    assert found["SupplementaryGroups"] == ["video render"]
    assert not {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock"} & set(found)
    assert "MemoryDenyWriteExecute" not in found
    assert found["ExecStartPre"] == ["-+/bin/sh -c 0 -u"]


def test_what_needs_it_gets_it() -> None:
    low = replace(UNIT, listen=(Endpoint(port=80),), uses_tmp=True)
    found = settings(service_text(low))
    assert found["AmbientCapabilities"] == ["CAP_NET_BIND_SERVICE"]
    assert "PrivateTmp" not in found
    assert settings(service_text(UNIT))["CapabilityBoundingSet"] == [""]
    assert "PrivateTmp" in settings(service_text(UNIT))


# --- the commands


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(commands.app, args)
    if isinstance(result.exception, StateError):
        return 1, str(result.exception)
    return result.exit_code, result.output


def write_config(folder: Path) -> Path:
    path = folder / "models.yaml"
    path.write_text("policy: {shutdown_timeout: 2m}\nmodels: {a: {model: a.gguf}}\n")
    return path


def test_print_shows_the_unit_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = write_config(tmp_path)
    code, out = run("install", "--user", "--print", "--socket", "--name", "two", str(path))
    assert code == 0
    assert f"# {tmp_path}/config/systemd/user/two.service" in out
    assert f"up {path} --name two" in out
    assert "ListenStream=127.0.0.1:8080" in out
    assert "TimeoutStopSec=140s" in out
    assert f"Environment=XDG_CONFIG_HOME={tmp_path}/config" in out
    assert not (tmp_path / "config").exists()


@pytest.mark.parametrize("value", ["1", ""], ids=["some", "none"])
def test_the_service_sees_the_devices_that_the_shell_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    for name in DEVICE_VARIABLES:
        monkeypatch.setenv(name, value)
    code, out = run("install", "--user", "--print", str(write_config(tmp_path)))
    assert code == 0
    copied = [line for line in settings(out)["Environment"] if not line.startswith("XDG_")]
    assert copied == [f"{name}={value}" for name in sorted(DEVICE_VARIABLES)]


def test_every_backend_says_which_variables_choose_its_devices() -> None:
    for one in SELECTABLE.values():
        assert {one.variable, *(one.order or {})} <= DEVICE_VARIABLES
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES"):
        assert name in DEVICE_VARIABLES
    assert "" not in DEVICE_VARIABLES


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, fails: str = "") -> Path:
    """Put a systemctl there that writes down what it is told, and fails at what `fails` matches."""
    (folder / "bin").mkdir(exist_ok=True)
    script = folder / "bin" / "systemctl"
    script.write_text(
        f'#!/bin/sh\necho "$@" >>{folder}/told\n'
        f'case "$*" in {fails or "nothing"}) echo "no such bus" >&2; exit 1 ;; esac\n'
        "echo ActiveState=inactive\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    return folder / "told"


def test_install_and_uninstall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = stand_in(tmp_path, monkeypatch)
    unit = tmp_path / "systemd" / "user" / "lswap.service"
    code, out = run("install", "--user", str(write_config(tmp_path)))
    assert code == 0
    assert "systemctl --user enable --now lswap.service" in out
    assert "Type=notify" in unit.read_text()
    assert run("status", "--user")[0] == 1
    code, out = run("uninstall", "--user")
    assert code == 0
    assert not unit.exists()
    assert [line.split()[1] for line in told.read_text().splitlines()] == [
        "show",
        "daemon-reload",
        "show",
        "show",
        "disable",
        "daemon-reload",
    ]
    code, out = run("uninstall", "--user")
    assert code == 1
    assert "there is no" in out


def test_without_systemd_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = stand_in(tmp_path, monkeypatch, fails="*")
    path = write_config(tmp_path)
    code, out = run("install", "--user", "--now", str(path))
    assert code == 1
    assert "no service is installed: `systemctl --user show --property=Version` failed" in out
    assert f"start `lswap up {path}` in another way" in out
    assert not (tmp_path / "systemd").exists()
    assert len(told.read_text().splitlines()) == 1
    assert "ExecStart=" in run("install", "--user", "--print", str(path))[1]


def test_a_left_unit_is_removed_without_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch)
    assert run("install", "--user", str(write_config(tmp_path)))[0] == 0
    unit = tmp_path / "systemd" / "user" / "lswap.service"
    link = unit.parent / "default.target.wants" / unit.name
    link.parent.mkdir()
    link.symlink_to(unit)
    stand_in(tmp_path, monkeypatch, fails="*")
    code, out = run("uninstall", "--user")
    assert code == 0
    assert "only the unit files are removed" in out
    assert not unit.exists()
    assert not link.is_symlink()


@pytest.mark.parametrize("fails", ["*daemon-reload*", "*enable*"])
def test_an_installation_that_fails_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """A unit that was there before is what it was."""
    path = write_config(tmp_path)
    folder = tmp_path / "systemd" / "user"
    folder.mkdir(parents=True)
    (folder / "lswap.service").write_text("before")
    stand_in(tmp_path, monkeypatch, fails)
    code, out = run("install", "--user", "--now", "--socket", str(path))
    assert code == 1
    assert "the unit files are as before" in out
    assert "journalctl --user -u lswap" in out
    assert [file.name for file in folder.iterdir()] == ["lswap.service"]
    assert (folder / "lswap.service").read_text() == "before"


def test_the_file_of_a_service_is_the_one_that_up_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(commands.app, ["install", "--user", "--print"])
    assert isinstance(result.exception, ConfigError)
    assert "`lswap init` writes one" in str(result.exception)
    write_config(tmp_path).rename("lswap.yaml")
    code, out = run("install", "--user", "--print")
    assert code == 0
    assert f"up {tmp_path}/lswap.yaml" in out


def test_models_are_not_run_as_root_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "root")
    path = write_config(tmp_path)
    code, out = run("install", "--print", str(path))
    assert (code, "--run-as" in out) == (1, True)
    code, out = run("install", "--print", "--run-as", "root", str(path))
    assert code == 0
    assert f"ReadWritePaths=-{tmp_path} " in out
    assert "User=root" in out
    code, out = run("install", "--print", "--run-as", "no such user", str(path))
    assert (code, "no such user" in out) == (1, True)


# --- sd_notify


def listener(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(name)
    sock.settimeout(10)
    return sock


def test_messages_reach_a_path_and_an_abstract_name(short_dir: Path) -> None:
    abstract = f"lswap-test-{os.getpid()}"
    for bound, address in (
        (f"{short_dir}/notify", f"{short_dir}/notify"),
        (f"\0{abstract}", f"@{abstract}"),
    ):
        env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}
        with listener(bound) as manager, Notifier.take(env) as notifier:
            assert env == {}, "children must not inherit them"
            assert notifier.watchdog is None, "it was meant for process 1"
            notifier.ready()
            notifier.status("fine")
            notifier.status("fine")
            with pytest.raises(KeyError), notifier.reloading():
                raise KeyError
            notifier.stopping()
            assert manager.recv(100) == b"READY=1"
            assert manager.recv(100) == b"STATUS=fine"
            first, second = manager.recv(100).decode().split("\n")
            assert first == "RELOADING=1"
            assert int(second.removeprefix("MONOTONIC_USEC=")) > 0
            assert manager.recv(100) == b"READY=1"
            assert manager.recv(100) == b"STOPPING=1"


def test_without_a_service_manager_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    for env in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}):
        with Notifier.take(env) as notifier:
            assert not notifier.active
            notifier.ready()
    assert "vsock:2:1" in caplog.text


def test_one_that_is_gone_is_told_once_it_is_back(
    short_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = f"{short_dir}/notify"
    with Notifier(path) as notifier:
        notifier.ready()
        notifier.ping()
        notifier.status("waiting")
        assert len(caplog.records) == 1
        with listener(path) as manager:
            notifier.stopping()
            got = [manager.recv(100) for _ in range(3)]
    assert got == [b"READY=1", b"STATUS=waiting", b"STOPPING=1"]


@pytest.mark.anyio
async def test_the_watchdog_is_fed_at_half_its_interval(short_dir: Path) -> None:
    with listener(f"{short_dir}/notify") as manager, Notifier(f"{short_dir}/notify", 0.2) as one:
        running = asyncio.create_task(one.run(lambda: "fine"))
        begun = asyncio.get_running_loop().time()
        got = [await asyncio.to_thread(manager.recv, 100) for _ in range(4)]
        took = asyncio.get_running_loop().time() - begun
        running.cancel()
        await asyncio.wait([running])
    assert got == [b"WATCHDOG=1", b"STATUS=fine", b"WATCHDOG=1", b"WATCHDOG=1"]
    assert took >= 0.15


# --- sockets that are handed over


def test_sockets_for_this_process_are_taken(short_dir: Path) -> None:
    # In a process of its own: descriptors 3 and 4 here belong to somebody.
    code = """
import os, socket
from llamaswap_py.server import inherited_sockets
from llamaswap_py.server.systemd import endpoint_of
env = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "X": "1"}
sockets = inherited_sockets(env)
print(*map(endpoint_of, sockets), env, *(os.get_inheritable(s.fileno()) for s in sockets))
"""
    path = f"{short_dir}/s"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(path)
        unix.listen()
        inner = f"exec 3<&{tcp.fileno()} 4<&{unix.fileno()}; exec '{sys.executable}' -c '{code}'"
        done = subprocess.run(
            ["bash", "-c", inner],
            pass_fds=(tcp.fileno(), unix.fileno()),
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert done.stdout == (
            f"127.0.0.1:{tcp.getsockname()[1]} unix:{path} {{'X': '1'}} False False\n"
        ), done.stderr


def test_sockets_for_others_are_left_alone() -> None:
    env = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1"}
    assert inherited_sockets(env) == []
    assert inherited_sockets({}) == []
    assert inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}) == []


def test_what_does_not_listen_is_refused() -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        sock = socket.socket(socket.AF_INET, kind)
        env = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
        with pytest.raises(StateError, match="not a listening stream socket"):
            inherited_sockets(env, first=sock.detach())
    reader, writer = os.pipe()
    env = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    with pytest.raises(StateError, match="is not a socket"):
        inherited_sockets(env, first=reader)
    os.close(reader)
    os.close(writer)


def test_endpoints_of_sockets() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as sock:
        assert endpoint_of(sock) == Endpoint(host="::1", port=sock.getsockname()[1])
