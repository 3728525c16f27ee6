"""A machine without a llama-server and without a compiler: it takes a release of llama.cpp.

The releases are on loopback; the engine in them is the real one of this machine.
"""

from __future__ import annotations

import io
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.llamacpp.install import pinned_ref
from llamaswap_py.llamacpp.release_assets import Platform
from llamaswap_py.llamacpp.releases import this_platform
from tests.fakes.fake_releases import FakeReleases, serving

from .test_demo import ALPHA, BETA, config  # noqa: F401

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

    from tests.conftest import TinyModel

ARCHES = {"x86_64": "x64", "aarch64": "arm64"}


def packed(server: Path, folder: str) -> bytes:
    """Pack what lies beside a llama-server as a release does."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for file in sorted(server.resolve().parent.iterdir()):
            if file.name.startswith(("llama-server", "llama-fit-params", "lib")):
                tar.add(file, f"{folder}/{file.name}")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def archive(llama_server: str) -> bytes:
    return packed(Path(llama_server), f"llama-{pinned_ref()}")


def asset_name(platform: Platform) -> str:
    return f"llama-{pinned_ref()}-bin-ubuntu-{ARCHES[platform.processor]}.tar.gz"


@pytest.fixture
def bare(short_dir: Path, archive: bytes) -> Iterator[tuple[FakeReleases, dict[str, str]]]:
    """Return the releases, and the environment of a user who has no engine."""
    home = short_dir / "home"
    home.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    env.pop("LSWAP_LLAMA_SERVER", None)
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        env[name] = str(home)
    with serving() as fake:
        fake.release(pinned_ref()).asset(asset_name(this_platform()), archive)
        yield fake, env | {"PATH": "/usr/bin:/bin", "LSWAP_RELEASES_URL": f"{fake.base}/releases"}


def test_the_demo_runs_without_a_compiler(
    bare: tuple[FakeReleases, dict[str, str]],
    config: Path,  # noqa: F811
) -> None:
    fake, env = bare
    done = subprocess.run(
        [sys.executable, "-m", "llamaswap_py", "demo", "--build", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        stdin=subprocess.DEVNULL,
        env=env,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "taking one from llama.cpp's releases" in done.stdout
    assert ALPHA in done.stdout
    assert BETA in done.stdout
    assert len(fake.asked) == 2
    listed = subprocess.run(
        [sys.executable, "-m", "llamaswap_py", "engine", "list"],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
        env=env,
    )
    assert f"installed {pinned_ref()}-ubuntu-" in listed.stdout


def test_the_first_start_at_a_terminal_offers_a_release(
    bare: tuple[FakeReleases, dict[str, str]], tiny_model: TinyModel
) -> None:
    fake, env = bare
    model = tiny_model("offered", "I came without a compiler.")
    command = [sys.executable, "-m", "llamaswap_py", "up", str(model), "--port", "0"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env=env,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    assert "`lswap engine install` (downloads a release)" in done.stderr
    assert fake.asked == []
    master, slave = pty.openpty()
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env) as up:
        try:
            os.close(slave)
            seen = read_until(master, "[Y/n]", up)
            assert "There is no llama-server on this machine" in seen
            os.write(master, b"\n")
            seen = read_until(master, "Ctrl-C drains and stops", up)
            assert f"downloading {asset_name(this_platform())}" in seen
            assert f"engines/{pinned_ref()}-ubuntu-" in seen.partition("with llama-server")[2]
            up.send_signal(signal.SIGINT)
            assert up.wait(60) == 0
        finally:
            up.kill()
            os.close(master)


def test_an_interrupted_download_leaves_nothing(
    bare: tuple[FakeReleases, dict[str, str]], archive: bytes
) -> None:
    """The server has sent the first half, and sends nothing more."""
    fake, env = bare
    ended = threading.Event()

    def stall(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(archive)))
        request.end_headers()
        request.wfile.write(archive[: len(archive) // 2])
        request.wfile.flush()
        ended.wait(60)
        request.close_connection = True

    fake.special[f"/download/{pinned_ref()}/{asset_name(this_platform())}"] = [stall]
    engines = Path(env["XDG_DATA_HOME"]) / "lswap" / "engines"
    command = [sys.executable, "-m", "llamaswap_py", "engine", "install"]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as install:
        try:
            until = time.monotonic() + 60
            while not any(one.stat().st_size for one in engines.glob("*/*.tar.gz")):
                assert time.monotonic() < until
                assert install.poll() is None
                time.sleep(0.01)
            install.send_signal(signal.SIGINT)
            _, said = install.communicate(timeout=90)
        finally:
            ended.set()
            install.kill()
    assert install.returncode == 130
    assert "Traceback" not in said
    assert list(engines.iterdir()) == []


def test_a_read_only_data_folder_is_named_with_what_to_do(
    bare: tuple[FakeReleases, dict[str, str]],
) -> None:
    _, env = bare
    home = env["XDG_DATA_HOME"]
    mount = f"mount -t tmpfs -o ro none {home}"
    may = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False)
    if may.returncode:
        pytest.skip("missing: the right to mount a read-only file system")
    words = [sys.executable, "-m", "llamaswap_py", "engine", "install"]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount}; exec {shlex.join(words)}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=env,
    )
    assert done.returncode == 1
    assert f"nothing was installed in {home}/lswap/engines (Read-only file system)" in done.stderr
    assert "XDG_DATA_HOME" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_engine_for_a_newer_c_library_is_explained(
    bare: tuple[FakeReleases, dict[str, str]], llama_server: str
) -> None:
    """The words are those of this machine's own loader."""
    fake, env = bare
    binary = Path(llama_server).resolve().read_bytes()
    newest = max(re.findall(rb"\0GLIBC_2\.\d\d\0", binary))
    changed = binary.replace(newest, b"\0GLIBC_9.99\0")
    fake.releases.clear()
    content = tar_of({f"llama-{pinned_ref()}/llama-server": changed})
    fake.release(pinned_ref()).asset(asset_name(this_platform()), content)
    done = subprocess.run(
        [sys.executable, "-m", "llamaswap_py", "engine", "install"],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env=env,
    )
    assert done.returncode == 1
    said = "does not start here: it needs glibc 9.99 or newer, and this machine has glibc "
    assert said in done.stderr
    assert "`lswap engine build` builds one" in done.stderr
    assert os.listdir(Path(env["XDG_DATA_HOME"]) / "lswap" / "engines") == []


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def read_until(master: int, mark: str, process: subprocess.Popen[bytes]) -> str:
    """Read the terminal up to a text; fail when the process ends, or after a minute."""
    seen, end = "", time.monotonic() + 60
    while mark not in seen:
        ready, _, _ = select.select([master], [], [], max(end - time.monotonic(), 0))
        try:
            piece = os.read(master, 65536) if ready else b""
        except OSError:  # the other side is closed
            piece = b""
        if not piece:
            pytest.fail(f"{mark!r} was not said (exit code {process.poll()}):\n{seen}")
        seen += piece.decode(errors="replace")
    return seen
