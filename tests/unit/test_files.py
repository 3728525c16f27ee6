"""Files that are read only if they are regular, and written whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from llamaswap_py.storage.regular_files import (
    NotRegularError,
    open_regular,
    read_regular,
    write_whole,
)
from llamaswap_py.tasks.threads import Workers


def test_the_beginning_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    assert (read_regular(file, 4), read_regular(file, 99)) == (b"0123", b"0123456789")
    assert read_regular(file) == b"0123456789"
    (tmp_path / "link").symlink_to(file)
    with open_regular(tmp_path / "link") as stream:
        assert not os.get_inheritable(stream.fileno())


def test_what_is_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), Path("/dev/tty")):
        with pytest.raises(NotRegularError, match="not a regular file"):
            read_regular(path)


def test_a_file_is_put_in_place_in_one_step(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    write_whole(file, b"one", mode=0o600)
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"one", 0o600)
    file.chmod(0o640)
    link.symlink_to("file")
    write_whole(link, b"two")
    assert link.is_symlink()
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"two", 0o640)
    link.unlink()
    link.symlink_to("new")
    write_whole(link, b"three")
    assert (tmp_path / "new").read_bytes() == b"three"
    assert {one.name for one in tmp_path.iterdir()} == {"file", "link", "new"}
    with pytest.raises(OSError, match=r"."):
        write_whole(tmp_path, b"")
    write_whole("/dev/null", b"four")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


FULL = """
import resource, signal, sys
from llamaswap_py.cli.app import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
main()
"""


@pytest.mark.parametrize(
    "words",
    [
        ("init", "FILE", "--force", "--models-dir", "."),
        ("import", "llama-cpp", "presets.ini", "-o", "FILE", "--force"),
        ("key", "new", "ann", "--file", "FILE"),
        ("rm", "alpha", "--config", "FILE", "--yes"),
    ],
)
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Of each command that writes a file of people's own; nothing is left beside it."""
    (tmp_path / "presets.ini").write_text("[alpha]\nmodel = /a.gguf\n")
    file = tmp_path / "own.yaml"
    said = "keys: []\n" if "key" in words else "models: {alpha: {model: /a}, beta: {model: /b}}\n"
    file.write_text(said)
    file.chmod(0o600)
    before = {one.name for one in tmp_path.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", FULL, *(str(file) if one == "FILE" else one for one in words)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert file.read_text() == said
    assert {one.name for one in tmp_path.iterdir()} == before


def test_threads_that_hang_keep_nobody_from_ending() -> None:
    """The interpreter does not wait for them, as it does for those of a ThreadPoolExecutor."""
    code = """
import threading
from llamaswap_py.tasks.threads import Workers
Workers(2, "some").submit(threading.Event().wait)
print("end")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=True
    )
    assert done.stdout == "end\n"


def test_no_more_threads_than_allowed_and_none_too_few() -> None:
    gate, both, workers = threading.Event(), threading.Barrier(3), Workers(2, "some")

    def work() -> str:
        both.wait(60)
        gate.wait(60)
        return threading.current_thread().name

    begun = [workers.submit(work) for _ in range(2)]
    both.wait(60)  # both run at the same time
    third, fourth = workers.submit(lambda: 3), workers.submit(lambda: 4)
    assert not third.done()
    assert fourth.cancel()
    gate.set()
    assert [one.result(20) for one in begun] == ["some", "some"]
    assert third.result(20) == 3
    with pytest.raises(CancelledError):
        fourth.result(20)
    with pytest.raises(ZeroDivisionError):
        workers.submit(lambda: 1 // 0).result(20)
    workers.shutdown()
    with pytest.raises(RuntimeError):
        workers.submit(print)
