"""The sampler: when it reads, what it reports, and that no driver can hurt it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection

import pytest

from llamaswap_py.devices import Device, Measurement, Telemetry, read_devices
from llamaswap_py.devices.reader import DeviceSample, MachineReader, read_pool
from llamaswap_py.tasks import guard
from tests.devices.roots import GIB, MIB, Root

pytestmark = pytest.mark.anyio

NEVER = 1000.0
CHILD = 4100


class ScriptedReader:
    """Answers with `used` bytes of one pool, or as `read_next` says."""

    def __init__(self) -> None:
        self.used = 0
        self.held: dict[str, int] = {}
        self.unreadable: dict[str, str] = {}
        self.threads: set[int] = set()
        self.reads = 0
        self.began = threading.Event()
        self.closed = threading.Event()
        self.block: threading.Event | None = None
        self.error: Exception | None = None

    def read(self, at: float, children: Sequence[int]) -> DeviceSample:
        self.reads += 1
        self.began.set()
        self.threads.add(threading.get_ident())
        if self.block is not None:
            self.block.wait(60)
        if self.error is not None:
            raise self.error
        pools = {} if self.unreadable else {"CUDA0": read_pool(100, self.used, 0)}
        held = {pid: dict(self.held) for pid in children}
        return DeviceSample(Measurement(at, pools, dict(self.unreadable)), held)

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.closed.set()


@pytest.fixture
def reader() -> Iterator[ScriptedReader]:
    scripted = ScriptedReader()
    yield scripted
    if scripted.block is not None:
        scripted.block.set()


class Reports(list[Measurement]):
    """Measurements as they come, and a way to wait for them."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Event()

    def take(self, measurement: Measurement) -> None:
        self.append(measurement)
        self._more.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self._more.clear()
                await self._more.wait()


def used(measurement: Measurement | None) -> int:
    assert measurement is not None
    return measurement.pools["CUDA0"].used


async def test_it_samples_by_itself_while_busy_in_one_thread(reader: ScriptedReader) -> None:
    reports = Reports()
    async with Telemetry(
        [],
        children=lambda: (),
        on_measured=reports.take,
        reader=reader,
        interval=0.001,
        idle_interval=NEVER,
        clock=itertools.count(1.0).__next__,
    ):
        await reports.until(lambda: len(reports) >= 3)
    assert [one.at for one in reports[:3]] == [1.0, 2.0, 3.0]
    assert reader.closed.wait(60)
    assert len(reader.threads) == 1
    assert threading.get_ident() not in reader.threads


async def test_it_goes_on_slowly_while_something_is_loaded(reader: ScriptedReader) -> None:
    reports = Reports()
    async with Telemetry(
        [],
        children=lambda: (),
        on_measured=reports.take,
        busy=lambda: False,
        resting=lambda: True,
        reader=reader,
        interval=NEVER,
        resting_interval=0.001,
        idle_interval=NEVER,
    ):
        await reports.until(lambda: len(reports) >= 3)


async def test_it_rests_while_idle_and_measures_when_asked(reader: ScriptedReader) -> None:
    reports = Reports()
    async with Telemetry(
        [],
        children=lambda: (),
        on_measured=reports.take,
        busy=lambda: False,
        reader=reader,
        interval=0.0,
        idle_interval=NEVER,
    ) as telemetry:
        await reports.until(lambda: len(reports) == 1)
        reader.used = 7
        assert used(await telemetry.measure_now()) == 7
        assert (len(reports), reader.reads) == (2, 2)
        assert telemetry.last is reports[-1]
        telemetry.measure_soon()
        await reports.until(lambda: len(reports) == 3)


