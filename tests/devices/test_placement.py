"""The environment that keeps a child to its devices, and its names for them."""

from __future__ import annotations

import pytest

from llamaswap_py.devices import (
    Device,
    Placement,
    meant,
    place,
    placement_env,
    strangers_by_charge,
)
from llamaswap_py.devices.device import SeenAs

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


def test_devices_are_counted_by_number_not_by_name() -> None:
    many = {f"CUDA{number}": f"GPU-{number}" for number in (10, 2, 0)}
    assert placement_env((), "cuda", many)["CUDA_VISIBLE_DEVICES"] == "GPU-0,GPU-2,GPU-10"


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


# An engine that has listed its devices


def seen(view: str, **names: str) -> dict[str, tuple[SeenAs, ...]]:
    """Return our name -> how an engine of that view calls it."""
    return {ours: (SeenAs(view, name, at),) for at, (ours, name) in enumerate(names.items())}


def machine(
    names: dict[str, tuple[SeenAs, ...]],
    *left_out: str,
    view: str = "v",
    uuids: dict[str, str] | None = None,
    **within: str,
) -> list[Device]:
    """Return devices and the host, which an engine of the view sees too."""
    on_host = [SeenAs(view, "host", -1), *(SeenAs(view, one, 9) for one in left_out)]
    return [
        *(
            Device(name, 1, 0, "nvml", (uuids or {}).get(name), within=within.get(name), seen=them)
            for name, them in names.items()
        ),
        Device("host", 1, 0, "psutil", seen=tuple(on_host)),
    ]


BOTH = seen("v", Vulkan0="Vulkan0", Vulkan1="Vulkan1")
TWO_CUDA = seen("v", CUDA0="CUDA0", CUDA1="CUDA1")
UUIDS = {"CUDA0": "GPU-a", "CUDA1": "GPU-b"}


THREE_CUDA = seen("v", CUDA0="CUDA0", CUDA1="CUDA1", CUDA10="CUDA2")


@pytest.mark.parametrize(
    ("name", "devices", "backend", "expected"),
    [
        ("CUDA0", ("CUDA1",), "cuda", "CUDA1"),
        ("CUDA1", ("CUDA10", "CUDA0"), "cuda", "CUDA0"),
        ("CUDA1", ("CUDA1",), "cuda", None),
        ("CUDA0", ("host",), "cuda", None),
        ("CUDA2", (), "cuda", "CUDA10"),
        ("CUDA0", ("host", "CUDA1"), "cuda", "CUDA1"),
        ("CUDA_Split", ("CUDA1",), "cuda", None),
        ("Vulkan1", (), "vulkan", "Vulkan1"),
        # It sees both, and is told by `--device` which to use.
        ("Vulkan0", ("Vulkan1",), "vulkan", "Vulkan0"),
        ("CUDA0", (), "cpu", None),
        *((name, ("CUDA1",), "cuda", None) for name in ("CPU", "CPU_Mapped", "AMX", "CUDA_Host")),
    ],
)
def test_names_in_the_child_mean_ours(
    name: str, devices: tuple[str, ...], backend: str, expected: str | None
) -> None:
    listed = {"cuda": (THREE_CUDA, CUDA), "vulkan": (BOTH, VULKAN), "cpu": ({}, {})}[backend]
    placed = place(
        devices, machine(listed[0], uuids=listed[1]), view="v", backend=backend, own_env={}
    )
    assert placed.names.get(name) == expected


@pytest.mark.parametrize("devices", [("CUDA10", "CUDA0"), ("CUDA1",), ()])
def test_every_device_of_a_child_has_a_name_there(devices: tuple[str, ...]) -> None:
    placed = place(devices, machine(THREE_CUDA, uuids=CUDA), view="v", backend="cuda", own_env={})
    shown = placed.env["CUDA_VISIBLE_DEVICES"].split(",")
    ours = [placed.names[f"CUDA{number}"] for number in range(len(shown))]
    assert [CUDA[name] for name in ours] == shown
    assert len(placed.names) == len(shown)


