"""Which GPUs a CUDA program started from here would see, and in which order. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuRow:
    """One GPU as NVML describes it; `total` in bytes."""

    uuid: str
    bus_id: str
    name: str
    total: int


def visible_gpus(gpus: Sequence[GpuRow], environment: Mapping[str, str]) -> tuple[GpuRow, ...]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order.

    `gpus` are in PCI bus order. The variable holds indices or UUIDs (or their beginnings); CUDA
    stops at the first entry that names no device (CUDA C++ Programming Guide, "CUDA environment
    variables"). Children run with CUDA_DEVICE_ORDER=PCI_BUS_ID, so indices mean that order.
    """
    value = environment.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return tuple(gpus)
    seen: list[GpuRow] = []
    for entry in (part.strip() for part in value.split(",")):
        gpu = _named(gpus, entry)
        if gpu is None or gpu in seen:
            break
        seen.append(gpu)
    return tuple(seen)


def _named(gpus: Sequence[GpuRow], entry: str) -> GpuRow | None:
    if entry.isdigit():
        return gpus[int(entry)] if int(entry) < len(gpus) else None
    matches = [gpu for gpu in gpus if entry.startswith("GPU-") and gpu.uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 else None