async def test_a_measurement_begins_after_it_was_asked_for(reader: ScriptedReader) -> None:
    """What is read before a child is reaped proves nothing about its memory."""
    reader.block = threading.Event()
    async with Telemetry(
        [],
        children=lambda: (),
        on_measured=lambda one: None,
        reader=reader,
        interval=NEVER,
        clock=itertools.count(1.0).__next__,
    ) as telemetry:
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            assert await asyncio.to_thread(reader.began.wait, 20)  # the first reading blocks
            asked = [tasks.create_task(telemetry.measure_now()) for _ in range(3)]
            await asyncio.sleep(0)
            reader.block.set()
            answers = [await one for one in asked]
        assert [one and one.at for one in answers] == [2.0, 2.0, 2.0]


async def test_a_measurement_of_a_child_that_was_reaped_meanwhile_is_taken_again(
    reader: ScriptedReader,
) -> None:
    """It would prove memory free that the device still holds."""
    reports, children = Reports(), [CHILD]
    async with Telemetry(
        [],
        children=lambda: children,
        on_measured=reports.take,
        reader=reader,
        interval=NEVER,
        clock=itertools.count(1.0).__next__,
    ) as telemetry:
        await reports.until(lambda: len(reports) == 1)
        reader.block = threading.Event()
        reader.began.clear()
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(telemetry.measure_now())
            assert await asyncio.to_thread(reader.began.wait, 20)
            children.clear()
            reader.block.set()
            answer = await asked
        assert [one.at for one in reports] == [1.0, 3.0]
        assert reports[1] is answer


async def test_it_hurries_while_memory_is_to_come_back(reader: ScriptedReader) -> None:
    reports = Reports()
    async with Telemetry(
        [],
        children=lambda: (),
        on_measured=reports.take,
        busy=lambda: False,
        settling=lambda: len(reports) < 3,
        reader=reader,
        interval=NEVER,
        idle_interval=NEVER,
    ):
        await reports.until(lambda: len(reports) == 3)


async def test_a_driver_that_hangs_delays_nobody(
    reader: ScriptedReader, caplog: pytest.LogCaptureFixture
) -> None:
    reader.block = threading.Event()
    async with asyncio.timeout(60):
        async with Telemetry(
            [],
            children=lambda: (),
            on_measured=lambda one: None,
            reader=reader,
            interval=NEVER,
            patience=0.01,
        ) as telemetry:
            assert await telemetry.measure_now() is None
            assert await telemetry.measure_now() is None
            assert reader.reads == 1  # no second question before the first is answered
            assert [one.levelname for one in caplog.records] == ["WARNING"]
            reader.block.set()
            while (answer := await telemetry.measure_now()) is None:
                pass
            assert used(answer) == 0
            reader.block = threading.Event()
            assert await telemetry.measure_now() is None
    assert not reader.closed.is_set()  # and leaving did not wait for it
    assert len(caplog.records) == 2


async def test_a_failing_reader_is_logged_once_and_tried_again(
    reader: ScriptedReader, caplog: pytest.LogCaptureFixture
) -> None:
    reader.error = RuntimeError("no idea")
    async with Telemetry(
        [], children=lambda: (), on_measured=lambda one: None, reader=reader, interval=NEVER
    ) as telemetry:
        assert await telemetry.measure_now() is None
        assert await telemetry.measure_now() is None
        assert [one.levelname for one in caplog.records] == ["WARNING"]
        assert "no idea" in caplog.text
        reader.error = None
        assert used(await telemetry.measure_now()) == 0
    assert await telemetry.measure_now() is None  # after the end


