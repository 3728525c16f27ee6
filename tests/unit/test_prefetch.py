"""What is read ahead, in which order and how far, and when it ends."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from llamaswap_py.config.forms import PerDevice
from llamaswap_py.config.sections import Memory
from llamaswap_py.devices.page_cache import WINDOW, Reading, cached_bytes, read_when_idle
from llamaswap_py.scheduler import Policy, Pool, PresetPlan
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.ledger import Ledger
from llamaswap_py.scheduler.state import SchedulerState
from llamaswap_py.scheduler.types import PoolId, PresetId
from llamaswap_py.supervisor.prefetch import Prefetch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.anyio
MIB = 1 << 20
SIZE = 3 * MIB + 5
LIMIT = 60.0
A, B, C = PresetId("a"), PresetId("b"), PresetId("c")


def cold_file(path: Path, size: int = SIZE) -> str:
    """Write a file and drop it from the page cache."""
    if sys.platform != "linux":
        pytest.skip("missing: Linux")
    with path.open("wb") as file:
        file.write(os.urandom(1 << 16) * (size // (1 << 16) + 1))
        file.truncate(size)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    left = resident(str(path))
    if left:
        pytest.skip("missing: a file system whose pages can be dropped (no tmpfs)")
    return str(path)


def resident(path: str) -> int:
    with open(path, "rb") as file:
        found = cached_bytes(file.fileno(), 0, os.stat(path).st_size)
    if found is None:
        pytest.skip("missing: cachestat(2) (Linux 6.5 or later)")
    return found


def read_all(paths: list[str], room: Callable[[], int] = lambda: 1 << 40) -> Reading:
    """Read in a thread, and wait for its end."""
    over = threading.Event()
    reading = Reading(paths, room, over.set)
    reading.start()
    assert over.wait(LIMIT)
    return reading


def test_nothing_is_read_without_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends all the same, and without a traceback (an unhandled one fails the test)."""
    monkeypatch.setattr(os, "devnull", "/no/such/device")
    reading = read_all([__file__])
    assert (reading.there, reading.read) == (0, 0)


def test_files_are_read_to_their_last_byte(tmp_path: Path) -> None:
    paths = [cold_file(tmp_path / name) for name in ("one", "two")]
    reading = read_all(paths)
    assert [resident(path) for path in paths] == [SIZE, SIZE]
    assert (reading.size, reading.there, reading.short) == (2 * SIZE, 2 * SIZE, False)
    assert reading.read >= 2 * SIZE - 2 * WINDOW  # whole pages, and rounded down
    again = read_all(paths)
    assert (again.there, again.read) == (2 * SIZE, 0)


def test_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    there = cold_file(tmp_path / "there")
    reading = read_all([str(tmp_path / "missing"), str(tmp_path), there])
    assert resident(there) == SIZE
    assert reading.there == SIZE


def test_a_file_system_that_cannot_splice_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cold_file(tmp_path / "one")

    def refuse(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sendfile", refuse)
    assert read_all([path]).there == SIZE
    assert resident(path) == SIZE


def test_without_a_kernel_that_tells_everything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cold_file(tmp_path / "one")
    monkeypatch.setattr("llamaswap_py.devices.page_cache.cached_bytes", lambda *_: None)
    reading = read_all([path])
    assert reading.blind
    assert reading.read == SIZE
    assert resident(path) == SIZE


def test_no_more_is_read_than_there_is_room(tmp_path: Path) -> None:
    path = cold_file(tmp_path / "one")
    reading = read_all([path], lambda: 2 * MIB + 7)
    assert reading.short
    assert reading.there == 2 * MIB
    nothing = read_all([cold_file(tmp_path / "two")], lambda: -1)
    assert nothing.there == nothing.read == 0


def test_a_reading_ends_within_a_window_of_its_cancelling(tmp_path: Path) -> None:
    path = cold_file(tmp_path / "one", 40 * MIB)
    asked, go, over = threading.Event(), threading.Event(), threading.Event()

    def room() -> int:
        asked.set()
        assert go.wait(LIMIT)
        return 1 << 40

    reading = Reading([path], room, over.set)
    reading.start()
    assert asked.wait(LIMIT)
    reading.cancel()
    go.set()
    assert over.wait(LIMIT)
    assert reading.there == 0
    assert resident(path) == 0


def test_a_thread_reads_at_idle_priority_if_the_kernel_lets_it() -> None:
    said: list[bool] = []
    thread = threading.Thread(target=lambda: said.append(read_when_idle()))
    thread.start()
    thread.join(LIMIT)
    if said != [True]:
        pytest.skip("missing: ioprio_set(2) on this architecture")


# What is read


class Bench:
    """A `ReadingAhead` over made-up presets and a ledger of 100 MiB; `told` are its events."""

    def __init__(self, folder: Path, *names: str, room: int = 1 << 40, **memory: Any) -> None:
        self.files = {name: cold_file(folder / name) for name in names}
        self.prepared: dict[str, Any] = {name: self._prepared(name) for name in names}
        self.state = SchedulerState(Ledger({PoolId("host"): Pool(100 * MIB)}, Policy()), Policy())
        self.room = room
        self.told: list[ev.FilesRead] = []
        self._stir = asyncio.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.prefetch = Prefetch(
            self.prepared,
            self.state,
            Memory(margin=PerDevice(MIB), **memory),
            self._tell,
            self._asked_for_room,
        )

    def _prepared(self, name: str) -> Any:
        way = SimpleNamespace(args=(), files=(self.files[name],))
        preset = SimpleNamespace(keep_in_ram=False)
        return SimpleNamespace(
            preset=preset, ways={"": way}, plan=PresetPlan(preset=PresetId(name))
        )

    def keep(self, name: str) -> None:
        self.prepared[name].preset.keep_in_ram = True

    def _tell(self, event: ev.Event) -> None:
        assert isinstance(event, ev.FilesRead)
        self.told.append(event)
        self._stir.set()

    def _asked_for_room(self) -> int:
        assert self.gate.wait(LIMIT)
        return self.room

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Bench]:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.prefetch.run())
            try:
                yield self
            finally:
                self.gate.set()
                task.cancel()

    async def until_told(self, number: int) -> None:
        async with asyncio.timeout(LIMIT):
            while len(self.told) < number:
                self._stir.clear()
                await self._stir.wait()

    def aim(self, *names: PresetId) -> None:
        self.prefetch.aim(tuple((name, "") for name in names))


