"""Works out which GPUs a program started from here would see, and in which order. Pure.

Each runtime reads its own variables. CUDA: CUDA_VISIBLE_DEVICES (CUDA C++ Programming Guide, "CUDA
environment variables"). ROCm: ROCR_VISIBLE_DEVICES (ROCr, amd_filter_device.cpp), and of what that
leaves HIP_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES (clr, rocdevice.cpp). All end the list at the
first entry that names no device. The variable of llama.cpp's Vulkan backend is read in
llamacpp/backends.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


class Named(Protocol):
    """A device that a UUID can name; the UUID is empty if it has none."""

    @property
    def uuid(self) -> str: ...


_N = TypeVar("_N", bound=Named)


@dataclass(frozen=True, slots=True)
class GpuRow:
    """One GPU, or one MIG instance, as NVML describes it; `total` in bytes, None if unreadable.

    `uuid` and `bus_id` are empty if unreadable. A GPU with `instances` is divided into them (MIG):
    CUDA sees only these, and the GPU itself is not a memory pool.
    """

    uuid: str
    bus_id: str
    name: str
    total: int | None
    index: int = 0
    instances: tuple[GpuRow, ...] = ()


def visible_gpus(
    gpus: Sequence[GpuRow], environment: Mapping[str, str], order: Sequence[str] = ()
) -> tuple[GpuRow, ...]:
    """Return the GPUs and MIG instances that CUDA_VISIBLE_DEVICES leaves, in its order.

    `gpus` are in PCI bus order, and so are the indices of the variable, unless `order` gives UUIDs
    in CUDA's order. UUIDs may be shortened. The name of a GPU that is divided into MIG instances
    means the first of them.
    """
    value = environment.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return tuple(leaf for gpu in gpus for leaf in gpu.instances or (gpu,))
    places = {uuid: place for place, uuid in enumerate(order)}
    counted = sorted(gpus, key=lambda gpu: places.get(gpu.uuid, len(places)))
    seen: list[GpuRow] = []
    for entry in _entries(value):
        leaf = _named_gpu(gpus, counted, entry)
        if leaf is None or leaf in seen:
            break
        seen.append(leaf)
    return tuple(seen)


def needs_cuda_order(gpus: Sequence[GpuRow], environment: Mapping[str, str]) -> bool:
    """Return whether only CUDA can tell which GPUs the indices in CUDA_VISIBLE_DEVICES mean.

    Its own order is by speed, by a rule that is not public; equal models keep PCI order.
    """
    if environment.get("CUDA_DEVICE_ORDER", "FASTEST_FIRST") == "PCI_BUS_ID":
        return False
    by_index = any(map(str.isdigit, _entries(environment.get("CUDA_VISIBLE_DEVICES", ""))))
    return by_index and len({gpu.name for gpu in gpus}) > 1


def visible_agents(agents: Sequence[_N], environment: Mapping[str, str]) -> tuple[_N, ...]:
    """Return the GPUs that a ROCm program sees; `agents` are in the order of KFD's nodes.

    An empty ROCR_VISIBLE_DEVICES hides all, the other two count as unset when empty.
    """
    seen = tuple(agents)
    rocr = environment.get("ROCR_VISIBLE_DEVICES")
    if rocr is not None:
        seen = _pick(seen, rocr)
    hip = environment.get("HIP_VISIBLE_DEVICES") or environment.get("CUDA_VISIBLE_DEVICES")
    return _pick(seen, hip) if hip else seen


def _entries(value: str) -> list[str]:
    return [part.strip() for part in value.split(",")]


def _named_gpu(gpus: Sequence[GpuRow], counted: Sequence[GpuRow], entry: str) -> GpuRow | None:
    if entry.startswith("MIG-"):
        return _by_uuid([one for gpu in gpus for one in gpu.instances], entry)
    gpu = _by_index(counted, entry) if entry.isdigit() else _by_uuid(gpus, entry)
    return gpu if gpu is None or not gpu.instances else gpu.instances[0]


def _pick(agents: Sequence[_N], value: str) -> tuple[_N, ...]:
    seen: list[_N] = []
    for entry in _entries(value):
        agent = _by_index(agents, entry) if entry.isdigit() else _by_uuid(agents, entry)
        if agent is None or agent in seen:
            break
        seen.append(agent)
    return tuple(seen)


def _by_index(rows: Sequence[_N], entry: str) -> _N | None:
    return rows[int(entry)] if int(entry) < len(rows) else None


def _by_uuid(rows: Sequence[_N], entry: str) -> _N | None:
    """Return the only row with a UUID that begins with `entry`, in any case (ROCr, clr)."""
    if not entry.lower().startswith(("gpu-", "mig-")):
        return None
    matches = [row for row in rows if row.uuid.lower().startswith(entry.lower())]
    return matches[0] if len(matches) == 1 else None
