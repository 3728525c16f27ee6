"""Reads what `llama-server --list-devices` prints: the devices that an engine can use. Pure.

The engine's own list is lswap's inventory, because only the engine knows which devices its backends
can use and how it calls them. A line has no id, so `devices/` finds out which card it means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from llamaswap_py.units import HOST, MIB, showable

OPTION: Final = "--list-devices"
_TITLE: Final = "Available devices:"
# `common_print_available_devices` in common/arg.cpp; a description may hold brackets too.
# A name that has a comma, or begins with a dash, could not be given to `--device`.
_LINE: Final = re.compile(
    r"\s+(?P<name>[A-Za-z_][!-+\--9;-~]*): (?P<description>.*) "
    r"\((?P<total>\d{1,12}) MiB, (?P<free>\d{1,12}) MiB free\)",
    re.ASCII,
)
_DIGITS: Final = "0123456789"
_HELPERS: Final = frozenset({"BLAS", "ZenDNN", "zDNN"})
"""Backends of the type ACCEL: they compute for the CPU, and no layers are placed on them."""


@dataclass(frozen=True, slots=True)
class ListedDevice:
    """A device as an engine lists it; sizes in bytes, `total` 0 if the driver did not report it."""

    name: str
    description: str
    total: int
    free: int

    @property
    def kind(self) -> str:
        """The name without its number: `CUDA`, `Vulkan`, `RPC`."""
        return self.name.rstrip(_DIGITS)


def parse_device_list(printed: str) -> tuple[ListedDevice, ...] | None:
    """Return the devices in the engine's order; None if this is not a list of devices."""
    lines = printed.splitlines()
    if _TITLE not in lines:
        return None
    found = map(_LINE.fullmatch, lines[lines.index(_TITLE) + 1 :])
    devices = [
        ListedDevice(
            name=one["name"],
            description=showable(one["description"]),
            total=int(one["total"]) * MIB,
            free=int(one["free"]) * MIB,
        )
        for one in found
        if one is not None
    ]
    return tuple(one for one in devices if one.kind not in _HELPERS and one.name != HOST)
