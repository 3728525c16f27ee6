"""Installing release archives: checked, contained, all or nothing."""

from __future__ import annotations

import hashlib
import io
import shutil
import stat
import tarfile
import threading
import time
import zipfile
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llamaswap_py.client import outgoing
from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp import archives
from llamaswap_py.llamacpp.binaries import locate_engine
from llamaswap_py.llamacpp.install import install_archive
from llamaswap_py.llamacpp.paths import engines_folder, read_manifest

from .engine_fakes import server_script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCRIPT = f"#!/bin/sh\n{server_script(7100)}\n".encode()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LSWAP_LLAMA_SERVER", raising=False)
    return tmp_path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            tar.addfile(info, io.BytesIO(content))
    return path


def make_zip(path: Path, members: dict[str, tuple[int, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, (mode, content) in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            file.writestr(info, content)
    return path


def installed() -> list[str]:
    return sorted(p.name for p in engines_folder().iterdir()) if engines_folder().exists() else []


def test_a_tar_keeps_its_layout_and_is_found_by_auto(home: Path) -> None:
    members = {"llama-b7100/llama-server": SCRIPT, "llama-b7100/libggml-vulkan.so": b"library"}
    archive = make_tar(home / "release.tar.gz", members)
    engine = install_archive(str(archive), digest(archive).upper())
    folder = engines_folder() / "b7100-vulkan"
    assert engine.path == folder / "llama-b7100/llama-server"
    assert (folder / "llama-b7100/libggml-vulkan.so").read_bytes() == b"library"
    manifest = read_manifest(folder)
    assert (manifest.build, manifest.backend, manifest.source) == (7100, "vulkan", str(archive))
    assert manifest.sha256 == hashlib.sha256(SCRIPT).hexdigest()
    assert manifest.features == ("unix_socket", "metrics")
    assert locate_engine().path == engine.path


def test_a_zip_keeps_modes_and_links(home: Path) -> None:
    members = {
        "build/bin/llama-server": (0o755, SCRIPT),
        "build/bin/libggml.so.0": (0o644, b"library"),
        "build/bin/libggml.so": (stat.S_IFLNK | 0o777, b"libggml.so.0"),
    }
    archive = make_zip(home / "release.zip", members)
    engine = install_archive(str(archive), digest(archive), name="mine")
    assert engine.path == engines_folder() / "mine/build/bin/llama-server"
    assert engine.path.with_name("libggml.so").readlink() == Path("libggml.so.0")
    assert engine.path.with_name("libggml.so").read_bytes() == b"library"


def test_installing_again_replaces(home: Path) -> None:
    archive = make_tar(home / "a.tar.gz", {"old/llama-server": SCRIPT})
    install_archive(str(archive), digest(archive))
    archive = make_tar(home / "b.tar.gz", {"new/llama-server": SCRIPT})
    install_archive(str(archive), digest(archive))
    assert [p.name for p in (engines_folder() / "b7100-cpu").iterdir() if p.is_dir()] == ["new"]
    assert installed() == ["b7100-cpu"]


def test_another_file_than_expected_is_refused(home: Path) -> None:
    archive = make_tar(home / "a.tar.gz", {"llama-server": SCRIPT})
    with pytest.raises(EngineError, match=digest(archive)):
        install_archive(str(archive), "0" * 64)
    with pytest.raises(EngineError, match="64 hexadecimal"):
        install_archive(str(archive), "abc")
    assert installed() == []


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_nothing_is_written_outside(home: Path, name: str) -> None:
    tar = make_tar(home / "a.tar.gz", {"llama-server": SCRIPT, name: b"x"})
    archive = make_zip(home / "a.zip", {"llama-server": (0o755, SCRIPT), name: (0o644, b"x")})
    # tarfile's data filter turns an absolute name into one inside; both outcomes are safe.
    if not name.startswith("/"):
        with pytest.raises(EngineError, match="cannot be unpacked"):
            install_archive(str(tar), digest(tar))
    with pytest.raises(EngineError, match="cannot be unpacked"):
        install_archive(str(archive), digest(archive))
    assert installed() == []
    assert not list(home.rglob("outside"))


def test_a_link_out_of_the_archive_is_refused(home: Path) -> None:
    link = {"lib.so": (stat.S_IFLNK | 0o777, b"/etc/passwd")}
    archive = make_zip(home / "a.zip", link | {"llama-server": (0o755, SCRIPT)})
    with pytest.raises(EngineError, match="links to /etc/passwd"):
        install_archive(str(archive), digest(archive))
    assert installed() == []


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"readme": b"x"}, "holds no llama-server"),
        ({"llama-server": b"#!/bin/sh\nexit 3\n"}, "status 3"),
    ],
)
def test_an_archive_without_a_working_server(
    home: Path, members: dict[str, bytes], message: str
) -> None:
    archive = make_tar(home / "a.tar.gz", members)
    with pytest.raises(EngineError, match=message):
        install_archive(str(archive), digest(archive))
    assert installed() == []


