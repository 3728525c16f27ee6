"""Watch the memory pools: one task that samples, one thread that asks the drivers.

Drivers may block for as long as they like. Their calls run in a daemon thread of our own, so that
neither the event loop nor the end of the program ever waits for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final, Protocol, TypeVar

from llamaswap_py.devices.device import Device
from llamaswap_py.devices.reader import DeviceSample, MachineReader, Measurement
from llamaswap_py.tasks import guard
from llamaswap_py.tasks.tick import BEAT, until_beat

SETTLING_INTERVAL: Final = 0.05
"""Drivers give memory back some 10 to 500 ms after a process ends, and a swap may wait for it."""
BUSY_INTERVAL: Final = 1.0
RESTING_INTERVAL: Final = 2 * BEAT
"""While models are loaded without requests: other programs may need the memory of idle models."""
IDLE_INTERVAL: Final = 5 * BEAT
PATIENCE: Final = 5.0
"""Seconds after which a reading counts as failed; its thread is occupied until the reading ends."""

_log: Final = logging.getLogger("lswap.devices")
_R = TypeVar("_R")


class Reader(Protocol):
    """The source of `Telemetry`, always called in the same thread; usually a `MachineReader`."""

    def read(self, at: float, children: Sequence[int]) -> DeviceSample: ...

    def close(self) -> None: ...


class Telemetry:
    """Samples `devices` and reports each measurement. Use as an async context manager.

    `children` returns the process ids of our children. `settling`, `busy` and `resting` set the
    rate. `settling`: memory of a reaped child has yet to come back (20 samples a second). `busy`:
    something loads, ends or is asked for (one each second). `resting`: something is loaded (one in
    four seconds, else one in ten). They and `on_measured` are called on the event loop. A device
    that does not answer is missing from a measurement, and logged once.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        children: Callable[[], Iterable[int]],
        on_measured: Callable[[Measurement], None],
        busy: Callable[[], bool] = lambda: True,
        resting: Callable[[], bool] = lambda: False,
        settling: Callable[[], bool] = lambda: False,
        reader: Reader | None = None,
        clock: Callable[[], float] = time.monotonic,
        interval: float = BUSY_INTERVAL,
        resting_interval: float = RESTING_INTERVAL,
        idle_interval: float = IDLE_INTERVAL,
        patience: float = PATIENCE,
    ) -> None:
        self.last: Measurement | None = None
        self._reader = reader or MachineReader(devices)
        self._children, self._on_measured = children, on_measured
        self._busy, self._resting, self._settling = busy, resting, settling
        self._clock = clock
        self._interval, self._patience = interval, patience
        self._resting_interval, self._idle_interval = resting_interval, idle_interval
        self._thread = _Thread("lswap-telemetry")
        self._tasks = asyncio.TaskGroup()
        self._task: asyncio.Task[None] | None = None
        self._asked = asyncio.Event()
        self._waiters: list[asyncio.Future[Measurement | None]] = []
        self._reading: asyncio.Future[DeviceSample] | None = None
        self._peaks: dict[int, dict[str, int]] = {}
        self.held: Mapping[int, Mapping[str, int]] = {}
        """The memory of each process tree in the last measurement: pid -> device -> bytes."""
        self._unreadable: dict[str, str] = {}
        self._silent = False

    async def __aenter__(self) -> Telemetry:
        await self._tasks.__aenter__()
        self._task = self._tasks.create_task(
            guard.keep_going("telemetry", self._run), name="telemetry"
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)  # it would wrap an error of the body
        finally:
            self._answer(self._waiters, None)
            self._thread.submit(self._reader.close)
            self._thread.stop()

    def use(self, devices: Sequence[Device]) -> None:
        """Measure these from now on; the next measurement has them."""
        before, self._reader = self._reader, MachineReader(devices)
        self._thread.submit(before.close)
        self.measure_soon()

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Which watched pools could not be read the last time, and why."""
        return self._unreadable

    async def measure_now(self) -> Measurement | None:
        """Return a measurement that begins after this call; `on_measured` has been given it.

        None when the drivers do not answer in time, or after the end. Never raises for a driver.
        """
        if self._task is None or self._task.done():
            return None
        waiter: asyncio.Future[Measurement | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._asked.set()
        return await waiter

    def measure_soon(self) -> None:
        """Ask for a measurement without waiting for it."""
        self._asked.set()

    def peaks(self, pid: int) -> dict[str, int]:
        """Return the most that a child was seen to hold of each device since its spawn, in bytes.

        For the host that is its own memory, without mapped files. Devices whose processes cannot be
        told apart are missing. The figures stay after its end until `discard`.
        """
        return dict(self._peaks.get(pid, {}))

    def discard(self, pid: int) -> None:
        """Drop the peaks of a child that is gone: its process id may come back."""
        self._peaks.pop(pid, None)

    async def _run(self) -> None:
        while True:
            self._asked.clear()
            waiters, self._waiters = self._waiters, []
            try:
                children = frozenset(self._children())
                measurement = await self._measure(tuple(children))
                if measurement is not None and not children <= frozenset(self._children()):
                    # It counts a child as ours that was reaped meanwhile. What the device still
                    # holds of it is not counted for other programs, and would seem free.
                    self._waiters = waiters + self._waiters
                    continue
                if measurement is not None:
                    self.last = measurement
                    self._on_measured(measurement)
            except BaseException:
                self._answer(waiters, None)
                raise
            self._answer(waiters, measurement)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._asked.wait()

    def _pause(self) -> float:
        if self._settling():
            return min(SETTLING_INTERVAL, self._interval)
        if self._busy():
            return self._interval
        period = self._resting_interval if self._resting() else self._idle_interval
        return until_beat(asyncio.get_running_loop().time(), period)

    async def _measure(self, children: Sequence[int]) -> Measurement | None:
        """Return a fresh measurement, None if there is none in time."""
        if self._reading is not None and not self._reading.done():
            await asyncio.wait([self._reading], timeout=self._patience)
            if not self._reading.done():
                return None  # still stuck in the reading before
        at = self._clock()
        self._reading = self._thread.submit(lambda: self._reader.read(at, children))
        await asyncio.wait([self._reading], timeout=self._patience)
        if not self._reading.done():
            self._warn_silent(f"no answer for {self._patience:g} s", None)
            return None
        try:
            sample = self._reading.result()
        except Exception as error:
            # A refusal of the system needs no traceback; an unexpected error does.
            known = isinstance(error, OSError)
            self._warn_silent(str(error) or type(error).__name__, None if known else error)
            return None
        self._record(sample)
        return sample.measurement

    def _record(self, sample: DeviceSample) -> None:
        self._silent = False
        self.held = sample.held
        for pid, held in sample.held.items():
            peaks = self._peaks.setdefault(pid, {})
            for device, size in held.items():
                peaks[device] = max(size, peaks.get(device, 0))
        now = sample.measurement.unreadable
        for device in now.keys() - self._unreadable.keys():
            _log.warning(
                "%s: its memory cannot be read any more (%s); lswap keeps its last figures. If "
                "this goes on, declare its memory under memory.devices",
                device,
                now[device],
            )
        for device in self._unreadable.keys() - now.keys():
            _log.info("%s: its memory can be read again", device)
        self._unreadable = dict(now)

    def _warn_silent(self, reason: str, error: Exception | None) -> None:
        if not self._silent:
            self._silent = True
            _log.warning(
                "the drivers do not say how much memory is used (%s); the last figures stay. "
                "If this goes on, declare the devices under memory.devices",
                reason,
                exc_info=error,
            )

    def _answer(
        self, waiters: Iterable[asyncio.Future[Measurement | None]], answer: Measurement | None
    ) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(answer)


class _Thread:
    """A daemon thread that does one job after the other, started with the first."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def submit(self, job: Callable[[], _R]) -> asyncio.Future[_R]:
        """Return a future of what `job` returns or raises; it need not be awaited."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_R] = loop.create_future()

        def do() -> None:
            try:
                result = job()
            except Exception as error:
                self._tell(loop, future, _raiser(future, error))
            else:
                self._tell(loop, future, lambda: future.set_result(result))

        if not self._thread.is_alive():
            self._thread.start()
        self._jobs.put(do)
        return future

    def stop(self) -> None:
        """Let the thread end after its jobs; does not wait."""
        self._jobs.put(None)

    @staticmethod
    def _tell(
        loop: asyncio.AbstractEventLoop, future: asyncio.Future[_R], settle: Callable[[], None]
    ) -> None:
        def settle_once() -> None:
            if not future.done():
                settle()

        with contextlib.suppress(RuntimeError):  # the loop is closed: the result is not needed
            loop.call_soon_threadsafe(settle_once)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def _raiser(future: asyncio.Future[_R], error: Exception) -> Callable[[], None]:
    def settle() -> None:
        future.set_exception(error)
        future.exception()  # marks it as seen, so that asyncio does not log it again

    return settle
