"""Turn the devices of a preset into the environment that keeps its child to them. Pure.

A child that does not see a card opens no context on it: hundreds of MiB saved per card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

# backend -> (prefix of its device names in llama.cpp, variables that hide the others, "none")
_VARIABLES: Final[dict[str, tuple[str, tuple[str, ...], str]]] = {
    "cuda": ("CUDA", ("CUDA_VISIBLE_DEVICES",), "-1"),
    "rocm": ("ROCm", ("ROCR_VISIBLE_DEVICES",), "-1"),
    "vulkan": ("Vulkan", ("GGML_VK_VISIBLE_DEVICES",), ""),
}
_PCI_ORDER: Final = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def placement_env(devices: Sequence[str], backend: str, uuids: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a child of `backend` that may use only `devices`.

    `devices` are names like `CUDA1` or `host`; none at all leaves the choice to the child. A GPU is
    named by its UUID where `uuids` has it, else by the number in its name.
    """
    env = dict(_PCI_ORDER) if backend == "cuda" else {}
    if not devices or backend not in _VARIABLES:
        return env
    prefix, variables, nothing = _VARIABLES[backend]
    names = [name for name in devices if re.fullmatch(rf"{prefix}\d+", name, re.IGNORECASE)]
    value = ",".join(uuids.get(name) or name[len(prefix) :] for name in names)
    return {**env, **dict.fromkeys(variables, value or nothing)}
