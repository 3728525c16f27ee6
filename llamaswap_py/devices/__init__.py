"""The memory pools of this machine: their sizes, their use, and how a child is kept to some."""

from __future__ import annotations

from llamaswap_py.devices.host import read_cache_room
from llamaswap_py.devices.inventory import Device, read_devices
from llamaswap_py.devices.placement import placement_env, translate
from llamaswap_py.devices.reader import Measurement, PoolReading, strangers_by_charge
from llamaswap_py.devices.telemetry import Telemetry

__all__ = [
    "Device",
    "Measurement",
    "PoolReading",
    "Telemetry",
    "placement_env",
    "read_cache_room",
    "read_devices",
    "strangers_by_charge",
    "translate",
]
