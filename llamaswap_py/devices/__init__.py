"""The memory pools of this machine: their sizes, their use, and how a child is kept to some."""

from __future__ import annotations

from llamaswap_py.devices.device import Device, EngineList
from llamaswap_py.devices.host import read_cache_room
from llamaswap_py.devices.inventory import read_devices, with_gone
from llamaswap_py.devices.placement import (
    Placement,
    in_main_memory,
    meant,
    place,
    placement_env,
    seen_by,
)
from llamaswap_py.devices.reader import Measurement, PoolReading, strangers_by_charge
from llamaswap_py.devices.telemetry import Telemetry

__all__ = [
    "Device",
    "EngineList",
    "Measurement",
    "Placement",
    "PoolReading",
    "Telemetry",
    "in_main_memory",
    "meant",
    "place",
    "placement_env",
    "read_cache_room",
    "read_devices",
    "seen_by",
    "strangers_by_charge",
    "with_gone",
]
