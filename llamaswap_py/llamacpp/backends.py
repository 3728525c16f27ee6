"""The kinds of devices that a llama-server can be built for: one table. Pure.

What else depends on the kind (names in the file, marks in a binary, variables that hide devices,
memory of the driver) is derived from `BACKENDS`. How a device's memory is read is in devices/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llamaswap_py.units import MIB


@dataclass(frozen=True, slots=True)
class Backend:
    """One kind of devices, and what llama.cpp and its runtime call the parts of it.

    An engine has it if the binary contains `mark`, or if a file beside it is named `library…`.
    """

    name: str
    """As in the file, and as `--backend` of the build script."""
    prefix: str
    """The beginning of its devices' names in `--list-devices`: `CUDA` of `CUDA0`."""
    mark: bytes
    library: str
    flag: str
    """The option of cmake that builds it."""
    variable: str = ""
    """The variable that lists the devices a process may see; "": there is none."""
    hides_all: str = "-1"
    """The value of `variable` with which a process sees none of them."""
    second_variable: str = ""
    """A variable that chooses among what `variable` leaves, by new numbers from 0."""
    order: Mapping[str, str] | None = None
    """What makes a process number its devices as lswap does."""
    driver: int = 0
    """Bytes a process takes of a device before any tensor (docs/design/engine.md, "Memory")."""
    vendor: str = ""
    """Whose cards it is the backend for, as `lswap engine doctor` calls them."""


CPU: Final = "cpu"
BACKENDS: Final = (
    # CUDA takes the first invalid entry of its variable as the end of the list: -1 hides all.
    Backend(
        *("cuda", "CUDA", b"ggml_cuda_init", "libggml-cuda", "GGML_CUDA"),
        variable="CUDA_VISIBLE_DEVICES",
        order={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        driver=450 * MIB,
        vendor="NVIDIA",
    ),
    # So does ROCr (`RvdFilter::BuildUsrDeviceList`). HIP numbers anew the GPUs that ROCr leaves: an
    # inherited HIP_VISIBLE_DEVICES, or CUDA_VISIBLE_DEVICES in its place, would choose among ours.
    Backend(
        *("rocm", "ROCm", b"libamdhip64", "libggml-hip", "GGML_HIP"),
        variable="ROCR_VISIBLE_DEVICES",
        second_variable="HIP_VISIBLE_DEVICES",
        driver=400 * MIB,
        vendor="AMD",
    ),
    # An empty list shows nothing, too; with -1 a process that opens a device ends with "Invalid
    # Vulkan device index" (`ggml_vk_instance_init` in ggml-vulkan.cpp reads unsigned numbers).
    Backend(
        *("vulkan", "Vulkan", b"ggml_vulkan: ", "libggml-vulkan", "GGML_VULKAN"),
        variable="GGML_VK_VISIBLE_DEVICES",
        hides_all="",
    ),
    Backend("metal", "MTL", b"ggml_metal", "libggml-metal", "GGML_METAL"),
)
NAMES: Final = (CPU, *(one.name for one in BACKENDS))
"""All that an engine can be built for, in the order in which they are listed."""
SELECTABLE: Final = {one.name: one for one in BACKENDS if one.variable}
"""Those whose devices a child can be kept to."""
DEVICE_VARIABLES: Final = frozenset(
    {name for one in BACKENDS for name in (one.variable, one.second_variable, *(one.order or {}))}
    - {""}
    | {"GGML_CUDA_DEVICES", "GGML_METAL_DEVICES", "GGML_HEXAGON_DEVICES"}
    | {"GGML_OPENCL_PLATFORM", "GGML_OPENCL_DEVICE", "GGML_OPENVINO_DEVICE"}
    | {"ONEAPI_DEVICE_SELECTOR", "ZE_AFFINITY_MASK", "ZE_FLAT_DEVICE_HIERARCHY"}
    | {"GPU_DEVICE_ORDINAL", "MUSA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES"}
    | {"VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES"}
    | {"VK_LOADER_DRIVERS_SELECT", "VK_LOADER_DRIVERS_DISABLE", "VK_LOADER_DEVICE_SELECT"}
    | {"MESA_VK_DEVICE_SELECT", "DRI_PRIME"}
)
"""Variables that change which devices an engine lists, or how it numbers them.

They are those of the table, of llama.cpp's other backends (ggml/src/ggml-*), and of the drivers
below them: CUDA, ROCm, Level Zero, MUSA, CANN, the Vulkan loader and Mesa.
"""


def vulkan_indices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """Return the driver's numbers of Vulkan0, Vulkan1, …; None where nothing restricts them.

    Read as `ggml_vk_instance_init` (ggml-vulkan.cpp) does: up to the first word without a number.
    """
    value = environment.get("GGML_VK_VISIBLE_DEVICES")
    if value is None:
        return None
    numbers: list[int] = []
    for word in value.replace(",", " ").split():
        if not word.isdigit():
            break
        numbers.append(int(word))
    return tuple(numbers)