async def test_an_unreadable_device_is_reported_once_and_when_it_is_back(
    reader: ScriptedReader, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lswap.devices")
    async with Telemetry(
        [], children=lambda: (), on_measured=lambda one: None, reader=reader, interval=NEVER
    ) as telemetry:
        reader.unreadable = {"CUDA0": "GPU is lost"}
        for _ in range(3):
            measurement = await telemetry.measure_now()
        assert measurement is not None
        assert measurement.pools == {}
        assert telemetry.unreadable == {"CUDA0": "GPU is lost"}
        reader.unreadable = {}
        await telemetry.measure_now()
        assert telemetry.unreadable == {}
    first, second = caplog.records
    assert (first.levelname, second.levelname) == ("WARNING", "INFO")
    assert "GPU is lost" in first.getMessage()
    assert "memory.devices" in first.getMessage()


async def test_peaks_are_the_most_a_child_held(reader: ScriptedReader) -> None:
    children = [CHILD]
    async with Telemetry(
        [],
        children=lambda: children,
        on_measured=lambda one: None,
        reader=reader,
        interval=NEVER,
    ) as telemetry:
        for held in ({"CUDA0": 5, "host": 1}, {"CUDA0": 9}, {"CUDA0": 2, "host": 3}):
            reader.held = held
            await telemetry.measure_now()
        children.clear()
        await telemetry.measure_now()
        assert telemetry.peaks(CHILD) == {"CUDA0": 9, "host": 3}
        telemetry.discard(CHILD)
        assert telemetry.peaks(CHILD) == {}


async def test_an_error_of_the_listener_is_counted_and_measuring_goes_on(
    reader: ScriptedReader,
) -> None:
    said: list[Measurement] = []

    def fail_once(measurement: Measurement) -> None:
        said.append(measurement)
        if len(said) == 1:
            raise ValueError("a bug of the listener")

    before = guard.failures["telemetry"]
    async with asyncio.timeout(60):
        async with Telemetry(
            [], children=lambda: (), on_measured=fail_once, reader=reader
        ) as telemetry:
            while len(said) < 2:
                await telemetry.measure_now()
    assert guard.failures["telemetry"] == before + 1


async def test_nobody_waits_beyond_the_end(reader: ScriptedReader) -> None:
    reader.block = threading.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        async with Telemetry(
            [], children=lambda: (), on_measured=lambda one: None, reader=reader
        ) as telemetry:
            assert await asyncio.to_thread(reader.began.wait, 20)
            asked = tasks.create_task(telemetry.measure_now())
            await asyncio.sleep(0)
        assert await asked is None


async def test_an_error_of_the_body_stays_itself(reader: ScriptedReader) -> None:
    with pytest.raises(KeyError, match="of the body"):
        async with Telemetry([], children=lambda: (), on_measured=lambda one: None, reader=reader):
            raise KeyError("of the body")
    assert reader.closed.wait(60)


def test_declared_devices_are_not_watched(root: Root) -> None:
    declared = Device("CUDA0", GIB, 0, "declared")
    host = Device("host", 8 * GIB, 0, "declared")
    assert MachineReader([declared, host], root=root.path).read(0.0, []).measurement.pools == {}


async def test_memory_a_real_child_takes_is_ours_and_not_a_strangers() -> None:
    """On the real /proc: a process touches 64 MiB, and the host's reading says whose they are."""
    devices = read_devices(None, lambda name: 0, backends=frozenset(), environment={})
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hold, args=(theirs, 64 * MIB), daemon=True)
    process.start()
    theirs.close()
    assert process.pid is not None
    pid = process.pid
    try:
        async with Telemetry(
            devices, children=lambda: [pid], on_measured=lambda one: None, interval=NEVER
        ) as telemetry:
            assert ours.poll(20)
            ours.recv()
            before = await telemetry.measure_now()
            ours.send("take")
            assert ours.poll(20)
            ours.recv()
            after = await telemetry.measure_now()
    finally:
        ours.close()
        process.join(60)
    assert before is not None
    assert after is not None
    mine = [one.pools["host"].ours for one in (before, after)]
    assert mine[0] is not None
    assert mine[1] is not None
    assert 64 * MIB <= mine[1] - mine[0] < 72 * MIB
    assert telemetry.peaks(pid) == {"host": mine[1]}


def _hold(pipe: Connection, size: int) -> None:
    pipe.send("here")
    try:
        pipe.recv()
        held = b"x" * size
        pipe.send(len(held))
        pipe.recv()
    except EOFError:
        pass
