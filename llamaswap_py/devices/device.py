"""A device to schedule on: its size, how it is measured, and how the engines list it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llamaswap_py.units import HOST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamaswap_py.devices.nvml import NvmlMeter
    from llamaswap_py.devices.sysfs import SysfsMeter
    from llamaswap_py.llamacpp.device_list import ListedDevice

GONE: Final = "gone"
"""The source of a device that was there before, and is not any more."""
_UNWATCHED: Final = ("declared", "engine", GONE)
"""Sources of a total whose use is not measured: the user's word, and the engine's list."""


@dataclass(frozen=True, slots=True)
class SeenAs:
    """How one engine calls a device: `view` is the engine in its environment, `place` its order."""

    view: str
    name: str
    place: int


@dataclass(frozen=True, slots=True)
class EngineList:
    """What an engine lists in one environment; `rpc` are the endpoints that it was told."""

    view: str
    backend: str
    environment: Mapping[str, str]
    devices: tuple[ListedDevice, ...]
    rpc: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Device:
    """One device. `id` is its shown name (`CUDA0`, `host`), `total` and `margin` bytes.

    A `total` of 0 is not known: the driver does not report it, or it could not be read. The margin
    is that of the configuration, which is given to a device that is used. It may be lowered to
    `least_margin` for a model that fits nothing otherwise; None: it stays. `source` says how
    `total` is known: `declared`, `nvml`, `sysfs`, `engine`, `psutil`, `cgroup`; or `gone`. `uuid`
    is the name that restricts a child to this GPU, if there is one: a UUID, or the driver's number.
    `meter` says how to read a GPU again. `within` is the device in whose memory this one computes
    (the host, or the same card under another name): a charge here is charged there too.
    `description` is the engine's or the driver's, or the vendor where a driver has none. `seen` are
    the engines that list it, and their names for it. `in_process`: its memory is that of the
    child's own process.
    """

    id: str
    total: int
    margin: int
    source: str
    uuid: str | None = None
    meter: NvmlMeter | SysfsMeter | None = None
    within: str | None = None
    description: str = ""
    seen: tuple[SeenAs, ...] = ()
    in_process: bool = False
    least_margin: int | None = None

    @property
    def bus_id(self) -> str:
        """The PCI address as the kernel writes it; "" if it is not known."""
        return short_bus_id(self.meter.bus_id) if self.meter is not None else ""

    @property
    def unified(self) -> bool:
        """Whether its memory is part of the host's."""
        return self.within == HOST

    @property
    def is_lent(self) -> bool:
        """Whether an RPC server lends it, perhaps one of another machine."""
        return any(one.name.startswith("RPC") for one in self.seen)

    @property
    def watched(self) -> bool:
        """Whether lswap keeps measuring its use; else only its own charges tell what is free."""
        return self.source not in _UNWATCHED


def short_bus_id(bus_id: str) -> str:
    """Return NVML's `00000000:0A:00.0` as the kernel writes it, `0000:0a:00.0`."""
    return bus_id.lower()[-12:]