def test_a_file_that_is_no_archive(home: Path) -> None:
    archive = home / "a.tar.gz"
    archive.write_bytes(b"<html>not found</html>")
    with pytest.raises(EngineError, match="cannot be unpacked"):
        install_archive(str(archive), digest(archive))
    with pytest.raises(EngineError, match="there is no file"):
        install_archive(str(home / "missing.zip"), "0" * 64)


def test_a_url_is_downloaded_with_progress(home: Path) -> None:
    archive = make_tar(home / "a.tar.gz", {"llama-server": SCRIPT})
    seen: list[tuple[int, int | None]] = []
    with serve(home) as url:
        engine = install_archive(
            f"{url}/a.tar.gz",
            digest(archive),
            on_progress=lambda done, total: seen.append((done, total)),
        )
        with pytest.raises(EngineError, match="404"):
            install_archive(f"{url}/missing.tar.gz", "0" * 64)
    size = archive.stat().st_size
    assert seen[-1] == (size, size)
    assert read_manifest(engines_folder() / "b7100-cpu").source == f"{url}/a.tar.gz"
    assert engine.build == 7100
    with pytest.raises(EngineError, match="cannot be downloaded"):
        install_archive(f"{url}/a.tar.gz", digest(archive))  # nobody listens there any more


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def answering(answer: Callable[[Any], None]) -> Iterator[str]:
    """Serve one kind of answer on a port of this machine."""
    handler = type("Handler", (SimpleHTTPRequestHandler,), {"do_GET": answer})
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/archive.tar.gz"
    finally:
        server.shutdown()
        server.server_close()


def lead_away(request: Any) -> None:
    request.send_response(302)
    request.send_header("Location", "http://169.254.169.254/latest/meta-data")
    request.end_headers()


def send_for_ever(request: Any) -> None:
    request.send_response(200)
    request.end_headers()
    with suppress(OSError):
        while True:
            request.wfile.write(bytes(1 << 20))


def drip(request: Any) -> None:
    request.send_response(200)
    request.end_headers()
    with suppress(OSError):
        while True:
            request.wfile.write(b"x")
            time.sleep(0.1)


@pytest.mark.parametrize(
    ("answer", "said"),
    [(lead_away, "link-local"), (send_for_ever, "fit on the disk"), (drip, "a minute")],
)
def test_a_server_that_means_harm(
    home: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[[Any], None], said: str
) -> None:
    if answer is drip:  # one that sends fast is not refused for a pause
        monkeypatch.setattr(outgoing, "_WINDOW", 0.5)
    real = shutil.disk_usage(home)
    few = real._replace(free=archives.SPARE + (8 << 20))
    monkeypatch.setattr("shutil.disk_usage", lambda _: few)
    with answering(answer) as url, pytest.raises(EngineError, match=said):
        install_archive(url, "0" * 64)
    assert not [one for one in engines_folder().iterdir() if one.name.startswith(".unfinished")]
