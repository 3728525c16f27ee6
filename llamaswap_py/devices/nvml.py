"""NVIDIA's management library (NVML) through `pynvml`: the driver's figures of GPUs and processes.

Every call may block for as long as the driver likes: keep it off the event loop.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, Final

from llamaswap_py.devices.visible import GpuRow

_CUDA_ORDER: Final = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
count, device, uuid = ctypes.c_int(), ctypes.c_int(), (ctypes.c_ubyte * 16)()
def call(name, *arguments):
    code = getattr(cuda, name)(*arguments)
    if code:
        raise SystemExit(f"{name}: error {code}")
call("cuInit", 0)
call("cuDeviceGetCount", ctypes.byref(count))
for number in range(count.value):
    call("cuDeviceGet", ctypes.byref(device), number)
    call("cuDeviceGetUuid", uuid, device)
    print(bytes(uuid).hex())
"""
_CUDA_TIMEOUT: Final = 30.0


class NvmlError(Exception):
    """Raised when the library is missing or a query fails. `absent`: there is not any driver."""

    def __init__(self, message: str, *, absent: bool = False) -> None:
        super().__init__(message)
        self.absent = absent


@dataclass(frozen=True, slots=True)
class NvmlMeter:
    """How to find a GPU again: by its UUID, else by its PCI bus id."""

    uuid: str
    bus_id: str


class Nvml:
    """The library, initialised on entering. Keep to one thread.

    A GPU is looked up again after each failure, so one that comes back is found.
    """

    def __init__(self) -> None:
        self._pynvml: ModuleType | None = None
        self._handles: dict[NvmlMeter, Any] = {}

    def __enter__(self) -> Nvml:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        """Initialise the library unless that is done; raises NvmlError."""
        if self._pynvml is not None:
            return
        try:
            import pynvml  # noqa: PLC0415 - 50 ms that most machines need not spend
        except ImportError as error:
            raise NvmlError("the Python module pynvml is missing", absent=True) from error
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            codes = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
            raise NvmlError(str(error), absent=error.value in codes) from error
        self._pynvml = pynvml

    def close(self) -> None:
        """Close the library; queries open it again."""
        pynvml, self._pynvml = self._pynvml, None
        self._handles.clear()
        if pynvml is not None:
            with contextlib.suppress(pynvml.NVMLError):  # the driver may be gone by now
                pynvml.nvmlShutdown()

    def gpus(self) -> tuple[GpuRow, ...]:
        """Return all GPUs in PCI bus order, also those that do not answer; raises NvmlError."""
        nvml = self._library()
        try:
            rows = [_read_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            raise NvmlError(str(error)) from error
        if all(row.bus_id for row in rows):
            rows.sort(key=lambda row: row.bus_id)
        return tuple(rows)  # else in NVML's own order, which is that of the bus in practice

    def memory(self, meter: NvmlMeter) -> tuple[int, int]:
        """Return (total, used) bytes of a GPU, the driver's own share included in used."""
        nvml = self._library()
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(self._handle(nvml, meter))
        except nvml.NVMLError as error:
            self._discard_handle(meter, error)
            raise NvmlError(str(error)) from error
        return int(memory.total), int(memory.used)

    def processes(self, meter: NvmlMeter) -> Mapping[int, int | None]:
        """Return pid -> bytes of the processes on a GPU, None for a size the driver does not tell.

        A process that computes and draws is in both of NVML's lists, with the same bytes. A card
        that cannot draw has only one list. Raises NvmlError if the driver does not give the list
        (old GPUs, containers).
        """
        nvml = self._library()
        try:
            handle = self._handle(nvml, meter)
            running = _list_running(nvml, handle, "Compute")
            running += _ask(nvml, lambda: _list_running(nvml, handle, "Graphics")) or []
        except nvml.NVMLError as error:
            self._discard_handle(meter, error)
            raise NvmlError(str(error)) from error
        held: dict[int, int | None] = {}
        for one in running:
            size, known = one.usedGpuMemory, held.get(one.pid, 0)
            held[one.pid] = None if size is None or known is None else max(size, known)
        return held

    def _library(self) -> Any:
        self.open()
        return self._pynvml

    def _handle(self, nvml: Any, meter: NvmlMeter) -> Any:
        if meter not in self._handles:
            find = nvml.nvmlDeviceGetHandleByUUID
            name = meter.uuid
            if not name:
                find, name = nvml.nvmlDeviceGetHandleByPciBusId, meter.bus_id
            self._handles[meter] = find(name)
        return self._handles[meter]

    def _discard_handle(self, meter: NvmlMeter, error: Any) -> None:
        self._handles.pop(meter, None)
        nvml = self._pynvml
        assert nvml is not None
        anew = {
            *(nvml.NVML_ERROR_UNINITIALIZED, nvml.NVML_ERROR_DRIVER_NOT_LOADED),
            nvml.NVML_ERROR_NOT_FOUND,
        }
        if error.value in anew:  # a driver loaded again, a card plugged in again
            self.close()


def _read_gpu(nvml: Any, index: int) -> GpuRow:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError:
        return GpuRow("", "", "", None, index)
    row = _read_row(nvml, handle, index)
    return GpuRow(row.uuid, row.bus_id, row.name, row.total, index, _instances(nvml, handle))


def _read_row(nvml: Any, handle: Any, index: int) -> GpuRow:
    return GpuRow(
        uuid=_ask(nvml, lambda: str(nvml.nvmlDeviceGetUUID(handle))) or "",
        bus_id=_ask(nvml, lambda: _text(nvml.nvmlDeviceGetPciInfo(handle).busId)) or "",
        name=_ask(nvml, lambda: str(nvml.nvmlDeviceGetName(handle))) or "",
        total=_ask(nvml, lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total)),
        index=index,
    )


def _instances(nvml: Any, handle: Any) -> tuple[GpuRow, ...]:
    """Return the MIG instances of a GPU that is divided into them; empty otherwise."""
    mode = _ask(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
    if mode != nvml.NVML_DEVICE_MIG_ENABLE:
        return ()
    places = _ask(nvml, lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0
    found = []
    for place in range(places):
        instance = _ask(nvml, lambda at=place: nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, at))
        if instance is not None:
            found.append(_read_row(nvml, instance, place))
    return tuple(found)


def _list_running(nvml: Any, handle: Any, kind: str) -> list[Any]:
    name = f"nvmlDeviceGet{kind}RunningProcesses"
    try:
        return list(getattr(nvml, f"{name}_v3")(handle))
    except nvml.NVMLError as error:
        if error.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
        return list(getattr(nvml, f"{name}_v2")(handle))  # drivers before 510


def _ask(nvml: Any, query: Any) -> Any:
    """Return an answer of the driver, or None: one missing figure must not hide the others."""
    try:
        return query()
    except nvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def read_cuda_order(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the UUIDs of all GPUs in the order in which CUDA counts them here.

    Only CUDA knows the order by speed. lswap asks it in a separate process, which opens no context
    on any GPU. Raises NvmlError.
    """
    env = {name: value for name, value in environment.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CUDA_ORDER],
            env=env,
            capture_output=True,
            text=True,
            timeout=_CUDA_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NvmlError(f"CUDA does not say how it counts: {error}") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise NvmlError(f"CUDA does not say how it counts: {last}")
    return tuple(_uuid(line) for line in done.stdout.split())


def _uuid(digits: str) -> str:
    """Return 32 hex digits as NVML writes a UUID."""
    cuts = ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
    return "GPU-" + "-".join(digits[start:end] for start, end in cuts)
