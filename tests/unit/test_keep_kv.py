"""What of a child's slots is worth keeping, and the folder it is kept in."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from llamaswap_py.config.parse import load_config
from llamaswap_py.devices import Device
from llamaswap_py.devices.reader import Measurement, PoolReading
from llamaswap_py.llamacpp.slots import (
    Costs,
    SlotUse,
    choose_slots,
    keeps_nothing,
    prompt_speed,
    read_counts,
    read_restored,
    read_saved,
    read_slots,
)
from llamaswap_py.scheduler.ledger import Ledger
from llamaswap_py.scheduler.state import SchedulerState
from llamaswap_py.scheduler.types import Policy, Pool, PoolId, PresetId
from llamaswap_py.storage import kv_files as kept_module
from llamaswap_py.storage.kv_files import Kept, KeptFolder, is_in_memory, make_private
from llamaswap_py.supervisor.kv_cache import KvCache
from llamaswap_py.supervisor.memory_pools import MemoryPools

pytestmark = pytest.mark.anyio
MIB = 1 << 20


# What is worth it


def test_idle_slots_that_hold_something() -> None:
    answer = [
        {"id": 0, "is_processing": False, "n_prompt_tokens": 300},
        {"id": 1, "is_processing": True, "n_prompt_tokens": 900},
        {"id": 2, "is_processing": False},
        {"id": 3, "is_processing": False},
        {"id": 4, "is_processing": False, "n_prompt_tokens": 0},
    ]
    found = read_slots(answer, {2: 500, 4: 700})
    assert found == (SlotUse(0, 300), SlotUse(2, 500))


@pytest.mark.parametrize("answer", [None, {}, "x", [1, None], [{"id": "0"}], [{"id": 0}]])
def test_an_answer_without_slots(answer: object) -> None:
    assert read_slots(answer, {0: 500}) == ()


def test_the_longest_conversation_first_as_far_as_there_is_room_and_time() -> None:
    slots = [SlotUse(0, 1000), SlotUse(1, 4000), SlotUse(2, 2000), SlotUse(3, 100)]
    costs = Costs(token_bytes=1000, bytes_per_second=1e6)

    def chosen(room: float = 1e9, seconds: float = 100) -> list[int]:
        return [one.id for one in choose_slots(slots, costs, room=int(room), seconds=seconds)]

    assert chosen() == [1, 2, 0]  # 3 is too short
    assert chosen(room=5e6) == [1, 0]
    assert chosen(seconds=3.5) == [2, 0]
    assert chosen(room=0) == chosen(seconds=0) == []


@pytest.mark.parametrize(("speed", "kept"), [(None, True), (100.0, True), (900.0, False)])
def test_what_is_computed_as_fast_as_it_is_read_is_not_kept(
    speed: float | None, kept: bool
) -> None:
    costs = Costs(token_bytes=1000, bytes_per_second=1e6, tokens_per_second=speed)
    chosen = choose_slots([SlotUse(0, 1000)], costs, room=MIB, seconds=10)
    assert bool(chosen) == kept


def test_how_fast_prompts_are_read() -> None:
    text = (
        "# TYPE llamacpp:prompt_tokens_total counter\nllamacpp:prompt_tokens_total 2005\n"
        "llamacpp:prompt_tokens_cached_total 4004\nllamacpp:prompt_seconds_total 4.01\n"
        "llamacpp:prompt_seconds_total nonsense\nllamacpp:requests_processing 1\n"
    )
    counts = read_counts(text)
    assert counts["prompt_tokens_cached_total"] == 4004
    assert prompt_speed(counts) == 500
    assert prompt_speed({}) is None
    assert prompt_speed({"prompt_tokens_total": 5, "prompt_seconds_total": 0}) is None


@pytest.mark.parametrize("wrong", ["500", None, True, -1, 1.5])
def test_answers_that_say_nothing(wrong: object) -> None:
    assert read_saved({"n_saved": wrong, "n_written": wrong}) == (0, 0)
    assert read_restored({"n_restored": wrong}) == 0


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ("", ""),
        ("sleep: 1m", ""),
        ("args: {lora: a.gguf}", "LoRA"),
        ("extra: [--lora-scaled=a.gguf:0.5]", "LoRA"),
        ("extra: [-md, d.gguf]", "draft"),
        ("args: {spec-type: draft-mtp}", "draft"),
        ("args: {spec-type: ngram-simple}", ""),
        ("args: {embeddings: true}", "embedding"),
        ("args: {embeddings: false}", ""),
        ("args: {embeddings: off}", ""),
        ("args: {cache-prompt: false}", "cache-prompt"),
        ("args: {cache-prompt: disabled}", "cache-prompt"),
    ],
)
def test_where_nothing_can_be_kept(keys: str, reason: str) -> None:
    text = f"models:\n  a:\n    model: x.gguf\n    keep_kv: true\n    {keys}\n"
    config = load_config(text, path=None, base_dir="/", env={}, home="/home/me")
    said = keeps_nothing(config.models["a"])
    assert (reason in said) if reason else not said


# The folder


def folder(*places: Path, limit: int = 1000) -> KeptFolder:
    return KeptFolder(places, limit)


def keep(kept: KeptFolder, preset: str, size: int) -> Path:
    """Keep one file of a preset as a child would write it."""
    path = kept.path()
    assert path is not None
    name = kept.new_name()
    (path / name).write_bytes(bytes(size))
    slot = kept.finish(0, name, 500, size)
    assert slot is not None
    kept.put(preset, Kept("identity", (slot,)))
    return path / slot.name


def test_files_and_folders_are_private(tmp_path: Path) -> None:
    kept = folder(tmp_path / "lswap")
    file = keep(kept, "alpha", 10)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "lswap").stat().st_mode & 0o777 == 0o700
    kept.close()
    assert list((tmp_path / "lswap").iterdir()) == []


def test_a_file_that_is_not_whole_is_never_kept(tmp_path: Path) -> None:
    kept = folder(tmp_path)
    path = kept.path()
    assert path is not None
    name = kept.new_name()
    (path / name).write_bytes(bytes(9))
    assert kept.finish(0, name, 500, 10) is None
    (path / name).symlink_to("/etc/hostname")
    assert kept.finish(0, name, 500, Path("/etc/hostname").stat().st_size) is None
    assert kept.finish(0, "absent.part", 500, 10) is None
    assert os.listdir(path) == [".lock"]


def test_a_file_that_was_changed_is_known_as_such(tmp_path: Path) -> None:
    kept = folder(tmp_path)
    file = keep(kept, "alpha", 10)
    found = kept.take("alpha")
    assert found is not None
    (slot,) = found.slots
    assert kept.is_whole(slot)
    file.write_bytes(bytes(9))
    assert not kept.is_whole(slot)
    file.unlink()
    assert not kept.is_whole(slot)


def test_the_oldest_go_first(tmp_path: Path) -> None:
    kept = folder(tmp_path)
    files = {name: keep(kept, name, 100) for name in ("a", "b", "c")}
    assert kept.size == 300
    assert kept.shrink(250, last=("a",)) == 100
    assert list(kept.presets) == ["a", "c"]
    assert not files["b"].exists()
    keep(kept, "a", 50)  # it is the newest now, and its old file is gone
    assert not files["a"].exists()
    assert kept.shrink(50) == 100
    assert list(kept.presets) == ["a"]
    assert kept.size_of({"a", "b"}) == 50
    assert kept.shrink(0, last=("a",)) == 50
    assert kept.size == 0


def test_room_is_that_of_the_limit_and_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = folder(tmp_path)
    assert kept.room() == 0  # nowhere yet
    keep(kept, "a", 100)
    free = 10_000
    monkeypatch.setattr(kept_module, "_free", lambda _: free)
    assert kept.room() == 1000
    free = 300
    assert kept.room() == 400
    free = -500  # others have filled it
    assert kept.room() == 0


def test_memory_is_taken_where_it_has_room_for_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large, disk = (tmp_path / name for name in ("small", "large", "disk"))
    room = {small: 999, large: 1000, disk: 0}
    monkeypatch.setattr(kept_module, "is_in_memory", lambda path: path != disk)
    monkeypatch.setattr(kept_module, "_free", lambda path: room[path])
    kept = folder(small, large, disk)
    keep(kept, "a", 100)
    assert kept.place is not None
    assert kept.place.path.parent == large
    assert kept.in_memory == 100
    room[large] = 10
    kept = folder(small, large, disk)
    keep(kept, "a", 100)
    assert kept.place is not None
    assert kept.place.path.parent == disk
    assert kept.in_memory == 0


def test_a_foreign_or_open_folder_is_not_used(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(PermissionError):
        make_private(open_to_all)
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        make_private(linked)
    kept = folder(open_to_all)
    assert kept.path() is None
    assert kept.path() is None  # it is not tried for each load


def test_a_folder_that_vanished_is_made_anew(tmp_path: Path) -> None:
    """Like those below /dev/shm, when systemd's RemoveIPC takes them."""
    kept = folder(tmp_path)
    file = keep(kept, "a", 100)
    file.unlink()
    (file.parent / ".lock").unlink()
    file.parent.rmdir()
    again = kept.path()
    assert again is not None
    assert again.is_dir()
    assert not kept.presets


