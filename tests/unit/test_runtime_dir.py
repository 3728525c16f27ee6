"""The private folder: where it is, who may have it, and that only one has it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamaswap_py.children import runtime_dir
from llamaswap_py.children.running_lswaps import base_dir
from llamaswap_py.children.runtime_dir import RuntimeDir
from llamaswap_py.errors import StateError


def choose(short_dir: Path, name: str = "one") -> RuntimeDir:
    return RuntimeDir.choose(name=name, env={"XDG_RUNTIME_DIR": str(short_dir)})


def test_the_base_follows_the_environment(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = short_dir / "service"
    service.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/tmp")
    env = {"XDG_RUNTIME_DIR": str(short_dir), "RUNTIME_DIRECTORY": f"{service}:/other"}
    assert base_dir(env) == short_dir / "lswap"
    assert base_dir({**env, "XDG_RUNTIME_DIR": "/no/such"}) == service
    assert base_dir({"XDG_RUNTIME_DIR": "relative"}) == Path(f"/tmp/lswap-{os.getuid()}")


def test_a_folder_per_real_config_path_or_name(short_dir: Path) -> None:
    config = short_dir / "a.yaml"
    config.touch()
    link = short_dir / "link.yaml"
    link.symlink_to(config)
    env = {"XDG_RUNTIME_DIR": str(short_dir)}
    one = RuntimeDir.choose(config_path=config, env=env)
    assert one.path == RuntimeDir.choose(config_path=link, env=env).path
    assert one.path != RuntimeDir.choose(config_path=short_dir / "b.yaml", env=env).path
    assert choose(short_dir, "mine").path == short_dir / "lswap" / "mine"
    for bad in ("", "..", "a/b", "x" * 41, ".hidden"):
        with pytest.raises(StateError, match="cannot be the name"):
            choose(short_dir, bad)


def test_it_is_private_and_ours(short_dir: Path) -> None:
    with choose(short_dir) as runtime:
        for folder in (runtime.path, runtime.path.parent, runtime.config_home):
            assert folder.stat().st_mode & 0o777 == 0o700
    runtime.path.chmod(0o755)
    with choose(short_dir):
        assert runtime.path.stat().st_mode & 0o777 == 0o700
    runtime.path.chmod(0o777)
    with pytest.raises(StateError, match="others can write"), choose(short_dir):
        pass


def test_a_foreign_or_odd_folder_is_refused(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short_dir / "lswap").mkdir(mode=0o700)
    (short_dir / "target").mkdir(mode=0o700)
    (short_dir / "lswap" / "one").symlink_to(short_dir / "target")
    with pytest.raises(StateError, match="is not a folder"), choose(short_dir):
        pass
    (short_dir / "lswap" / "two").touch()
    with pytest.raises(StateError, match="cannot use the folder"), choose(short_dir, "two"):
        pass
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(StateError, match="belongs to user"), choose(short_dir, "three"):
        pass


def test_sockets_have_a_length_limit(short_dir: Path) -> None:
    assert choose(short_dir).socket_path(7) == str(short_dir / "lswap" / "one" / "7.sock")
    base = len(str(short_dir / "x" / "lswap" / "one" / "7.sock")) - 1
    fits = RuntimeDir.choose(name="one", env={"XDG_RUNTIME_DIR": "/nowhere"})
    fits.path = short_dir / ("x" * (107 - base)) / "lswap" / "one"
    path = fits.socket_path(7)
    assert path is not None
    assert len(path) == 107
    assert fits.socket_path(10) is None


def test_two_supervisors_never_share_one(short_dir: Path) -> None:
    script = (
        "import sys\n"
        "from llamaswap_py.children.runtime_dir import RuntimeDir\n"
        "with RuntimeDir.choose(name='one', env={'XDG_RUNTIME_DIR': sys.argv[1]}):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(short_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StateError, match=rf"\(pid {other.pid}\)") as caught, choose(short_dir):
            pass
        assert "--name" in caught.value.remedy
        with choose(short_dir, "two") as mine:
            assert mine.sweep_orphans() == []
        other.kill()
        other.wait()
        with choose(short_dir):  # the kernel released the lock with the process
            pass


def test_a_sweep_by_a_neighbour_is_waited_for(short_dir: Path) -> None:
    with choose(short_dir):
        pass
    lock = runtime_dir._take_lock(short_dir / "lswap" / "one")
    assert lock is not None
    released: list[float] = []

    def sleep(seconds: float) -> None:
        if not released:
            os.close(lock)
            released.append(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        with choose(short_dir):
            assert released
