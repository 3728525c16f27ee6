"""One measurement of all devices: what is used, and what our children hold of it. Blocks.

The results are immutable records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from llamaswap_py.devices.device import Device
from llamaswap_py.devices.host import (
    ROOT,
    held_by_process,
    process_trees,
    read_host,
    sees_all_processes,
)
from llamaswap_py.devices.nvml import Nvml, NvmlError, NvmlMeter
from llamaswap_py.devices.sysfs import SysfsMeter, held_on_card, read_memory
from llamaswap_py.units import HOST


@dataclass(frozen=True, slots=True)
class PoolReading:
    """One pool at one moment, in bytes. Page cache that can be dropped is not `used`.

    `ours` is what our children's process trees hold, `strangers` the rest of `used`. Both are None
    where the processes cannot be told apart, as in a container: see `strangers_by_charge`.
    """

    total: int
    used: int
    ours: int | None
    strangers: int | None


@dataclass(frozen=True, slots=True)
class Measurement:
    """All watched pools that could be read; a missing one is unknown, never empty.

    `at` is the time just before the first query: whatever was freed before it does not count as
    used any more. `unreadable` says why a pool is missing.
    """

    at: float
    pools: Mapping[str, PoolReading]
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """A measurement, and what each child (its whole process tree) holds: pid -> device -> bytes."""

    measurement: Measurement
    held: Mapping[int, Mapping[str, int]]


def read_pool(total: int, used: int, ours: int | None) -> PoolReading:
    """Return a reading in which strangers (other programs) hold all that our children do not."""
    return PoolReading(total, used, ours, None if ours is None else max(used - ours, 0))


def strangers_by_charge(used: int, settled: int, loading: int, previous: int) -> int:
    """Return what strangers hold, in bytes, where `ours` cannot be measured.

    `settled` is the charge of loaded children. `loading` is the charge of those that still load:
    any part of it may be allocated already. `previous` is the last answer; it is kept as long as it
    is possible.
    """
    least, most = max(used - settled - loading, 0), max(used - settled, 0)
    return min(max(previous, least), most)


Trees: TypeAlias = Mapping[int, frozenset[int]]
"""A child -> itself and all processes below it."""

Held: TypeAlias = Mapping[int, int] | None
"""A child -> the bytes its tree holds; None where that cannot be told."""

_FAILURES: Final = (OSError, ValueError, KeyError, NvmlError)


class MachineReader:
    """Reads these devices. Keep to one thread, and `close()` in it."""

    def __init__(
        self, devices: Sequence[Device], *, root: Path = ROOT, nvml: Nvml | None = None
    ) -> None:
        self._gpus = [one for one in devices if one.meter is not None]
        self._hosts = [one for one in devices if one.id == HOST]
        self._root = root
        self._nvml = nvml or Nvml()
        self._own_ids = sees_all_processes(root)

    def close(self) -> None:
        """Close the driver's library."""
        self._nvml.close()

    def read(self, at: float, children: Sequence[int]) -> DeviceSample:
        """Measure now; `children` are process ids. A device that fails counts as unreadable.

        What a child holds is read for declared devices too, because footprints are learned by it.
        """
        trees = process_trees(children, self._root)
        held: dict[str, Held] = {one.id: self._held_on_gpu(one, trees) for one in self._gpus}
        pools: dict[str, PoolReading] = {}
        unreadable: dict[str, str] = {}
        queries: list[tuple[Device, Callable[[], PoolReading]]] = [
            (one, lambda one=one: self._read_gpu(one, held[one.id]))  # type: ignore[misc]
            for one in self._gpus
        ]
        held.update({one.id: self._held_on_host(trees) for one in self._hosts})
        queries += [(one, lambda: self._read_host(held)) for one in self._hosts]
        for device, query in queries:
            if device.watched:
                try:
                    pools[device.id] = query()
                except _FAILURES as error:
                    unreadable[device.id] = str(error) or type(error).__name__
        return DeviceSample(Measurement(at, pools, unreadable), _by_child(trees, held))

    def _read_gpu(self, device: Device, held: Held) -> PoolReading:
        if isinstance(device.meter, NvmlMeter):
            total, used = self._nvml.memory(device.meter)
        else:
            assert device.meter is not None
            total, used = read_memory(device.meter)
        return read_pool(total, used, _sum(held))

    def _read_host(self, held: Mapping[str, Held]) -> PoolReading:
        """Return the host's reading; our memory on a unified GPU counts as ours here too."""
        memory = read_host(self._root)
        mine = [_sum(held[HOST]), *(_sum(held[one.id]) for one in self._gpus if one.unified)]
        known = [size for size in mine if size is not None]
        ours = sum(known) if len(known) == len(mine) else None
        return read_pool(memory.total, memory.total - memory.available, ours)

    def _held_on_host(self, trees: Trees) -> Held:
        return _per_tree(trees, lambda pid: held_by_process(pid, self._root))

    def _held_on_gpu(self, device: Device, trees: Trees) -> Held:
        if not trees:
            return {}
        if isinstance(device.meter, NvmlMeter):
            return self._held_by_nvml(device.meter, trees)
        meter = device.meter
        assert isinstance(meter, SysfsMeter)
        return _per_tree(
            trees,
            lambda pid: held_on_card(pid, meter, own_ids=self._own_ids, root=self._root),
        )

    def _held_by_nvml(self, meter: NvmlMeter, trees: Trees) -> Held:
        try:
            listed = self._nvml.processes(meter)
        except _FAILURES:
            return None
        mine = listed.keys() & frozenset().union(*trees.values())
        if not self._own_ids and not (mine and self._all_exist(listed)):
            return None  # in a container: no list, or one with ids of the host
        return _per_tree(trees, lambda pid: listed.get(pid, 0))

    def _all_exist(self, pids: Mapping[int, object]) -> bool:
        return all((self._root / f"proc/{pid}").exists() for pid in pids)


def _per_tree(trees: Trees, held_by: Callable[[int], int | None]) -> Held:
    """Return the sum over each tree, None if one of its processes cannot be told."""
    sums: dict[int, int] = {}
    for child, tree in trees.items():
        sizes = [held_by(pid) for pid in tree]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            return None
        sums[child] = sum(known)
    return sums


def _sum(held: Held) -> int | None:
    return None if held is None else sum(held.values())


def _by_child(trees: Trees, held: Mapping[str, Held]) -> dict[int, dict[str, int]]:
    known = {device: sizes for device, sizes in held.items() if sizes is not None}
    return {
        child: {device: sizes.get(child, 0) for device, sizes in known.items()} for child in trees
    }
