"""Which lswaps run here, and which of them a command means that names none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.children.running_lswaps import RunningLswap, Served, find_running, start_time
from llamaswap_py.children.runtime_dir import RuntimeDir, folder_name
from llamaswap_py.cli import servers, status, stop
from llamaswap_py.client.remote import UnreachableError
from llamaswap_py.config.load import Origin
from llamaswap_py.errors import ConfigError, StateError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def env(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    return {"XDG_RUNTIME_DIR": str(short_dir)}


def running(port: int, pid: int = 1, **more: object) -> RunningLswap:
    served = Served((f"http://127.0.0.1:{port}",), f"~/models-{port}", 1.0, **more)  # type: ignore[arg-type]
    return RunningLswap("one", pid, served)


def test_what_runs_is_found_by_its_folder(short_dir: Path, env: dict[str, str]) -> None:
    assert find_running(env) == []
    served = Served(("http://127.0.0.1:9000", "http://box:9000"), "~/models", 12.0)
    with RuntimeDir.choose(name="one", env=env) as runtime:
        assert find_running(env) == [RunningLswap("one", os.getpid(), None)]  # it starts
        runtime.tell(served)
        (found,) = find_running(env)
        assert found == RunningLswap("one", os.getpid(), served)
        assert str(found) == f"http://127.0.0.1:9000 (pid {os.getpid()}, serves ~/models)"
        pid_file = short_dir / "lswap" / "one" / "lswap.pid"
        (short_dir / "lswap" / "dead").mkdir()
        pid, started = pid_file.read_text().split()
        (short_dir / "lswap" / "dead" / "lswap.pid").write_text(f"{pid} {int(started) + 1}\n")
        assert len(find_running(env)) == 1
    assert find_running(env) == []
    assert sorted(file.name for file in pid_file.parent.iterdir()) == [
        "empty",
        "instances",
        "lswap.pid",
    ]


@pytest.mark.parametrize("record", [b"", b"{}?", b'{"version": 99, "urls": ["x"]}', b"\xff"])
def test_a_record_that_is_not_known_is_left_alone(
    short_dir: Path, env: dict[str, str], record: bytes
) -> None:
    """It is of a newer lswap, or damaged: only the process is known then."""
    with RuntimeDir.choose(name="one", env=env):
        (short_dir / "lswap" / "one" / "serves.json").write_bytes(record)
        assert find_running(env) == [RunningLswap("one", os.getpid(), None)]


def test_what_is_served_without_a_file_tells_two_apart(tmp_path: Path) -> None:
    """A file has one folder, as it always had; without one folders and addresses count."""
    one, two = Origin(model_dirs=(tmp_path / "a",)), Origin(model_dirs=(tmp_path / "b",))
    names = {
        folder_name(None, None, (*origin.beside, address))
        for origin in (one, two)
        for address in ("127.0.0.1:8080", "127.0.0.1:9000")
    }
    assert len(names) == 4
    file = tmp_path / "c.yaml"
    assert Origin(file).beside == ()
    assert Origin(folder=tmp_path).beside == ()
    assert Origin(file, model_dirs=(tmp_path,)).beside != Origin(file, tmp_path / "x").beside
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a")
    assert Origin(model_dirs=(link,)).beside == one.beside


@pytest.mark.parametrize(
    ("there", "url"),
    [
        ([], "http://127.0.0.1:8080"),
        ([running(9000)], "http://127.0.0.1:9000"),
        ([RunningLswap("one", 1, None)], "http://127.0.0.1:8080"),
        ([running(9000), running(8080)], "http://127.0.0.1:8080"),
    ],
)
def test_the_one_that_is_meant(
    there: list[RunningLswap], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "find_running", lambda _: there)
    assert servers.find_url(None) == servers.find_url("") == url
    assert servers.find_url("http://other") == "http://other"


def test_several_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "find_running", lambda _: [running(9000, 7), running(9001, 8)])
    with pytest.raises(ConfigError) as caught:
        servers.find_url(None)
    said = str(caught.value)
    assert "\n" not in said
    assert "2 lswaps run here - name one with --url:" in said
    for part in ("http://127.0.0.1:9000 (pid 7, serves ~/models-9000)", ":9001 (pid 8"):
        assert part in said


# --- stop

_SLEEPER = """
import signal, sys
got = []
def note(number, frame):
    got.append(number)
    print(number, flush=True)
    if len(got) == int(sys.argv[1]):
        sys.exit()
signal.signal(signal.SIGTERM, note)
signal.signal(signal.SIGINT, note)
print("up", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize(
    ("now", "stopping", "signals"),
    [
        (False, False, [signal.SIGTERM]),
        (True, False, [signal.SIGTERM, signal.SIGINT]),
        (True, True, [signal.SIGINT]),
    ],
)
def test_stop_sends_what_ctrl_c_sends(
    now: bool,
    stopping: bool,
    signals: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [sys.executable, "-c", _SLEEPER, str(len(signals))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        there = [running(1, process.pid, stopping=stopping)]
        monkeypatch.setattr(stop, "find_running", lambda _: there)
        stop.run(None, None, now=now, as_json=False)
        assert start_time(process.pid) is None
        assert sorted(map(int, process.stdout.read().split())) == sorted(signals)
    assert f"lswap (pid {process.pid}) has stopped" in capsys.readouterr().out


def test_stop_needs_one_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "find_running", lambda _: [])
    with pytest.raises(UnreachableError, match="no lswap of yours runs here"):
        stop.run(None, None, now=False, as_json=False)
    monkeypatch.setattr(stop, "find_running", lambda _: [running(9000), running(8080)])
    with pytest.raises(ConfigError, match="2 lswaps run here"):
        stop.run(None, None, now=False, as_json=False)


def test_stop_says_of_one_that_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class There:
        def __init__(self, *_: object, **__: object) -> None:
            self.pid = 77

        def __enter__(self) -> There:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def ask(self, _: object) -> There:
            return self

    monkeypatch.setattr(stop, "Remote", There)
    monkeypatch.setattr(stop, "find_running", lambda _: [])
    with pytest.raises(UnreachableError, match=r"the one at http://127.0.0.1:8080 \(pid 77\) is"):
        stop.run(None, None, now=False, as_json=False)


def test_localhost_is_the_address_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request is needed for it, and so no key."""
    monkeypatch.setattr(stop, "find_running", lambda _: [running(9, os.getpid())])
    monkeypatch.setattr(stop, "_signal", lambda *_, **__: None)
    monkeypatch.setattr(stop, "start_time", lambda _: None)
    stop.run("http://localhost:9", None, now=False, as_json=True)


def test_another_users_is_not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(stop, "find_running", lambda _: [running(9, os.getpid())])
    with pytest.raises(StateError, match="is another user's"):
        stop.run("http://127.0.0.1:9/v1", None, now=False, as_json=False)


def test_status_of_one_that_tells_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It starts, or is of another version; one that wants a key is told of as far as is known."""
    monkeypatch.setattr(
        status, "find_running", lambda _: [RunningLswap("one", 7, None), running(1, 8)]
    )
    status.run(None, None, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["lswap is running on an unknown address", "  pid 7"]
    assert "has another version: name its address with --url" in lines[2]
    assert lines[3] == "lswap is serving on http://127.0.0.1:1"
    assert lines[5] == "  serves ~/models-1"
    assert lines[6].startswith("  its models are unknown: no lswap answers")
