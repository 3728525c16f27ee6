"""Work on many devices grows with their number, not with its square: calls are counted."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from llamaswap_py.devices.device import EngineList
from llamaswap_py.devices.joining import join_lists
from llamaswap_py.llamacpp.device_list import ListedDevice
from llamaswap_py.scheduler.ledger import Ledger
from llamaswap_py.scheduler.types import Choice, Policy, Pool, PoolId, PresetId, PresetPlan
from llamaswap_py.units import GIB

if TYPE_CHECKING:
    from collections.abc import Callable


def calls_of(work: Callable[[], object]) -> int:
    """Return how many functions, also builtin ones, are called by some work."""
    found = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def listing(view: str, kind: str, count: int) -> EngineList:
    devices = [
        ListedDevice(f"{kind}{one}", f"NVIDIA Card {one}", (8 + one) * GIB, GIB)
        for one in range(count)
    ]
    return EngineList(view, kind.lower(), {}, tuple(devices))


def joined(count: int) -> Callable[[], object]:
    return lambda: join_lists([listing("a", "CUDA", count)], lambda _, __: (), 64 * GIB)


def opened(count: int) -> Callable[[], object]:
    pools = {PoolId(f"CUDA{one}"): Pool(8 * GIB) for one in range(count)}
    choices = tuple(Choice(None, (pool,)) for pool in pools)
    plan = PresetPlan(preset=PresetId("a"), choices=choices)
    return lambda: Ledger(dict(pools), Policy()).open_pools(plan)


@pytest.mark.parametrize("work", [joined, opened])
def test_four_times_the_devices_take_about_four_times_the_calls(work: Any) -> None:
    work(100)()  # what is cached by the first one
    few, many = calls_of(work(200)), calls_of(work(800))
    assert few > 200
    assert many < 5 * few


def test_two_engines_with_the_same_cards_mean_the_same_memory_in_any_number() -> None:
    lists = [listing("a", "CUDA", 300), listing("b", "Vulkan", 300)]
    found = join_lists(lists, lambda _, __: (), 64 * GIB)
    assert [(one.id, one.within) for one in found] == [
        *((f"CUDA{one}", None) for one in range(300)),
        *((f"Vulkan{one}", f"CUDA{one}") for one in range(300)),
    ]