@pytest.mark.parametrize(
    ("chosen", "args", "names"),
    [
        (("Vulkan1",), ("--device", "Vulkan1"), {"Vulkan0": "Vulkan0", "Vulkan1": "Vulkan1"}),
        (("Vulkan1", "Vulkan0"), ("--device", "Vulkan1,Vulkan0"), None),
        (("host",), ("--device", "none"), None),
        ((), (), None),
    ],
)
def test_devices_without_a_uuid_are_named_by_an_option(
    chosen: tuple[str, ...], args: tuple[str, ...], names: dict[str, str] | None
) -> None:
    placed = place(chosen, machine(BOTH), view="v", backend="vulkan", own_env={})
    assert (placed.env, placed.args) == ({}, args)
    assert names is None or placed.names == names


def test_devices_with_uuids_are_hidden_by_a_variable_and_numbered_anew() -> None:
    devices = machine(TWO_CUDA, uuids=UUIDS)
    placed = place(("CUDA1",), devices, view="v", backend="cuda", own_env={})
    assert placed == Placement({**PCI, "CUDA_VISIBLE_DEVICES": "GPU-b"}, (), {"CUDA0": "CUDA1"})
    alone = place(("host",), devices, view="v", backend="cuda", own_env={})
    assert alone == Placement({**PCI, "CUDA_VISIBLE_DEVICES": "-1"}, (), {})


def test_variables_of_the_preset_itself_are_not_overwritten() -> None:
    own = {"CUDA_VISIBLE_DEVICES": "1"}
    devices = machine(seen("v", CUDA1="CUDA0"), uuids=UUIDS)
    placed = place(("CUDA1",), devices, view="v", backend="cuda", own_env=own)
    assert placed == Placement({}, ("--device", "CUDA0"), {"CUDA0": "CUDA1"})


def test_an_option_of_the_preset_itself_stands() -> None:
    devices = machine(TWO_CUDA, uuids=UUIDS)
    placed = place(("CUDA1",), devices, view="v", backend="cuda", own_env={}, own_choice=True)
    assert placed.args == ()
    assert placed.env == {**PCI, "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}
    assert placed.names == {"CUDA0": "CUDA0", "CUDA1": "CUDA1"}


def test_nothing_is_placed_on_a_device_that_is_left_out() -> None:
    some = place((), machine(BOTH, "Vulkan2"), view="v", backend="vulkan", own_env={})
    assert some.args == ("--device", "Vulkan0,Vulkan1")
    none = place((), machine({}, "SYCL0"), view="v", backend="cpu", own_env={})
    assert none.args == ("--device", "none")
    assert place((), machine({}), view="v", backend="cpu", own_env={}).args == ()
    assert place(("host",), machine({}), view="v", backend="cpu", own_env={}).args == ()


def test_an_engine_with_two_kinds_of_devices_names_them_by_the_option() -> None:
    mixed = seen("v", CUDA0="CUDA0", RPC0="RPC0")
    placed = place(
        ("CUDA0", "RPC0"), machine(mixed, uuids=UUIDS), view="v", backend="cuda", own_env={}
    )
    assert (placed.env, placed.args) == (PCI, ("--device", "CUDA0,RPC0"))


def test_an_engine_that_was_not_asked_is_kept_to_devices_by_variables() -> None:
    placed = place(("Vulkan1",), machine(BOTH), view="other", backend="vulkan", own_env={})
    assert placed == Placement({"GGML_VK_VISIBLE_DEVICES": "1"}, (), {})


def test_the_names_that_a_preset_may_use() -> None:
    names = seen("a", CUDA0="CUDA0", CUDA1="CUDA1") | seen("b", Vulkan0="Vulkan0")
    uuids = {"CUDA0": "GPU-aa11", "CUDA1": "GPU-aa22"}
    devices = machine(names, view="b", uuids=uuids, Vulkan0="CUDA1")

    def mean(name: str, view: str) -> str | None:
        return meant(name, view, devices)

    assert [mean(one, "a") for one in ("CUDA1", "GPU-AA2", "GPU-aa", "host")] == [
        *("CUDA1", "CUDA1", None, "host"),
    ]
    assert [mean(one, "b") for one in ("CUDA1", "GPU-aa22", "CUDA0", "Vulkan0", "x")] == [
        *("Vulkan0", "Vulkan0", None, "Vulkan0", None),
    ]
