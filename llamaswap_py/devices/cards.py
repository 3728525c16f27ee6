"""Finds the cards that the drivers know, by NVML and sysfs, under llama.cpp's names.

An engine's own list is matched to these for live figures; where there is no list, they are the
devices.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Final

from llamaswap_py.devices.device import Device, short_bus_id
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
_VENDORS: Final = {AMD: "AMD", INTEL: "Intel", NVIDIA: "NVIDIA"}
_ROOT_BUS: Final = "0000:00:"
"""Where Intel's integrated GPUs are; cards are behind a bridge."""


class Cards:
    """The cards of this machine, read once; `of` and `named_for` then only count them."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @cached_property
    def _rows(self) -> tuple[GpuRow, ...]:
        return read_nvml()

    @cached_property
    def _cards(self) -> tuple[Card, ...]:
        return read_cards(self._root)

    def identities(self, backend: str) -> tuple[str, ...]:
        """Return what tells this set of cards apart from another, for engines of a backend."""
        rows = self._rows if backend in ("cuda", "vulkan") else ()
        return (*(one.uuid or one.bus_id for one in rows), *(one.bus_id for one in self._cards))

    def of(self, kind: str, environment: Mapping[str, str]) -> list[Device]:
        """Return the cards that devices of a kind (`CUDA`, `Vulkan`, …) can be, in its order."""
        if kind == SELECTABLE["cuda"].prefix:
            return _cuda(self._rows, environment)
        if kind == SELECTABLE["rocm"].prefix:
            return _rocm(self._cards, environment)
        if kind == SELECTABLE["vulkan"].prefix:
            return _vulkan(self._rows, self._cards, environment)
        return [replace(one, uuid=None) for one in _vulkan(self._rows, self._cards, {})]

    def named_for(
        self, backends: frozenset[str], environment: Mapping[str, str]
    ) -> tuple[Device, ...]:
        """Return the GPUs that engines of these backends can use, under llama.cpp's names.

        If several backends can use a GPU, it has the first one's name, so that its memory counts
        once.
        """
        found: list[Device] = []
        for name, backend in SELECTABLE.items():
            if name in backends:
                named = {one.bus_id for one in found} if name == "vulkan" else set()
                mine = self.of(backend.prefix, environment)
                found += [one for one in mine if one.bus_id not in named]
        return tuple(found)


def _cuda(rows: Sequence[GpuRow], environment: Mapping[str, str]) -> list[Device]:
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
        Device(
            id=f"CUDA{number}",
            total=gpu.total or 0,
            margin=0,
            source="nvml",
            uuid=gpu.uuid or places.get(gpu.index),
            meter=NvmlMeter(gpu.uuid, gpu.bus_id),
            description=gpu.name,
        )
        for number, gpu in enumerate(gpus)
    ]


def _rocm(cards: Sequence[Card], environment: Mapping[str, str]) -> list[Device]:
    agents = sorted(
        (card for card in cards if card.agent is not None),
        key=lambda card: card.agent.node if card.agent else 0,
    )
    return [
        _on_card(f"ROCm{number}", card, rocm_pools(card), card.uuid or str(agents.index(card)))
        for number, card in enumerate(visible_agents(agents, environment))
    ]


def _on_card(name: str, card: Card, pools: tuple[str, ...], uuid: str) -> Device:
    sizes = [{"vram": card.vram, "gtt": card.gtt}[pool] for pool in pools]
    known = [size for size in sizes if size is not None]
    gpu_id = card.agent.gpu_id if card.agent is not None else None
    on_processor = card.vendor == INTEL and card.bus_id.startswith(_ROOT_BUS)
    return Device(
        id=name,
        total=sum(known) if len(known) == len(sizes) else 0,
        margin=0,
        source="sysfs",
        uuid=uuid,
        meter=SysfsMeter(card.folder, card.bus_id, pools, gpu_id),
        within=HOST if "gtt" in pools or on_processor else None,
        description=_VENDORS.get(card.vendor, ""),
    )


def _vulkan(
    rows: Sequence[GpuRow], cards: Sequence[Card], environment: Mapping[str, str]
) -> list[Device]:
    """Return the GPUs in the order of the Vulkan loader: cards, then integrated GPUs, by PCI bus.

    The order is that of `linux_read_sorted_physical_devices` in the loader's loader_linux.c. It can
    be wrong: a layer may sort differently, and a card with two drivers counts twice.
    """
    known = [(False, short_bus_id(row.bus_id), _on_nvidia(row)) for row in rows]
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


def _on_nvidia(row: GpuRow) -> Device:
    meter = NvmlMeter(row.uuid, row.bus_id)
    return Device("", row.total or 0, 0, "nvml", meter=meter, description=row.name)


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
