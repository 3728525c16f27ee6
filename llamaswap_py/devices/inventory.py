"""Find the devices and their total memory: declared, NVML, or the host's own limits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from llamaswap_py.devices.visible import GpuRow, visible_gpus

HOST: Final = "host"

_log: Final = logging.getLogger("lswap.devices")

_CGROUP_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class Device:
    """One memory pool. `id` is its shown name (`CUDA0`, `host`), `total` and `margin` bytes.

    `source` says how `total` is known: `declared`, `nvml`, `psutil` or `cgroup`. `uuid` is the
    name by which a child is kept to this GPU, if there is one.
    """

    id: str
    total: int
    margin: int
    source: str
    uuid: str | None = None


def read_devices(
    declared: Mapping[str, int] | None,
    margin_of: Callable[[str], int],
    *,
    backends: frozenset[str],
    environment: Mapping[str, str],
) -> tuple[Device, ...]:
    """Return the devices to schedule on, the host last.

    `declared` budgets overrule measuring: only they exist, and the host, measured if not declared.
    GPUs keep their UUIDs where NVML tells them.
    `backends` are those of the engines in use: GPUs that no engine can use are left out. What
    cannot be read is left out too, never taken for zero.
    """
    gpus = visible_gpus(read_nvml(), environment) if "cuda" in backends else ()
    uuids = {f"CUDA{index}": gpu.uuid for index, gpu in enumerate(gpus)}
    if declared is not None:
        found = [
            Device(name, total, margin_of(name), "declared", uuids.get(name))
            for name, total in declared.items()
        ]
    else:
        found = [
            Device(name, gpu.total, margin_of(name), "nvml", gpu.uuid)
            for name, gpu in zip(uuids, gpus, strict=True)
        ]
    if declared is None or HOST not in declared:
        total, source = host_memory()
        found.append(Device(HOST, total, margin_of(HOST), source))
    return tuple(found)


def host_memory() -> tuple[int, str]:
    """Return (bytes, source): the machine's memory, or less where a cgroup limits it."""
    total = psutil.virtual_memory().total
    for path in _CGROUP_LIMITS:
        try:
            limit = int(path.read_text())
        except (OSError, ValueError):  # absent, or the word "max"
            continue
        if limit < total:
            return limit, "cgroup"
    return total, "psutil"


def read_nvml() -> tuple[GpuRow, ...]:
    """Return the GPUs that NVML knows, in PCI bus order; empty without a driver.

    A GPU whose figures cannot be read is left out, with a line in the log.
    """
    try:
        import pynvml  # noqa: PLC0415 - most machines do without it
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        _log.debug("no NVIDIA driver: %s", error)
        return ()
    try:
        rows = [_read_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        _log.warning("the NVIDIA driver does not list its GPUs: %s", error)
        return ()
    finally:
        pynvml.nvmlShutdown()
    return tuple(sorted((row for row in rows if row is not None), key=lambda row: row.bus_id))


def _read_gpu(pynvml: Any, index: int) -> GpuRow | None:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return GpuRow(
            uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
            bus_id=_text(pynvml.nvmlDeviceGetPciInfo(handle).busId),
            name=_text(pynvml.nvmlDeviceGetName(handle)),
            total=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        )
    except pynvml.NVMLError as error:
        _log.warning("GPU %d cannot be read (%s): declare it under memory.devices", index, error)
        return None


def _text(value: str | bytes) -> str:
    """NVML bindings before 11.5 return bytes."""
    return value.decode() if isinstance(value, bytes) else value
