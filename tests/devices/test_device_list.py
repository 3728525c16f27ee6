"""What an engine lists: read, matched to cards, joined over engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import pytest

from llamaswap_py.config.parse import load_config
from llamaswap_py.devices.device import Device, EngineList, SeenAs
from llamaswap_py.devices.joining import join_lists
from llamaswap_py.devices.matching import match_cards
from llamaswap_py.devices.nvml import NvmlMeter
from llamaswap_py.llamacpp.device_list import ListedDevice, parse_device_list
from llamaswap_py.supervisor.device_lists import unlisted
from tests.devices.roots import GIB, MIB

PRINTED: Final = """\
load_backend: loaded Vulkan backend from /opt/libggml-vulkan.so
Available devices:
  Vulkan0: llvmpipe (LLVM 15.0.6, 256 bits) (2048 MiB, 2047 MiB free)
  CUDA0: NVIDIA GeForce RTX 4090 (24080 MiB, 23600 MiB free)
  BLAS: OpenBLAS (0 MiB, 0 MiB free)
  SYCL0: Intel(R) Arc(TM) A770 Graphics (0 MiB, 0 MiB free)
"""


def test_a_list_is_read_with_brackets_in_descriptions_and_without_helpers_of_the_cpu() -> None:
    assert parse_device_list(PRINTED) == (
        ListedDevice("Vulkan0", "llvmpipe (LLVM 15.0.6, 256 bits)", 2048 * MIB, 2047 * MIB),
        ListedDevice("CUDA0", "NVIDIA GeForce RTX 4090", 24080 * MIB, 23600 * MIB),
        ListedDevice("SYCL0", "Intel(R) Arc(TM) A770 Graphics", 0, 0),
    )


def test_an_empty_list_is_not_the_same_as_none() -> None:
    assert parse_device_list("Available devices:\n  (none)\n") == ()
    assert parse_device_list("error: invalid argument: --list-devices\n") is None


@pytest.mark.parametrize("name", ["\x1b[31mCUDA0", "A,B0", "-x0", "CUDA 0", "a:b", "host", "0"])
def test_what_cannot_be_the_name_of_a_device_is_left_out(name: str) -> None:
    line = f"  {name}: NVIDIA (8192 MiB, 8000 MiB free)"
    assert parse_device_list(f"Available devices:\n{line}\n") == ()


def test_a_description_cannot_command_a_terminal() -> None:
    line = "  RPC0: \x1b[31mred (8192 MiB, 8000 MiB free)"
    (device,) = parse_device_list(f"Available devices:\n{line}\n") or ()
    assert device.description == "\\x1b[31mred"


RTX: Final = "NVIDIA GeForce RTX 4090"
RADEON: Final = "AMD Radeon RX 7900 XTX"
NAVI: Final = f"{RADEON} (RADV NAVI31)"
LLVMPIPE: Final = "llvmpipe (LLVM 15.0.6, 256 bits)"
FIRST, SECOND, THIRD = "0000:03:00.0", "0000:0a:00.0", "0000:41:00.0"


def listed(name: str, description: str, total: int) -> ListedDevice:
    return ListedDevice(name, description, total, total)


def on_nvml(bus: str, description: str = RTX, total: int = 24 * GIB) -> Device:
    uuid = f"GPU-{bus}"
    return Device("", total, 0, "nvml", uuid, NvmlMeter(uuid, bus), description=description)


def on_sysfs(bus: str, vendor: str, total: int = 24 * GIB) -> Device:
    return Device("", total, 0, "sysfs", None, NvmlMeter("", bus), description=vendor)


# A list and the cards


def buses(found: Sequence[Device | None]) -> list[str | None]:
    return [None if one is None else one.bus_id for one in found]


def test_equal_cards_are_told_apart_by_their_order() -> None:
    two = [listed("CUDA0", RTX, 23 * GIB), listed("CUDA1", RTX, 23 * GIB)]
    assert buses(match_cards(two, [on_nvml(FIRST), on_nvml(SECOND)])) == [FIRST, SECOND]


def test_equal_cards_without_an_order_are_not_matched() -> None:
    one = [listed("Vulkan0", RTX, 24 * GIB)]
    assert match_cards(one, [on_nvml(FIRST), on_nvml(SECOND)]) == [None]


def test_unequal_cards_are_matched_in_any_order() -> None:
    two = [listed("Vulkan0", NAVI, 24 * GIB), listed("Vulkan1", RTX, 24 * GIB)]
    cards = [on_nvml(FIRST), on_sysfs(SECOND, "AMD")]
    assert buses(match_cards(two, cards)) == [SECOND, FIRST]


@pytest.mark.parametrize(
    ("description", "total"),
    [
        (RTX, 8 * GIB),  # of another size
        ("NVIDIA GeForce RTX 3090", 24 * GIB),
        (NAVI, 24 * GIB),
    ],
)
def test_a_card_that_does_not_agree_is_not_matched(description: str, total: int) -> None:
    assert match_cards([listed("Vulkan0", description, total)], [on_nvml(FIRST)]) == [None]


def test_a_card_that_tells_no_size_is_matched_by_its_description() -> None:
    one = [listed("CUDA0", RTX, 24 * GIB)]
    assert buses(match_cards(one, [on_nvml(FIRST, total=0)])) == [FIRST]
    assert buses(match_cards([listed("CUDA0", RTX, 0)], [on_nvml(FIRST)])) == [FIRST]


# Several lists


def engine(view: str, *devices: ListedDevice) -> EngineList:
    return EngineList(view, "any", {}, devices)


def join(*lists: EngineList, host: int = 64 * GIB, **cards: list[Device]) -> list[Device]:
    def of(kind: str, environment: Mapping[str, str]) -> list[Device]:
        return cards.get(kind, [])

    return list(join_lists(lists, of, host))


def within(found: Sequence[Device]) -> dict[str, str | None]:
    return {one.id: one.within for one in found}


def names(found: Sequence[Device], view: str) -> dict[str, str]:
    return {seen.name: one.id for one in found for seen in one.seen if seen.view == view}


def test_one_card_under_two_engines_is_one_memory() -> None:
    found = join(
        engine("a", listed("CUDA0", RTX, 23 * GIB), listed("CUDA1", RTX, 23 * GIB)),
        engine("b", listed("Vulkan0", RTX, 24 * GIB), listed("Vulkan1", RTX, 24 * GIB)),
        CUDA=[on_nvml(FIRST), on_nvml(SECOND)],
        Vulkan=[on_nvml(FIRST), on_nvml(SECOND)],
    )
    assert within(found) == {"CUDA0": None, "CUDA1": None, "Vulkan0": "CUDA0", "Vulkan1": "CUDA1"}
    assert {one.source for one in found} == {"nvml"}


@pytest.mark.parametrize("other", [RADEON, "AMD Radeon Graphics"])
def test_a_card_that_cannot_be_told_apart_is_the_same_memory(other: str) -> None:
    found = join(
        engine("a", listed("ROCm0", other, 24 * GIB)),
        engine("b", listed("Vulkan0", NAVI, 24 * GIB)),
    )
    assert within(found) == {"ROCm0": None, "Vulkan0": "ROCm0"}


def test_the_name_with_live_figures_stands_for_the_memory() -> None:
    found = join(
        engine("b", listed("Vulkan0", NAVI, 24 * GIB)),
        engine("a", listed("ROCm0", RADEON, 24 * GIB)),
        ROCm=[on_sysfs(FIRST, "AMD")],
    )
    assert within(found) == {"Vulkan0": "ROCm0", "ROCm0": None}


def test_two_engines_of_one_kind_share_their_names() -> None:
    device = listed("Vulkan0", "Some Card", 8 * GIB)
    (found,) = join(engine("old", device), engine("new", device))
    assert (found.id, found.source) == ("Vulkan0", "engine")
    assert [one.view for one in found.seen] == ["old", "new"]


def test_two_equal_cards_of_one_list_are_two_memories() -> None:
    card = "Some Card"
    found = join(engine("a", listed("SYCL0", card, GIB), listed("SYCL1", card, GIB)))
    assert within(found) == {"SYCL0": None, "SYCL1": None}


def test_equal_cards_of_another_environment_cannot_be_told_apart() -> None:
    """Which of two equal cards a variable leaves is not known: they count as one memory."""
    card = ("Some Card", 8 * GIB)
    both = engine("all", listed("SYCL0", *card), listed("SYCL1", *card))
    hidden = {"ONEAPI_DEVICE_SELECTOR": "level_zero:1"}
    one = EngineList("one", "any", hidden, (listed("SYCL0", *card),))
    found = join(both, one)
    assert within(found) == {"SYCL0": None, "SYCL1": "SYCL0"}
    assert names(found, "all") == {"SYCL0": "SYCL0", "SYCL1": "SYCL1"}
    assert names(found, "one") == {"SYCL0": "SYCL0"}
    renumbered = EngineList("one", "any", hidden, both.devices)
    assert within(join(both, renumbered)) == {"SYCL0": None, "SYCL1": "SYCL0"}
    same = EngineList("one", "any", {"HOME": "/x"}, both.devices)
    assert within(join(both, same)) == {"SYCL0": None, "SYCL1": None}, "the order tells"
    alone = engine("all", listed("SYCL0", *card), listed("SYCL1", "Another Card", 4 * GIB))
    assert within(join(alone, one)) == {"SYCL0": None, "SYCL1": None}


def test_an_engine_that_sees_fewer_cards_counts_them_anew() -> None:
    cards = [on_nvml(FIRST), on_nvml(SECOND), on_nvml(THIRD)]
    two = engine("all", listed("CUDA0", RTX, 23 * GIB), listed("CUDA1", RTX, 23 * GIB))
    one = engine("own", listed("CUDA0", RTX, 23 * GIB))

    def of(kind: str, environment: Mapping[str, str]) -> list[Device]:
        return [cards[int(number)] for number in environment["cards"]]

    def seen(own: str) -> tuple[list[str], dict[str, str]]:
        lists = [
            EngineList("all", "cuda", {"cards": "01"}, two.devices),
            EngineList("own", "cuda", {"cards": own}, one.devices),
        ]
        found = join_lists(lists, of, 64 * GIB)
        return [each.id for each in found], names(found, "own")

    assert seen("1") == (["CUDA0", "CUDA1"], {"CUDA0": "CUDA1"})
    other = f"CUDA0-{THIRD}"
    assert seen("2") == (["CUDA0", "CUDA1", other], {"CUDA0": other})


def test_a_software_driver_and_integrated_gpus_compute_in_main_memory() -> None:
    found = join(
        engine(
            "a",
            listed("Vulkan0", LLVMPIPE, 2 * GIB),
            listed("Vulkan1", "Intel(R) Iris(R) Xe Graphics (TGL GT2)", 32 * GIB),
            listed("Vulkan2", "Intel(R) Arc(tm) A770 Graphics (DG2)", 16 * GIB),
            listed("MTL0", "Apple M3 Max", 48 * GIB),
        ),
        engine("b", listed("Vulkan0", LLVMPIPE, 2 * GIB)),
    )
    assert within(found) == {"Vulkan0": "host", "Vulkan1": "host", "Vulkan2": None, "MTL0": "host"}
    assert [one.id for one in found if one.in_process] == ["Vulkan0"]


def test_a_card_whose_size_only_the_engine_knows_is_not_measured() -> None:
    (found,) = join(
        engine("a", listed("Vulkan0", "Intel(R) Arc(tm) A770 Graphics", 16 * GIB)),
        Vulkan=[on_sysfs(FIRST, "Intel", 0)],
    )
    assert (found.total, found.source, found.meter) == (16 * GIB, "engine", None)


def test_a_gpu_without_memory_of_its_own_computes_in_main_memory() -> None:
    gb10 = "NVIDIA GB10"
    cards = [on_nvml(FIRST, gb10, 0)]
    (found,) = join(engine("a", listed("CUDA0", gb10, 120 * GIB)), host=128 * GIB, CUDA=cards)
    assert found.within == "host"


HERE, ALSO_HERE, AWAY = "127.0.0.1:50052", "localhost:50053", "gpubox:50052"


def test_two_lenders_of_this_machine_lend_the_same_memory() -> None:
    lent = [listed("RPC0", HERE, 64 * GIB), listed("RPC1", ALSO_HERE, 64 * GIB)]
    assert within(join(engine("a", *lent))) == {"RPC0": "host", "RPC1": "RPC0"}
    small = [listed("RPC0", HERE, 2 * GIB), listed("RPC1", ALSO_HERE, 2 * GIB)]
    assert within(join(engine("a", *small))) == {"RPC0": None, "RPC1": "RPC0"}


def test_a_lender_of_this_machine_lends_its_card() -> None:
    found = join(
        engine("a", listed("CUDA0", RTX, 23 * GIB), listed("RPC0", HERE, 23 * GIB)),
        CUDA=[on_nvml(FIRST)],
    )
    assert within(found) == {"CUDA0": None, "RPC0": "CUDA0"}


def test_lenders_elsewhere_have_memory_of_their_own() -> None:
    found = join(
        engine("a", listed("RPC0", AWAY, 64 * GIB), listed("RPC1", AWAY, 8 * GIB)),
        engine("b", listed("RPC0", AWAY, 64 * GIB)),
    )
    assert within(found) == {"RPC0": None, "RPC1": None}
    assert names(found, "b") == {"RPC0": "RPC0"}


def test_a_declared_device_that_no_engine_lists_is_named() -> None:
    text = (
        "memory: {devices: {CUDA0: 8GiB, CUDA1: 8GiB, Vulkan0: 2GiB}}\n"
        "models: {a: {cmd: [x, '{port}'], memory: {CUDA1: 1GiB}}}\n"
    )
    config = load_config(text, path=None, base_dir="/", env={}, home="/")
    seen = (SeenAs("view", "host", -1),)
    devices = [
        Device("CUDA0", GIB, 0, "declared"),
        Device("CUDA1", GIB, 0, "declared"),
        Device("Vulkan0", GIB, 0, "declared", seen=(SeenAs("view", "Vulkan0", 0),)),
        Device("host", GIB, 0, "psutil", seen=seen),
    ]
    (line,) = unlisted(config, devices)
    assert "CUDA0 is declared, but no engine lists it" in line
    assert "(listed: Vulkan0)" in line
    without_lists = [replace(one, seen=()) for one in devices]
    assert unlisted(config, without_lists) == (), "nothing is known"
