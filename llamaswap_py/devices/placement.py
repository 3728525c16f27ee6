"""Turns the devices of a preset into environment variables that hide all others. Pure.

A child that does not see a card opens no context on it, which saves hundreds of MiB per card. It
numbers the cards that it sees from 0; `translate` turns its names back into ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from llamaswap_py.units import HOST

PREFIXES: Final[dict[str, str]] = {"cuda": "CUDA", "rocm": "ROCm", "vulkan": "Vulkan"}
"""Backend -> the beginning of llama.cpp's names of its devices."""

_HOST_BUFFERS: Final = re.compile(r"CPU.*|AMX|BLAS|host|\w+_Host", re.IGNORECASE)


def placement_env(devices: Sequence[str], backend: str, uuids: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a child of `backend` that may use only `devices`.

    `devices` are names like `CUDA1` or `host`. If it is empty, the child chooses among those of
    `uuids`, and numbers them as lswap does. The variables name a GPU by its value in `uuids` (UUID,
    or the driver's number), else by the number in its name.
    """
    prefix = PREFIXES.get(backend)
    if prefix is None:
        return {}
    env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if backend == "cuda" else {}
    names = _visible(devices, prefix, uuids)
    if not names and not devices:
        return env
    return {**env, **_hide_others(backend, [uuids.get(one) or one[len(prefix) :] for one in names])}


def translate(
    name: str, devices: Sequence[str], backend: str, uuids: Mapping[str, str]
) -> str | None:
    """Return our id for the device or buffer that a child calls `name`; None if it has none.

    The other arguments are those `placement_env` was called with for this child. Buffers in host
    memory (`CPU_Mapped`, `AMX`, `CUDA_Host`, …) are `host`; `CUDA_Split` lies on several devices.
    """
    prefix = PREFIXES.get(backend)
    if prefix is not None and (found := re.fullmatch(rf"{prefix}(\d+)(_\w+)?", name, re.I)):
        number = int(found[1])
        names = _visible(devices, prefix, uuids)
        if names:
            return names[number] if number < len(names) else None
        return None if devices else f"{prefix}{number}"
    return HOST if _HOST_BUFFERS.fullmatch(name) else None


def _visible(devices: Sequence[str], prefix: str, uuids: Mapping[str, str]) -> list[str]:
    """Return our names of what the child sees, in its order."""
    wanted = devices or sorted(uuids, key=lambda name: (len(name), name))
    if not devices and prefix == PREFIXES["vulkan"]:
        return []  # its numbers are a guess; a number beyond the last GPU stops the child
    return [name for name in wanted if re.fullmatch(rf"{prefix}\d+", name, re.IGNORECASE)]


def _hide_others(backend: str, shown: Sequence[str]) -> dict[str, str]:
    """Return the variables that leave only `shown` visible, and override those we inherited.

    * CUDA takes the first invalid entry as the end of the list: -1 hides all. So does ROCr
      (`RvdFilter::BuildUsrDeviceList`).
    * HIP numbers anew the GPUs that ROCr leaves: an inherited HIP_VISIBLE_DEVICES, or
      CUDA_VISIBLE_DEVICES in its place, would choose among our choice.
    * llama.cpp's Vulkan backend shows nothing for an empty list too; -1 makes it throw "Invalid
      Vulkan device index" (`ggml_vk_instance_init` in ggml-vulkan.cpp reads unsigned numbers).
    """
    listed = ",".join(shown)
    if backend == "rocm":
        again = ",".join(str(number) for number in range(len(shown)))
        return {"ROCR_VISIBLE_DEVICES": listed or "-1", "HIP_VISIBLE_DEVICES": again or "-1"}
    if backend == "vulkan":
        return {"GGML_VK_VISIBLE_DEVICES": listed}
    return {"CUDA_VISIBLE_DEVICES": listed or "-1"}
