"""Find the devices and their total memory: declared, measured, or the host's own limits.

lswap leaves out a device whose memory cannot be read, because counting it as empty or as full would
be a guess. One line in the log says so, and asks the user to declare the device. Presets without
declared memory then load one at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from llamaswap_py.devices.host import ROOT, read_host_total
from llamaswap_py.devices.nvml import Nvml, NvmlError, NvmlMeter, read_cuda_order
from llamaswap_py.devices.sysfs import (
    AMD,
    INTEL,
    NVIDIA,
    Card,
    SysfsMeter,
    read_cards,
    rocm_pools,
    vulkan_pools,
)
from llamaswap_py.devices.visible import (
    GpuRow,
    needs_cuda_order,
    visible_agents,
    visible_gpus,
)
from llamaswap_py.llamacpp.backends import SELECTABLE, vulkan_indices
from llamaswap_py.units import HOST

_log: Final = logging.getLogger("lswap.devices")

Meter = NvmlMeter | SysfsMeter


@dataclass(frozen=True, slots=True)
class Device:
    """One memory pool. `id` is its shown name (`CUDA0`, `host`), `total` and `margin` bytes.

    `source` says how `total` is known: `declared`, `nvml`, `sysfs`, `psutil` or `cgroup`. `uuid` is
    the name that restricts a child to this GPU, if there is one: a UUID, or the driver's number.
    `meter` says how to read a GPU again. `unified`: its memory is part of the host's, so a charge
    here is charged to the host as well.
    """

    id: str
    total: int
    margin: int
    source: str
    uuid: str | None = None
    meter: Meter | None = None
    unified: bool = False

    @property
    def watched(self) -> bool:
        """Whether lswap keeps measuring its use; it does not for a declared budget."""
        return self.source != "declared"


@dataclass(frozen=True, slots=True)
class _Found:
    """A GPU under its name; `total` None if unreadable."""

    id: str
    total: int | None
    source: str
    uuid: str | None = None
    meter: Meter | None = None
    unified: bool = False


def read_devices(
    declared: Mapping[str, int] | None,
    margin_of: Callable[[str], int],
    *,
    backends: frozenset[str],
    environment: Mapping[str, str],
    root: Path = ROOT,
) -> tuple[Device, ...]:
    """Return the devices to schedule on, the host last.

    If there are `declared` budgets, the devices are these and the host, which is measured if it is
    not declared. GPUs keep the UUIDs that a driver tells. `backends` are those of the engines in
    use: GPUs that no engine can use are left out. So are devices that cannot be read; they never
    count as zero. `root` is that of the file system.
    """
    gpus = {one.id: one for one in _find_gpus(backends, environment, root)}
    if declared is not None:
        named = [(name, gpus.get(name) or _Found(name, None, "declared")) for name in declared]
        found = [_declared(declared[name], margin_of(name), one) for name, one in named]
    else:
        found = [_device(one, margin_of(one.id)) for one in gpus.values() if _is_readable(one)]
    if declared is None or HOST not in declared:
        total, source = read_host_total(root)
        found.append(Device(HOST, total, margin_of(HOST), source))
    return tuple(found)


def _device(found: _Found, margin: int) -> Device:
    assert found.total is not None
    return Device(
        id=found.id,
        total=found.total,
        margin=margin,
        source=found.source,
        uuid=found.uuid,
        meter=found.meter,
        unified=found.unified,
    )


def _declared(total: int, margin: int, found: _Found) -> Device:
    return _device(replace(found, total=total, source="declared"), margin)


def _is_readable(found: _Found) -> bool:
    if found.total is None:
        _log.warning(
            "%s: its memory cannot be read, so lswap leaves it out; declare it (and all others to "
            "use) under memory.devices",
            found.id,
        )
    return found.total is not None


def _find_gpus(
    backends: frozenset[str], environment: Mapping[str, str], root: Path
) -> tuple[_Found, ...]:
    """Return the GPUs that engines of these backends can use, under llama.cpp's names.

    If several backends can use a GPU, it has the first one's name, so that its memory counts once.
    """
    if backends.isdisjoint(SELECTABLE):
        return ()
    rows = read_nvml() if backends & {"cuda", "vulkan"} else ()
    cards = read_cards(root) if backends & {"rocm", "vulkan"} else ()
    found: list[_Found] = []
    if "cuda" in backends:
        found += _cuda(rows, environment)
    if "rocm" in backends:
        found += _rocm(cards, environment)
    if "vulkan" in backends:
        named = {_bus_id(one) for one in found}
        others = _vulkan(rows, cards, environment)
        found += [one for one in others if _bus_id(one) not in named]
    return tuple(found)


def _bus_id(found: _Found) -> str:
    return _short(found.meter.bus_id) if found.meter is not None else ""


def _cuda(rows: Sequence[GpuRow], environment: Mapping[str, str]) -> list[_Found]:
    order: tuple[str, ...] = ()
    if needs_cuda_order(rows, environment):
        try:
            order = read_cuda_order(environment)
        except NvmlError as error:
            _log.warning(
                "CUDA_VISIBLE_DEVICES=%s is read in PCI order (%s): name GPUs by UUID, or set "
                "CUDA_DEVICE_ORDER=PCI_BUS_ID",
                environment["CUDA_VISIBLE_DEVICES"],
                error,
            )
    gpus = visible_gpus(rows, environment, order)
    if rows and not gpus:
        _log.info(
            "CUDA_VISIBLE_DEVICES=%s leaves none of %d GPUs",
            environment.get("CUDA_VISIBLE_DEVICES"),
            len(rows),
        )
    places = {row.index: str(place) for place, row in enumerate(rows)}
    return [
        _Found(
            id=f"CUDA{number}",
            total=gpu.total,
            source="nvml",
            uuid=gpu.uuid or places.get(gpu.index),
            meter=NvmlMeter(gpu.uuid, gpu.bus_id),
        )
        for number, gpu in enumerate(gpus)
    ]


def _rocm(cards: Sequence[Card], environment: Mapping[str, str]) -> list[_Found]:
    agents = sorted(
        (card for card in cards if card.agent is not None),
        key=lambda card: card.agent.node if card.agent else 0,
    )
    return [
        _on_card(f"ROCm{number}", card, rocm_pools(card), card.uuid or str(agents.index(card)))
        for number, card in enumerate(visible_agents(agents, environment))
    ]


def _on_card(name: str, card: Card, pools: tuple[str, ...], uuid: str) -> _Found:
    sizes = [{"vram": card.vram, "gtt": card.gtt}[pool] for pool in pools]
    known = [size for size in sizes if size is not None]
    gpu_id = card.agent.gpu_id if card.agent is not None else None
    return _Found(
        id=name,
        total=sum(known) if len(known) == len(sizes) else None,
        source="sysfs",
        uuid=uuid,
        meter=SysfsMeter(card.folder, card.bus_id, pools, gpu_id),
        unified="gtt" in pools,
    )


def _vulkan(
    rows: Sequence[GpuRow], cards: Sequence[Card], environment: Mapping[str, str]
) -> list[_Found]:
    """Return the GPUs in the order of the Vulkan loader: cards, then integrated GPUs, by PCI bus.

    The order is that of `linux_read_sorted_physical_devices` in the loader's loader_linux.c. It can
    be wrong: a layer may sort differently, and a card with two drivers counts twice.
    """
    known = [(False, _short(row.bus_id), _on_nvidia(row)) for row in rows]
    for card in cards:
        if card.vendor in (AMD, INTEL) or (card.vendor == NVIDIA and not rows):
            integrated = card.is_apu or card.vendor == INTEL
            known.append((integrated, card.bus_id, _on_card("", card, vulkan_pools(card), "")))
    known.sort(key=lambda one: one[:2])
    numbers = vulkan_indices(environment)
    return [
        replace(known[number][2], id=f"Vulkan{place}", uuid=str(number))
        for place, number in enumerate(range(len(known)) if numbers is None else numbers)
        if number < len(known)
    ]


def _on_nvidia(row: GpuRow) -> _Found:
    return _Found("", row.total, "nvml", None, NvmlMeter(row.uuid, row.bus_id))


def _short(bus_id: str) -> str:
    """Return NVML's `00000000:0A:00.0` as the kernel writes it, `0000:0a:00.0`."""
    return bus_id.lower()[-12:]


def read_nvml() -> tuple[GpuRow, ...]:
    """Return the GPUs that NVML knows, in PCI bus order; empty without a driver.

    A GPU that does not answer is included, with what is known of it.
    """
    try:
        with Nvml() as nvml:
            return nvml.gpus()
    except NvmlError as error:
        if error.absent:
            _log.info("no NVIDIA GPU here: %s", error)
        else:
            _log.warning(
                "the NVIDIA driver does not list its GPUs (%s): repair it, or declare the devices "
                "under memory.devices",
                error,
            )
        return ()
