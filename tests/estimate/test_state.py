"""Facts on disk: they survive what happens to disks, and nothing depends on them."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswap_py.storage import Facts, LearnedFacts, RecordFolder, estimates_folder, learned_folder

if TYPE_CHECKING:
    from pathlib import Path


class Thing(msgspec.Struct):
    size: int


def folder(path: Path, version: int = 1, kept: int = 100) -> RecordFolder[Thing]:
    return RecordFolder(path / "things", Thing, version=version, kept=kept)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    things = folder(tmp_path)
    assert things.read("one") is None
    assert things.write("one", Thing(1))
    assert things.write("one", Thing(2))
    assert folder(tmp_path).read("one") == Thing(2)
    assert [file.name for file in (tmp_path / "things").iterdir()] == ["one.json"]
    things.discard("one")
    things.discard("one")
    assert things.read("one") is None


def test_another_version_is_as_good_as_absent(tmp_path: Path) -> None:
    folder(tmp_path, version=1).write("one", Thing(1))
    newer = folder(tmp_path, version=2)
    assert newer.read("one") is None
    assert newer.write("one", Thing(2))
    assert newer.read("one") == Thing(2)
    assert not list(tmp_path.rglob("*.broken"))


@pytest.mark.parametrize("damage", ["truncate", "empty", "noise", "shape", "huge"])
def test_a_damaged_file_is_set_aside_with_a_message(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    things = folder(tmp_path)
    things.write("one", Thing(1))
    path = tmp_path / "things" / "one.json"
    good = path.read_bytes()
    path.write_bytes(
        {
            "truncate": good[:-5],
            "empty": b"",
            "noise": b"\xff\x00\xfe",
            "shape": b'{"version":1,"record":{"size":"x"}}',
            "huge": b"[" * (2 << 20),
        }[damage]
    )
    with caplog.at_level(logging.WARNING):
        assert things.read("one") is None
    assert "one.json is damaged" in caplog.text
    assert "one.json.broken" in caplog.text
    assert things.read("one") is None
    assert caplog.text.count("is damaged") == 1
    assert path.with_name("one.json.broken").exists()
    assert things.write("one", Thing(3))
    assert things.read("one") == Thing(3)


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any")
    (path / "things").mkdir()
    (path / "things" / "one.json").write_bytes(content)
    assert folder(path).read("one") is None


def test_a_write_that_was_cut_off_leaves_the_old_record(tmp_path: Path) -> None:
    things = folder(tmp_path)
    things.write("one", Thing(1))
    (tmp_path / "things" / f".one.json.{os.getpid()}").write_bytes(b'{"versi')
    assert things.read("one") == Thing(1)
    assert things.write("one", Thing(2))
    assert things.read("one") == Thing(2)


def test_a_disk_that_refuses_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "things").write_text("a file where the folder should be")
    things = folder(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert not things.write("one", Thing(1))
        assert not things.write("two", Thing(1))
        assert things.read("one") is None
    assert caplog.text.count("going on without") == 1


@pytest.mark.parametrize("name", ["", "../one", "a/b", ".hidden", "x" * 101])
def test_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        folder(tmp_path).read(name)


def test_the_oldest_are_pruned(tmp_path: Path) -> None:
    things = folder(tmp_path, kept=2)
    for number in range(4):
        things.write(f"n{number}", Thing(number))
        os.utime(tmp_path / "things" / f"n{number}.json", (number, number))
    assert things.prune() == 2
    assert [things.read(f"n{number}") for number in range(4)] == [None, None, Thing(2), Thing(3)]
    assert folder(tmp_path / "absent").prune() == 0


def test_folders_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert learned_folder() == tmp_path / "lswap" / "learned"
    assert estimates_folder().parts[-3:] == (".cache", "lswap", "estimates")


def test_facts_grow_with_every_life(tmp_path: Path) -> None:
    learned = LearnedFacts(tmp_path)
    assert learned.record_peak("k", {"host": 5}) is None
    learned.record_ready("k", "alpha", {"host": 100}, {"host": 30}, 10.0)
    assert learned.get("k") == Facts(
        "alpha", {"host": 100}, {"host": 100}, {"host": 30}, 10.0, loads=1
    )
    learned.record_peak("k", {"host": 110, "CUDA0": 7})
    learned.record_peak("k", {"host": 105})
    facts = learned.record_ready("k", "alpha", {"host": 90}, None, 20.0)
    assert facts.peak == {"host": 110, "CUDA0": 7}
    assert facts.growth == {"host": 30}
    assert facts.load_seconds == pytest.approx(13.0)
    assert facts.loads == 2
    assert learned.get("k") == facts
    learned.record_reported("k")
    learned.record_reported("absent")
    assert learned.record_ready("k", "alpha", {"host": 90}, None, None).reported
    learned.discard("k")
    assert learned.get("k") is None


def test_the_footprint_leaves_room_for_what_comes_with_use() -> None:
    facts = Facts("a", {"host": 100, "CUDA0": 50}, {"host": 110, "CUDA0": 60}, {"host": 30})
    assert facts.footprint == {"host": 130, "CUDA0": 60}
    used = Facts("a", {"host": 100}, {"host": 150}, {"host": 30})
    assert used.footprint == {"host": 150}
