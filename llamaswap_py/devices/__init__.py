"""The memory pools of this machine: what there is, how we know, and how a child is kept to some."""

from __future__ import annotations

from llamaswap_py.devices.inventory import HOST, Device, read_devices
from llamaswap_py.devices.placement import placement_env

__all__ = ["HOST", "Device", "placement_env", "read_devices"]
