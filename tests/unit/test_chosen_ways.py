"""What a preset runs as on each placement: the best step, the smallest card, and for which room."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from llamaswap_py.devices import Device
from llamaswap_py.estimate import Estimate, Part, Source
from llamaswap_py.estimate.fitter import Fitted, Smaller
from llamaswap_py.estimate.fitting import FitStep
from llamaswap_py.llamacpp.probe import Engine
from llamaswap_py.supervisor.chosen_ways import choose_ways, chooses, wish_of
from llamaswap_py.supervisor.device_lists import DeviceLists
from llamaswap_py.supervisor.rooms import DeviceRoom, room_for, rooms_for
from llamaswap_py.supervisor.ways import placements
from llamaswap_py.units import GIB, MIB
from tests.unit.supervisors import configured, prepared

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamaswap_py.estimate import Wanted
    from llamaswap_py.estimate.fitter import Fitter
    from llamaswap_py.estimate.fitting import FitWish
    from llamaswap_py.supervisor.prepare import Prepared

pytestmark = pytest.mark.anyio
CARDS = (
    Device("CUDA0", 24 * GIB, GIB, "nvml"),
    Device("CUDA1", 12 * GIB, GIB, "nvml"),
    Device("host", 64 * GIB, GIB, "psutil"),
)


def one(keys: str = "", **of_engine: Any) -> Prepared:
    config = configured(f"models: {{a: {{model: /a.gguf{keys}}}}}")
    made = prepared(config.models["a"])
    engine = cast("Engine", made.engine)
    return replace(made, engine=replace(engine, backend="cuda", **of_engine))


class Needing:
    """A fitter of a model that takes so many GiB in its best step, and half in the next one."""

    def __init__(self, gib: float) -> None:
        self.gib = gib
        self.asked: list[tuple[tuple[str, ...], dict[str, int], FitWish]] = []

    async def fit(
        self, wanted: Wanted, room: Mapping[str, int], wish: FitWish, **_: object
    ) -> Fitted:
        self.asked.append((wanted.gpus, dict(room), wish))
        for rank, context in ((0, 32768), (1, 8192)):
            size = round(self.gib * GIB / (rank + 1) / len(wanted.gpus))
            words = ("--ctx-size", str(context), "--n-gpu-layers", "33")
            step = FitStep(rank, words, context, 131072, 4, 33, 33, 0)
            parts = tuple(Part(gpu, "weights", size) for gpu in wanted.gpus)
            estimate = Estimate(Source.DRY_RUN, parts)
            if all(size <= room[gpu] for gpu in wanted.gpus):
                return Fitted(step, estimate, (), fits=True)
        smaller = Smaller("Q3_K_M", GIB, step, dict.fromkeys(wanted.gpus, GIB))
        return Fitted(None, estimate, (), fits=False, closest=step, smaller=smaller)


async def chosen(needing: Needing, *rooms: dict[str, int], keys: str = "") -> list[Any]:
    fitter = cast("Fitter", needing)
    rooms = rooms or ({each.id: each.total - each.margin for each in CARDS},)
    return await choose_ways(one(keys), "", CARDS, fitter, 0, [DeviceRoom(one) for one in rooms])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["CUDA0"]),
        ("compat: 0.2\n", ["CUDA0", "Vulkan0", "CUDA0+Vulkan0"]),
        ("compat: 0.1\n", ["CUDA0", "Vulkan0", "CUDA0+Vulkan0"]),
        ("defaults: {device: all}\n", ["CUDA0", "Vulkan0", "CUDA0+Vulkan0"]),
        ("compat: 0.2\ndefaults: {device: auto}\n", ["CUDA0"]),
        ("compat: 0.2\ndefaults: {device: Vulkan0}\n", ["Vulkan0"]),
    ],
)
def test_an_integrated_gpu_beside_a_card_is_used_as_the_file_says(
    text: str, expected: list[str]
) -> None:
    devices = (CARDS[0], Device("Vulkan0", 32 * GIB, GIB, "sysfs", within="host"), CARDS[2])
    config = configured(f"{text}models: {{a: {{model: /a.gguf}}}}")
    made = prepared(config.models["a"])
    device = made.preset.device
    way = replace(made.ways[""], named=None if isinstance(device, str) else device)
    engine = replace(cast("Engine", made.engine), backend="cuda")
    found = placements(replace(made, engine=engine, ways={"": way}), devices)
    assert ["+".join(each) for each in found] == expected


@pytest.mark.parametrize(
    ("gib", "devices", "context"),
    [
        (8, [("CUDA1",), ("CUDA0",)], 32768),  # the smallest card first
        (20, [("CUDA0",)], 32768),  # only the large one holds it as it is wanted
        (44, [("CUDA0",)], 8192),  # half of it is too much for the small card
    ],
)
async def test_the_best_step_decides_and_then_the_smallest_card(
    gib: float, devices: list[tuple[str, ...]], context: int
) -> None:
    ways = await chosen(Needing(gib))
    assert [way.choice.devices for way in ways] == devices
    assert {way.choice.words for way in ways} == {
        ("--ctx-size", str(context), "--n-gpu-layers", "33")
    }


async def test_several_devices_are_taken_where_no_single_one_does() -> None:
    equal = tuple(replace(each, total=12 * GIB) for each in CARDS[:2]) + CARDS[2:]
    room = {each.id: each.total - each.margin for each in equal}
    fitter = cast("Fitter", Needing(20))
    (way,) = await choose_ways(one(), "", equal, fitter, 0, [DeviceRoom(room)])
    assert way.choice.devices == ("CUDA0", "CUDA1")
    assert way.choice.chosen.endswith(
        ": chosen for CUDA0 12 GiB less 1 GiB and CUDA1 12 GiB less 1 GiB"
    )


async def test_a_device_that_is_part_of_main_memory_gets_less_until_both_have_room() -> None:
    shared = (
        Device("Vulkan0", 20 * GIB, GIB, "engine", within="host"),
        Device("host", 16 * GIB, GIB, "psutil"),
    )
    needing = Needing(17)
    room = {each.id: each.total - each.margin for each in shared}
    (way,) = await choose_ways(one(), "", shared, cast("Fitter", needing), 0, [DeviceRoom(room)])
    assert way.choice.words[:2] == ("--ctx-size", "8192")
    assert [asked["Vulkan0"] for _, asked, _ in needing.asked] == [19 * GIB, 15 * GIB]
    large = cast("Fitter", Needing(31))
    (way,) = await choose_ways(one(), "", shared, large, 0, [DeviceRoom(room)])
    assert way.rank is None
    assert room_for(one().preset, shared, {"Vulkan0": 4 * GIB})["host"] == 11 * GIB


class Naming:
    """A fitter of a model that never fits; it names the quantisation that fills the room."""

    def __init__(self, least: float) -> None:
        self.least = round(least * GIB)

    async def fit(
        self, wanted: Wanted, room: Mapping[str, int], wish: FitWish, **_: object
    ) -> Fitted:
        step = FitStep(0, (), 8192, 131072, 4, 33, 17, 0)
        parts = (Part("Vulkan0", "weights", 6 * GIB), Part("host", "weights", 20 * GIB))
        size = sum(room.values())
        smaller = Smaller(f"{size // GIB} GiB", size, step, dict(room))
        named = smaller if size >= self.least else None
        estimate = Estimate(Source.DRY_RUN, parts)
        return Fitted(None, estimate, (), fits=False, closest=step, smaller=named)


@pytest.mark.parametrize(
    ("least", "said"), [(1, "take 15 GiB of this model"), (16, "")], ids=["one fits", "none fits"]
)
async def test_the_quantisation_that_is_named_fits_into_memory_that_devices_share(
    least: float, said: str
) -> None:
    shared = (
        Device("Vulkan0", 6 * GIB, GIB, "engine", within="host"),
        Device("host", 16 * GIB, GIB, "psutil"),
    )
    room = {each.id: each.total - each.margin for each in shared}
    naming = cast("Fitter", Naming(least))
    way, *_ = await choose_ways(one(), "", shared, naming, 0, [DeviceRoom(room)])
    assert way.choice.smaller.partition(" (")[0] == said
    assert way.estimate.footprint == {"Vulkan0": 6 * GIB, "host": 20 * GIB}


async def test_it_is_said_what_was_chosen_and_for_how_much_memory() -> None:
    (way,) = await chosen(Needing(20))
    assert way.choice.chosen == (
        "32,768 of 131,072 context, all 33 layers on CUDA0: chosen for 24 GiB less 1 GiB"
    )
    assert way.choice.footprint == {"CUDA0": 20 * GIB}
    assert way.choice.source == "dry-run"


async def test_the_next_room_counts_if_nothing_fits_into_the_first() -> None:
    """What others hold makes no preset too large."""
    needing = Needing(8)
    tight = {"CUDA0": GIB, "CUDA1": GIB, "host": GIB}
    whole = {each.id: each.total - each.margin for each in CARDS}
    ways = await chosen(needing, tight, tight, whole)
    assert [way.choice.devices for way in ways] == [("CUDA1",), ("CUDA0",)]
    assert len(needing.asked) == 6, "the same room is not tried twice"


async def test_what_fits_nowhere_says_what_is_missing_and_what_would_do() -> None:
    ways = await chosen(Needing(200))
    assert [way.rank for way in ways] == [None] * 3
    assert {way.choice.words[:2] for way in ways} == {("--ctx-size", "8192")}
    assert ways[0].choice.smaller == (
        "take Q3_K_M of this model (1 GiB): it would run with "
        "8,192 of 131,072 context, all 33 layers on CUDA0"
    )
    assert not ways[0].choice.chosen


async def test_the_wishes_of_the_file_are_handed_on() -> None:
    needing = Needing(8)
    await chosen(needing, keys=", fit: {context: {least: 4k, want: 64k}, favor: context}")
    _, _, wish = needing.asked[0]
    assert (wish.least, wish.want, wish.favor) == (4096, 65536, "context")
    least = wish_of(one(", args: {fit-ctx: 48k}").preset)
    assert (least.least, least.want) == (49152, 49152)


@pytest.mark.parametrize(
    ("keys", "free"),
    [
        ("", 23 * GIB),
        (", fit: {margin: 2GiB}", 22 * GIB),
        (", fit: {margin: {CUDA0: 3GiB}}", 21 * GIB),
        (", fit: {margin: {CUDA1: 3GiB}}", 23 * GIB),
        (", fit: {margin: 512MiB}", 23 * GIB),  # memory.margin is kept all the same
    ],
)
def test_the_larger_margin_stays_free(keys: str, free: int) -> None:
    assert room_for(one(keys).preset, CARDS, {})["CUDA0"] == free
    assert room_for(one(keys).preset, CARDS, {"CUDA0": 2 * GIB})["CUDA0"] == free - 2 * GIB
    assert room_for(one(keys).preset, CARDS, {"CUDA0": 99 * GIB})["CUDA0"] == 0


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("", True),
        (", fit: shrink", True),
        (", fit: exact", False),
        (", memory: {host: 1GiB}", False),
    ],
)
def test_nothing_is_chosen_for_what_is_exact_or_declared(keys: str, expected: bool) -> None:
    assert chooses(one(keys), "") is expected


def test_small_budgets_are_said_as_they_are() -> None:
    small = (Device("Vulkan0", 2 * GIB, 128 * MIB, "declared"),)
    assert room_for(one().preset, small, {}) == {"Vulkan0": 2 * GIB - 128 * MIB}


SMALL = (
    Device("CUDA0", 4 * GIB, GIB, "nvml", least_margin=128 * MIB),
    Device("host", 16 * GIB, GIB, "psutil", least_margin=128 * MIB),
)


async def on_small(gib: float, keys: str = "", taken: int = 0) -> tuple[Any, Needing]:
    needing = Needing(gib)
    prepared = one(keys)
    rooms = rooms_for(prepared.preset, SMALL, [{"CUDA0": taken}])
    (way,) = await choose_ways(prepared, "", SMALL, cast("Fitter", needing), 0, rooms)
    return way, needing


@pytest.mark.parametrize(
    ("gib", "context", "left"),
    [
        (3, 32768, None),
        (6, 8192, None),  # half of it is what there is
        (6.9, 8192, 512),
        (7.3, 8192, 256),
        (7.7, 8192, 128),
    ],
)
async def test_a_margin_is_lowered_as_far_as_needed_and_only_for_what_fits_nothing_otherwise(
    gib: float, context: int, left: int | None
) -> None:
    way, _ = await on_small(gib)
    said = f"{context:,} of 131,072 context, all 33 layers on CUDA0: chosen for 4 GiB less "
    if left is None:
        assert way.choice.chosen == f"{said}1 GiB"
        assert way.choice.lowered == {}
    else:
        size = f"{left} MiB"
        assert way.choice.chosen == (
            f"{said}{size}; margin lowered to {size} on CUDA0 for this model: nothing smaller fits"
        )
        assert way.choice.lowered == {"CUDA0": GIB - left * MIB}, "the host has room"


@pytest.mark.parametrize("keys", ["", ", fit: {margin: 1GiB}", ", fit: {margin: {CUDA0: 64MiB}}"])
async def test_what_fits_nowhere_is_tried_once_more_and_an_asked_for_margin_stays(
    keys: str,
) -> None:
    way, needing = await on_small(8 if not keys else 6.9, keys)
    assert (way.rank, way.choice.lowered, way.choice.chosen) == (None, {}, "")
    tried = [room["CUDA0"] for _, room, _ in needing.asked]
    least = 4 * GIB - (128 * MIB if not keys else GIB)
    assert tried in ([3 * GIB], [3 * GIB, least])


async def test_a_margin_is_lowered_beside_what_others_hold() -> None:
    """More than that is held: then there is no such room, and no step fits into it."""
    way, _ = await on_small(4.9, taken=GIB)
    assert way.choice.lowered == {"CUDA0": 512 * MIB}
    way, _ = await on_small(0.5, taken=round(3.5 * GIB))
    assert way.choice.lowered == {"CUDA0": 768 * MIB}
    way, needing = await on_small(0.5, taken=4 * GIB)
    assert way.rank is None
    assert {room["CUDA0"] for _, room, _ in needing.asked} == {0}


@pytest.mark.parametrize(
    ("text", "least"),
    [
        ("", 128 * MIB),
        ("memory: {margin: auto}\n", 128 * MIB),
        ("memory: {margin: 1GiB}\n", None),
        ("memory: {margin: {CUDA0: 2GiB}}\n", None),
        ("compat: 0.2\n", None),
        ("compat: 0.1\n", None),
        ("compat: 0.2\nmemory: {margin: auto}\n", 128 * MIB),
    ],
)
def test_what_the_file_says_of_the_margin_stands(text: str, least: int | None) -> None:
    config = configured(f"{text}models: {{a: {{model: /a.gguf}}}}")
    (*_, host) = DeviceLists().find(config.memory, ())
    assert (host.margin, host.least_margin) == (GIB, least)
