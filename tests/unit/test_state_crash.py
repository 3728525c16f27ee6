"""SIGKILL at any byte of a write: what was committed before is there, and nothing is in the way.

A process of its own writes with a limit on the size of files: the kernel takes the bytes up to the
limit and kills it (SIGXFSZ, made deadly) in the write of the next. So every byte is tried, besides
every system call between the first byte and the last.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from llamaswap_py.children.orphans import new_record, record_file, sweep, write_record
from llamaswap_py.storage import Facts, RecordFolder

if TYPE_CHECKING:
    from pathlib import Path

OLD = Facts("alpha", at_ready={"host": 1}, load_seconds=1.5)
NEW = Facts("alpha", at_ready={"host": 2, "CUDA0": 3}, peak={"host": 4}, load_seconds=2.5, loads=7)

KILLED = """
import os, resource, signal, sys
from pathlib import Path
import msgspec
from llamaswap_py.storage import Facts, RecordFolder
folder, size = Path(sys.argv[1]), int(sys.argv[3])
new = msgspec.json.decode(sys.argv[2], type=Facts)

def in_child(work):
    pid = os.fork()
    if not pid:
        work()
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def at_byte(limit):
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    RecordFolder(folder / str(limit), Facts, version=1).write("one", new)

def before(call):
    setattr(os, call, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    RecordFolder(folder / call, Facts, version=1).write("one", new)

for limit in range(size + 1):
    status = in_child(lambda: at_byte(limit))
    assert os.WIFSIGNALED(status) == (limit < size), (limit, status)
for call in ("fsync", "replace"):
    assert os.WIFSIGNALED(in_child(lambda: before(call)))
"""


def folder_of(path: Path) -> RecordFolder[Facts]:
    return RecordFolder(path, Facts, version=1)


def test_a_write_that_is_killed_at_any_byte(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = folder_of(tmp_path / "whole")
    whole.write("one", NEW)
    size = (tmp_path / "whole" / "one.json").stat().st_size
    places = [*map(str, range(size + 1)), "fsync", "replace"]
    for place in places:
        folder_of(tmp_path / place).write("one", OLD)
    words = [str(tmp_path), msgspec.json.encode(NEW).decode(), str(size)]
    subprocess.run([sys.executable, "-c", KILLED, *words], check=True, timeout=120)
    with caplog.at_level(logging.WARNING):
        for place in places:
            records = folder_of(tmp_path / place)
            assert records.read("one") == (NEW if place == str(size) else OLD), place
            assert records.write("one", NEW), "what the killed one left is in nobody's way"
            assert records.read("one") == NEW
    assert not caplog.records


def test_a_file_cut_off_anywhere_is_set_aside_with_a_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No write of ours leaves one; a disk may."""
    records = folder_of(tmp_path)
    records.write("one", OLD)
    path = tmp_path / "one.json"
    content = path.read_bytes()
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            assert records.read("one") is None, cut
        assert "set aside as one.json.broken" in caplog.text
        assert (tmp_path / "one.json.broken").read_bytes() == content[:cut]
        assert not path.exists()


@pytest.mark.parametrize("bit", [0x01, 0x20, 0x80])
def test_a_flipped_bit_anywhere_breaks_nothing(tmp_path: Path, bit: int) -> None:
    """What still reads as a record is one: figures are estimates, corrected by the next load."""
    records = folder_of(tmp_path)
    records.write("one", OLD)
    path = tmp_path / "one.json"
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
        found = records.read("one")
        assert found is None or isinstance(found, Facts)
        assert records.write("one", NEW)
        assert records.read("one") == NEW


def test_a_record_of_a_child_cut_off_anywhere_is_removed(tmp_path: Path) -> None:
    """Its writer replaces it as a whole; what another hand left is no reason not to start."""
    record = new_record("alpha#1", 1, "llama-server")
    assert record is not None
    path = record_file(tmp_path, "alpha#1")
    write_record(path, record)
    content = path.read_bytes()
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        path.with_suffix(".tmp").write_bytes(content[:cut])
        assert sweep(tmp_path) == []
        assert list(tmp_path.iterdir()) == []