async def test_those_that_wait_are_read_in_their_order(tmp_path: Path) -> None:
    async with Bench(tmp_path, A, B, C).running() as bench:
        bench.aim(B, A)
        await bench.until_told(2)
        assert [one.preset for one in bench.told] == [B, A]
        assert [one.there for one in bench.told] == [SIZE, SIZE]
        assert resident(bench.files[C]) == 0
        view = bench.prefetch.view(B)
        assert view is not None
        assert (view.there, view.size) == (SIZE, SIZE)
        bench.aim()
        assert bench.prefetch.view(B) is None
        assert bench.prefetch.bytes_read == sum(one.read for one in bench.told)


async def test_it_moves_on_when_another_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, A, B)
    bench.gate.clear()
    cancelled = asyncio.Event()

    class Watched(Reading):
        def cancel(self) -> None:
            super().cancel()
            cancelled.set()

    monkeypatch.setattr("llamaswap_py.supervisor.prefetch.Reading", Watched)
    async with bench.running():
        bench.aim(A)
        while bench.prefetch.view(A) is None:  # noqa: ASYNC110 (its thread tells nobody)
            await asyncio.sleep(0.005)
        bench.aim(B)
        assert bench.prefetch.view(A) is None
        await asyncio.wait_for(cancelled.wait(), LIMIT)
        bench.gate.set()
        await bench.until_told(1)
        assert bench.told[0].preset == B
        assert resident(bench.files[A]) == 0


async def test_what_is_promised_or_mapped_is_left(tmp_path: Path) -> None:
    """3 MiB of room less 1 MiB of margin: the second model gets nothing of it."""
    bench = Bench(tmp_path, A, B, C, room=3 * MIB)
    async with bench.running():
        bench.aim(A, B)
        await bench.until_told(1)
        assert bench.told[0].there == 2 * MIB
        bench.room = 1 << 40
        bench.state.ledger.reserved[C] = {PoolId("host"): 99 * MIB}
        bench.aim(C)
        await bench.until_told(2)
        assert bench.told[1].there == MIB
        assert resident(bench.files[B]) == 0


async def test_nothing_is_read_when_it_is_off(tmp_path: Path) -> None:
    bench = Bench(tmp_path, A, B, read_ahead="off")
    bench.keep(B)
    async with bench.running():
        bench.aim(A)
        await bench.until_told(1)  # what is kept is another matter
        assert [(one.preset, one.kept) for one in bench.told] == [(B, True)]
        assert resident(bench.files[A]) == 0


async def test_what_is_kept_is_read_up_to_its_limit_and_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, A, B, C, host_cache=SIZE + MIB)
    bench.keep(A)
    bench.keep(B)
    async with bench.running():
        await bench.until_told(2)
        assert [(one.preset, one.there) for one in bench.told] == [(A, SIZE), (B, MIB)]
        cold_file(Path(bench.files[A]))
        bench.prefetch.recheck()
        await bench.until_told(3)
        assert bench.told[2].preset == A
        assert resident(bench.files[A]) == SIZE


async def test_what_bypasses_the_page_cache_is_not_read(tmp_path: Path) -> None:
    bench = Bench(tmp_path, A, B)
    bench.prepared[A].ways[""].args = ("--load-mode", "dio")
    async with bench.running():
        bench.aim(A, B)
        await bench.until_told(1)
        assert bench.told[0].preset == B
        assert resident(bench.files[A]) == 0
