"""The records of devices that were found, before budgets and margins are known. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamaswap_py.devices.nvml import NvmlMeter
    from llamaswap_py.devices.sysfs import SysfsMeter
    from llamaswap_py.llamacpp.device_list import ListedDevice


@dataclass(frozen=True, slots=True)
class SeenAs:
    """How one engine calls a device: `view` is the engine in its environment, `place` its order."""

    view: str
    name: str
    place: int


@dataclass(frozen=True, slots=True)
class FoundGpu:
    """A device under its name; `total` None if unreadable, 0 if the driver did not report it.

    `description` is the driver's, or the vendor where the driver has none. `within` is the device
    with the memory of which this one computes: the host, or the same card under another name.
    """

    id: str
    total: int | None
    source: str
    uuid: str | None = None
    meter: NvmlMeter | SysfsMeter | None = None
    within: str | None = None
    description: str = ""
    seen: tuple[SeenAs, ...] = ()
    in_process: bool = False

    @property
    def bus_id(self) -> str:
        """The PCI address as the kernel writes it; "" if it is not known."""
        return short_bus_id(self.meter.bus_id) if self.meter is not None else ""


@dataclass(frozen=True, slots=True)
class EngineList:
    """What an engine lists in one environment; `rpc` are the endpoints that it was told."""

    view: str
    backend: str
    environment: Mapping[str, str]
    devices: tuple[ListedDevice, ...]
    rpc: tuple[str, ...] = ()


def short_bus_id(bus_id: str) -> str:
    """Return NVML's `00000000:0A:00.0` as the kernel writes it, `0000:0a:00.0`."""
    return bus_id.lower()[-12:]
