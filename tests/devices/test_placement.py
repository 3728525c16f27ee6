"""The environment that keeps a child to its devices, and its names for them."""

from __future__ import annotations

import pytest

from llamaswap_py.devices import placement_env, strangers_by_charge, translate

CUDA = {"CUDA0": "GPU-a", "CUDA1": "GPU-b", "CUDA10": "MIG-c"}
ROCM = {"ROCm0": "GPU-x", "ROCm1": "3"}
VULKAN = {"Vulkan0": "0", "Vulkan1": "2"}
PCI = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.mark.parametrize(
    ("backend", "devices", "uuids", "expected"),
    [
        ("cuda", ("CUDA1",), CUDA, {**PCI, "CUDA_VISIBLE_DEVICES": "GPU-b"}),
        ("cuda", ("CUDA10", "CUDA0"), CUDA, {**PCI, "CUDA_VISIBLE_DEVICES": "MIG-c,GPU-a"}),
        ("cuda", ("CUDA3",), CUDA, {**PCI, "CUDA_VISIBLE_DEVICES": "3"}),
        ("cuda", ("host",), CUDA, {**PCI, "CUDA_VISIBLE_DEVICES": "-1"}),
        ("cuda", (), CUDA, {**PCI, "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,MIG-c"}),
        ("cuda", (), {}, PCI),
        ("rocm", ("ROCm1",), ROCM, {"ROCR_VISIBLE_DEVICES": "3", "HIP_VISIBLE_DEVICES": "0"}),
        (
            "rocm",
            ("ROCm1", "ROCm0"),
            ROCM,
            {"ROCR_VISIBLE_DEVICES": "3,GPU-x", "HIP_VISIBLE_DEVICES": "0,1"},
        ),
        ("rocm", ("host",), ROCM, {"ROCR_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}),
        ("vulkan", ("Vulkan1",), VULKAN, {"GGML_VK_VISIBLE_DEVICES": "2"}),
        ("vulkan", ("host",), VULKAN, {"GGML_VK_VISIBLE_DEVICES": ""}),
        ("vulkan", (), VULKAN, {}),
        ("cpu", ("host",), {}, {}),
        ("cpu", ("CUDA0",), CUDA, {}),
    ],
)
def test_the_environment(
    backend: str, devices: tuple[str, ...], uuids: dict[str, str], expected: dict[str, str]
) -> None:
    assert placement_env(devices, backend, uuids) == expected


@pytest.mark.parametrize(
    ("name", "devices", "backend", "expected"),
    [
        ("CUDA0", ("CUDA1",), "cuda", "CUDA1"),
        ("CUDA1", ("CUDA10", "CUDA0"), "cuda", "CUDA0"),
        ("CUDA1", ("CUDA1",), "cuda", None),
        ("CUDA0", ("host",), "cuda", None),
        ("CUDA2", (), "cuda", "CUDA10"),
        ("CUDA0", ("host", "CUDA1"), "cuda", "CUDA1"),
        ("Vulkan1", (), "vulkan", "Vulkan1"),
        ("Vulkan0", ("Vulkan1",), "vulkan", "Vulkan1"),
        ("CPU", ("CUDA1",), "cuda", "host"),
        ("CPU_Mapped", (), "cpu", "host"),
        ("CPU_REPACK", (), "cpu", "host"),
        ("AMX", (), "cpu", "host"),
        ("CUDA_Host", ("CUDA1",), "cuda", "host"),
        ("Host", (), "cpu", "host"),
        ("CUDA_Split", ("CUDA1",), "cuda", None),
        ("CUDA0", (), "cpu", None),
    ],
)
def test_names_in_the_child_mean_ours(
    name: str, devices: tuple[str, ...], backend: str, expected: str | None
) -> None:
    uuids = VULKAN if backend == "vulkan" else CUDA
    assert translate(name, devices, backend, uuids) == expected


def test_devices_are_counted_by_number_not_by_name() -> None:
    many = {f"CUDA{number}": f"GPU-{number}" for number in (10, 2, 0)}
    assert placement_env((), "cuda", many)["CUDA_VISIBLE_DEVICES"] == "GPU-0,GPU-2,GPU-10"


@pytest.mark.parametrize("devices", [("CUDA10", "CUDA0"), ("CUDA1",), ()])
def test_every_device_of_a_child_has_a_name_there(devices: tuple[str, ...]) -> None:
    shown = placement_env(devices, "cuda", CUDA)["CUDA_VISIBLE_DEVICES"].split(",")
    ours = [translate(f"CUDA{number}", devices, "cuda", CUDA) for number in range(len(shown))]
    assert [CUDA[name or ""] for name in ours] == shown


@pytest.mark.parametrize(
    ("used", "settled", "loading", "previous", "expected"),
    [
        (10, 4, 0, 0, 6),  # nothing on its way: what is not charged is theirs
        (10, 12, 0, 0, 0),
        (10, 0, 8, 10, 10),  # a load that has taken nothing yet
        (18, 0, 8, 10, 10),  # … and all
        (20, 0, 8, 10, 12),  # somebody else came
        (5, 0, 8, 10, 5),  # somebody left
    ],
)
def test_strangers_where_the_processes_are_hidden(
    used: int, settled: int, loading: int, previous: int, expected: int
) -> None:
    assert strangers_by_charge(used, settled, loading, previous) == expected
