"""AMD and Vulkan devices, from made-up sysfs trees."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pytest

from llamaswap_py.devices import Device, EngineList, read_devices, with_gone
from llamaswap_py.devices.reader import MachineReader
from llamaswap_py.llamacpp.device_list import ListedDevice
from tests.devices.roots import GIB, MIB, Root

FIRST, SECOND, APU = "0000:03:00.0", "0000:0a:00.0", "0000:c5:00.0"
CHILD = 4100
NO_VARIABLES: Mapping[str, str] = {}


def gpus(
    root: Root,
    *backends: str,
    environment: Mapping[str, str] = NO_VARIABLES,
    declared: Mapping[str, int] | None = None,
) -> dict[str, Device]:
    found = read_devices(
        declared,
        lambda name: 0,
        backends=frozenset(backends),
        environment=environment,
        root=root.path,
    )
    return {one.id: one for one in found if one.id != "host"}


def two_cards(root: Root) -> None:
    """Place two cards that the compute driver counts against the order of the bus."""
    root.card(0, FIRST, vram_total=16 * GIB, vram_used=GIB, gtt_total=32 * GIB, gtt_used=0)
    root.card(1, SECOND, vram_total=24 * GIB, vram_used=2 * GIB, gtt_total=32 * GIB, gtt_used=0)
    root.agent(0, 0, "0000:00:00.0", cores=16)
    root.agent(2, 111, FIRST, unique_id=0xAAAA000000000001)
    root.agent(1, 222, SECOND, unique_id=0xBBBB000000000002)


def apu(root: Root, vram: int, gtt: int) -> None:
    root.card(0, APU, metrics=2, vram_total=vram, vram_used=GIB, gtt_total=gtt, gtt_used=2 * GIB)
    root.agent(1, 333, APU)


def test_rocm_counts_as_the_compute_driver_does(root: Root) -> None:
    two_cards(root)
    found = gpus(root, "rocm")
    assert {name: (one.total // GIB, one.uuid) for name, one in found.items()} == {
        "ROCm0": (24, "GPU-bbbb000000000002"),
        "ROCm1": (16, "GPU-aaaa000000000001"),
    }
    assert {one.source for one in found.values()} == {"sysfs"}


@pytest.mark.parametrize(
    ("environment", "sizes"),
    [
        ({"ROCR_VISIBLE_DEVICES": "1"}, [16]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-AAAA,0"}, [16, 24]),
        ({"ROCR_VISIBLE_DEVICES": "-1"}, []),
        ({"ROCR_VISIBLE_DEVICES": ""}, []),
        ({"HIP_VISIBLE_DEVICES": "1,0"}, [16, 24]),
        ({"HIP_VISIBLE_DEVICES": ""}, [24, 16]),
        ({"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "1"}, [16]),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, [24]),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, [16]),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"}, []),
    ],
)
def test_what_rocm_sees(root: Root, environment: dict[str, str], sizes: list[int]) -> None:
    two_cards(root)
    found = gpus(root, "rocm", environment=environment)
    assert [one.total // GIB for one in found.values()] == sizes


def test_a_card_without_unique_id_is_named_by_the_drivers_number(root: Root) -> None:
    two_cards(root)
    root.agent(2, 111, FIRST)
    found = gpus(root, "rocm", environment={"ROCR_VISIBLE_DEVICES": "1"})
    assert found["ROCm0"].uuid == "1"


@pytest.mark.parametrize(
    ("vram", "gtt", "rocm", "unified"),
    [
        (GIB // 2, 32 * GIB, 32 * GIB, True),  # a small carve-out is not used at all
        (96 * GIB, 16 * GIB, 96 * GIB, False),  # a large one is a pool of its own
    ],
)
def test_an_apu_uses_the_pool_its_driver_uses(
    root: Root, vram: int, gtt: int, rocm: int, unified: bool
) -> None:
    apu(root, vram, gtt)
    found = gpus(root, "rocm")["ROCm0"]
    assert (found.total, found.unified) == (rocm, unified)
    on_vulkan = gpus(root, "vulkan")["Vulkan0"]
    assert (on_vulkan.total, on_vulkan.unified) == (vram + gtt, True)


def test_a_card_with_less_vram_than_gtt_is_no_apu(root: Root) -> None:
    root.card(0, FIRST, vram_total=8 * GIB, gtt_total=64 * GIB)
    root.agent(1, 111, FIRST)
    assert gpus(root, "rocm")["ROCm0"].total == 8 * GIB


def test_an_apu_without_metrics_is_known_by_its_processor(root: Root) -> None:
    root.card(0, APU, metrics=None, vram_total=GIB, gtt_total=32 * GIB)
    root.agent(1, 111, APU, cores=8)
    assert gpus(root, "rocm")["ROCm0"].total == 32 * GIB


def test_a_card_that_tells_nothing_is_left_out_and_reported(
    root: Root, caplog: pytest.LogCaptureFixture
) -> None:
    two_cards(root)
    root.card(2, APU)
    root.agent(3, 333, APU)
    assert set(gpus(root, "rocm")) == {"ROCm0", "ROCm1"}
    assert [one.getMessage().partition(":")[0] for one in caplog.records] == ["ROCm2"]
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        declared = gpus(root, "rocm", declared={"ROCm2": GIB})
    assert (declared["ROCm2"].total, declared["ROCm2"].watched) == (GIB, False)
    assert not caplog.records


def test_vulkan_counts_cards_before_integrated_gpus(root: Root) -> None:
    root.card(0, "0000:00:02.0", vendor="0x8086")
    root.card(1, "0000:01:00.0", vendor="0x1a03")  # a server's management chip
    root.card(2, SECOND, vram_total=24 * GIB)
    root.card(3, FIRST, vram_total=16 * GIB)
    found = gpus(root, "vulkan")
    assert {name: one.total // GIB for name, one in found.items()} == {"Vulkan0": 16, "Vulkan1": 24}
    chosen = gpus(root, "vulkan", environment={"GGML_VK_VISIBLE_DEVICES": "1 0,x,7"})
    assert [(one.total // GIB, one.uuid) for one in chosen.values()] == [(24, "1"), (16, "0")]


def test_memory_counts_once_when_two_engines_can_use_it(root: Root) -> None:
    two_cards(root)
    root.card(2, APU, metrics=3, vram_total=GIB, gtt_total=8 * GIB)  # not for ROCm
    assert set(gpus(root, "rocm", "vulkan")) == {"ROCm0", "ROCm1", "Vulkan2"}


# Readings


def test_rocm_bytes_of_a_child(root: Root) -> None:
    two_cards(root)
    root.process(CHILD)
    root.process(CHILD + 1, parent=CHILD)
    root.write(f"sys/class/kfd/kfd/proc/{CHILD + 1}/vram_222", f"{GIB}\n")
    root.drm_file(CHILD, 5, FIRST, client=8, vram=256 * MIB)
    reader = MachineReader(list(gpus(root, "rocm").values()), root=root.path)
    sample = reader.read(0.0, [CHILD])
    pools = sample.measurement.pools
    assert (pools["ROCm0"].used, pools["ROCm0"].ours) == (2 * GIB, GIB)
    assert (pools["ROCm1"].used, pools["ROCm1"].strangers) == (GIB, 768 * MIB)
    assert sample.held == {CHILD: {"ROCm0": GIB, "ROCm1": 256 * MIB}}

    root.container(True)  # KFD lists ids of the host
    reader = MachineReader(list(gpus(root, "rocm").values()), root=root.path)
    assert reader.read(0.0, [CHILD]).measurement.pools["ROCm0"].ours is None
    assert reader.read(0.0, []).measurement.pools["ROCm0"].strangers == 2 * GIB


def test_vulkan_bytes_of_a_child_count_each_client_once(root: Root) -> None:
    root.card(0, FIRST, vram_total=16 * GIB, vram_used=3 * GIB)
    root.process(CHILD)
    root.drm_file(CHILD, 5, FIRST, client=8, vram=GIB)
    root.drm_file(CHILD, 6, FIRST, client=8, vram=GIB)
    root.drm_file(CHILD, 7, FIRST, client=9, vram=512 * MIB, gtt=GIB)
    root.drm_file(CHILD, 8, SECOND, client=1, vram=GIB)
    root.container(True)
    reader = MachineReader(list(gpus(root, "vulkan").values()), root=root.path)
    pool = reader.read(0.0, [CHILD]).measurement.pools["Vulkan0"]
    assert (pool.ours, pool.strangers) == (GIB + 512 * MIB, GIB + 512 * MIB)


def test_unified_memory_of_ours_is_no_strangers_on_the_host(root: Root) -> None:
    apu(root, GIB // 2, 32 * GIB)
    root.memory(64 * GIB, 50 * GIB)
    root.process(CHILD, RssAnon=GIB)
    root.write(f"sys/class/kfd/kfd/proc/{CHILD}/vram_333", f"{2 * GIB}\n")
    devices = read_devices(
        None, lambda name: 0, backends=frozenset({"rocm"}), environment={}, root=root.path
    )
    pools = MachineReader(devices, root=root.path).read(0.0, [CHILD]).measurement.pools
    assert (pools["ROCm0"].ours, pools["ROCm0"].strangers) == (2 * GIB, 0)
    assert (pools["host"].ours, pools["host"].strangers) == (3 * GIB, 11 * GIB)


def test_a_card_that_goes_away_is_unreadable(root: Root) -> None:
    two_cards(root)
    reader = MachineReader(list(gpus(root, "rocm").values()), root=root.path)
    (root.path / "sys/class/drm/card1/device/mem_info_vram_used").unlink()
    measurement = reader.read(0.0, []).measurement
    assert set(measurement.pools) == {"ROCm1"}
    assert "mem_info_vram_used" in measurement.unreadable["ROCm0"]


# What engines list


def listing(view: str, *devices: tuple[str, str, int]) -> EngineList:
    return EngineList(
        view, view, {}, tuple(ListedDevice(name, said, size, size) for name, said, size in devices)
    )


def listed(root: Root, *lists: EngineList, **sizes: int) -> dict[str, Device]:
    found = read_devices(
        sizes or None,
        lambda name: 0,
        backends=frozenset(),
        environment={},
        lists=lists,
        root=root.path,
    )
    return {one.id: one for one in found}


RADEON = "AMD Radeon RX 7900 XTX"


def test_two_engines_on_the_same_amd_cards(root: Root) -> None:
    """ROCm and Vulkan count them in opposite orders."""
    two_cards(root)
    found = listed(
        root,
        listing("rocm", ("ROCm0", RADEON, 24 * GIB), ("ROCm1", "AMD Radeon RX 6800", 16 * GIB)),
        listing(
            "vulkan",
            ("Vulkan0", "AMD Radeon RX 6800 (RADV NAVI21)", 16 * GIB),
            ("Vulkan1", f"{RADEON} (RADV NAVI31)", 24 * GIB),
        ),
    )
    assert {name: one.within for name, one in found.items()} == {
        **{"ROCm0": None, "ROCm1": None, "Vulkan0": "ROCm1", "Vulkan1": "ROCm0", "host": None},
    }
    assert found["ROCm0"].uuid == "GPU-bbbb000000000002"
    pools = MachineReader(list(found.values()), root=root.path).read(0.0, []).measurement.pools
    assert (pools["ROCm0"].used, pools["Vulkan1"].used) == (2 * GIB, 2 * GIB)


def test_an_apu_under_two_engines_is_main_memory_once(root: Root) -> None:
    apu(root, GIB // 2, 32 * GIB)
    root.process(CHILD, RssAnon=GIB)
    root.write(f"sys/class/kfd/kfd/proc/{CHILD}/vram_333", f"{2 * GIB}\n")
    root.memory(64 * GIB, 50 * GIB)
    found = listed(
        root,
        listing("rocm", ("ROCm0", "AMD Radeon 780M", 32 * GIB)),
        listing("vulkan", ("Vulkan0", "AMD Radeon 780M (RADV PHOENIX)", 24 * GIB)),
    )
    assert {name: one.within for name, one in found.items()} == {
        **{"ROCm0": "host", "Vulkan0": "ROCm0", "host": None},
    }
    pools = MachineReader(list(found.values()), root=root.path).read(0.0, [CHILD]).measurement.pools
    assert pools["host"].ours == 3 * GIB


def test_a_device_that_does_not_tell_its_size_is_left_out_and_its_name_kept(
    root: Root, caplog: pytest.LogCaptureFixture
) -> None:
    silent = listing("sycl", ("SYCL0", "Intel(R) Arc(TM) A770 Graphics", 0))
    found = listed(root, silent)
    assert set(found) == {"host"}
    assert [(one.name, one.place) for one in found["host"].seen] == [("host", -1), ("SYCL0", 0)]
    assert "SYCL0: its memory cannot be read" in caplog.text
    declared = listed(root, silent, SYCL0=8 * GIB)
    assert (declared["SYCL0"].total, declared["SYCL0"].source) == (8 * GIB, "declared")
    assert [one.name for one in declared["SYCL0"].seen] == ["SYCL0"]


def test_a_card_is_within_another_name_only_if_that_is_declared(root: Root) -> None:
    two_cards(root)
    lists = (
        listing("rocm", ("ROCm0", RADEON, 24 * GIB)),
        listing("vulkan", ("Vulkan0", f"{RADEON} (RADV NAVI31)", 24 * GIB)),
    )
    both = listed(root, *lists, ROCm0=20 * GIB, Vulkan0=20 * GIB)
    assert both["Vulkan0"].within == "ROCm0"
    one = listed(root, *lists, Vulkan0=20 * GIB)
    assert one["Vulkan0"].within is None
    assert [each.name for each in one["host"].seen] == ["host", "host", "ROCm0"]


def test_devices_that_are_gone_stay_with_nothing(root: Root) -> None:
    two_cards(root)
    before = tuple(listed(root, listing("rocm", ("ROCm0", RADEON, 24 * GIB))).values())
    now = tuple(listed(root, listing("rocm")).values())
    after = with_gone(now, before)
    assert [(one.id, one.total > 0, one.watched) for one in after] == [
        ("ROCm0", False, False),
        ("host", True, True),
    ]
    assert with_gone(before, after) == before