def test_only_what_nobody_holds_is_swept(tmp_path: Path) -> None:
    alive, dead = folder(tmp_path), folder(tmp_path)
    file, left = keep(alive, "a", 10), keep(dead, "a", 10)
    assert dead._lock is not None
    os.close(dead._lock)  # as the kernel does for who is killed
    other = tmp_path / "not-ours"
    other.mkdir()
    assert folder(tmp_path).sweep() == 1
    assert file.exists()
    assert other.exists()
    assert not left.parent.exists()
    assert folder(tmp_path / "absent").sweep() == 0


def test_where_main_memory_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mounts(**_: Any) -> list[Any]:
        return [mount("/", "ext4"), mount(str(tmp_path), "tmpfs"), mount(f"{tmp_path}/d", "ext4")]

    def mount(place: str, kind: str) -> Any:
        return type("Mount", (), {"mountpoint": place, "fstype": kind})

    (tmp_path / "d").mkdir()
    monkeypatch.setattr(psutil, "disk_partitions", mounts)
    assert is_in_memory(tmp_path / "not" / "there")
    assert not is_in_memory(tmp_path / "d" / "x")
    assert not is_in_memory(Path("/usr"))


async def test_main_memory_is_given_back_when_somebody_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest first; what is about to be brought back, or waited for, last."""
    monkeypatch.setattr(kept_module, "is_in_memory", lambda _: True)
    text = f"models: {{a: {{model: /x}}}}\nmemory: {{keep_kv: {{dir: '{tmp_path}'}}}}"
    config = load_config(text, path=None, base_dir="/", env={}, home="/home/me")
    host = PoolId("host")
    ledger = Ledger({host: Pool(10_000)}, Policy())
    state = SchedulerState(ledger, Policy())
    state.wanted[PresetId("b")] = None
    kv_cache = KvCache(config, tmp_path, state, asyncio.TaskGroup(), lambda _: None)
    for name in ("a", "b", "c", "d"):
        keep(kv_cache.folder, name, 100)
    kv_cache.give_way()
    assert kv_cache.in_memory == 400
    ledger.pools[host] = Pool(350)
    kv_cache.give_way("a")
    assert list(kv_cache.folder.presets) == ["a", "b", "d"]
    ledger.pools[host] = Pool(200)
    kv_cache.give_way("a")
    assert list(kv_cache.folder.presets) == ["a", "b"]
    ledger.pools[host] = Pool(-1)
    kv_cache.give_way("a")
    assert kv_cache.in_memory == 0
    kv_cache.close()


def test_kept_bytes_are_no_strangers() -> None:
    """Like page cache: they are given up when somebody needs them."""
    host = PoolId("host")
    for strangers in (300, None):
        pools = MemoryPools((Device("host", 1000, 0, "psutil"),))
        measured = Measurement(0.0, {"host": PoolReading(1000, 300, 0, strangers)})
        for _ in range(2):
            assert pools.update(measured, {}, frozenset(), kept=100)[host].strangers == 200
        assert pools.update(measured, {}, frozenset(), kept=400)[host].strangers == 0
