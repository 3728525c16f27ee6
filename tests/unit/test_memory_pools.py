"""Pools from measurements: memory that a lender holds for our models is not a stranger's."""

from __future__ import annotations

from llamaswap_py.devices import Device, Measurement, PoolReading
from llamaswap_py.devices.device import SeenAs
from llamaswap_py.scheduler.types import InstanceKey, PoolId, PresetId
from llamaswap_py.supervisor.memory_pools import MemoryPools

HOST, RPC0, RPC1 = PoolId("host"), PoolId("RPC0"), PoolId("RPC1")
A = InstanceKey(PresetId("a"), 1)


def device(name: str, total: int, source: str, within: str | None = None) -> Device:
    return Device(name, total, 0, source, within=within, seen=(SeenAs("v", name, 0),))


DEVICES = (
    device("RPC0", 100, "engine", "host"),
    device("RPC1", 100, "engine", "RPC0"),
    device("host", 100, "psutil"),
)


def strangers(pools: MemoryPools, used: int, ours: int, lent: int, *, loads: bool = False) -> int:
    """Measure the host while a model is charged with `lent` on RPC1, and so on RPC0, too."""
    measured = Measurement(0.0, {"host": PoolReading(100, used, ours, used - ours)})
    charges = {A: {RPC1: lent, RPC0: lent, HOST: lent}} if lent else {}
    loading = frozenset({A}) if loads else frozenset()
    return pools.update(measured, charges, loading)[HOST].strangers


def test_what_a_lender_holds_for_a_model_counts_once() -> None:
    pools = MemoryPools(DEVICES)
    assert strangers(pools, used=10, ours=0, lent=0) == 10
    assert strangers(pools, used=10, ours=0, lent=30, loads=True) == 10  # nothing taken yet
    assert strangers(pools, used=42, ours=2, lent=30, loads=True) == 10  # all of it
    assert strangers(pools, used=42, ours=2, lent=30) == 10
    assert strangers(pools, used=52, ours=2, lent=30) == 20  # somebody else came
    assert strangers(pools, used=20, ours=0, lent=0) == 20


BOX = {A: (7,)}


def beside_box(pools: MemoryPools, used: int, *, loads: bool, held: int = 2) -> int:
    """Measure the host while a program is charged with 30, whose container was not found."""
    measured = Measurement(0.0, {"host": PoolReading(100, used, held, used - held)})
    loading = frozenset({A}) if loads else frozenset()
    of = {7: {"host": held}}
    return pools.update(measured, {A: {HOST: 30}}, loading, held=of, unseen=BOX)[HOST].strangers


def test_declared_memory_of_a_container_that_is_not_found_counts_once() -> None:
    """It is charged, so what appears with the model is not other programs', up to that."""
    pools = MemoryPools(DEVICES[-1:])
    assert strangers(pools, used=10, ours=0, lent=0) == 10
    assert beside_box(pools, used=12, loads=True) == 10  # it has begun to load
    assert beside_box(pools, used=30, loads=True) == 10
    assert beside_box(pools, used=40, loads=True) == 10  # all of it
    assert beside_box(pools, used=40, loads=False) == 10
    assert beside_box(pools, used=45, loads=False) == 15  # somebody else came
    assert beside_box(pools, used=38, loads=False) == 8
    assert strangers(pools, used=15, ours=0, lent=0) == 15  # it is gone


def test_what_is_known_to_be_the_programs_is_not_taken_off_twice() -> None:
    pools = MemoryPools(DEVICES[-1:])
    assert beside_box(pools, used=40, held=30, loads=False) == 10


def test_without_a_lender_here_it_is_a_strangers() -> None:
    pools = MemoryPools((device("RPC0", 100, "engine"), DEVICES[-1]))
    assert strangers(pools, used=42, ours=2, lent=30) == 40


def test_other_devices_keep_what_was_measured_of_those_that_stay() -> None:
    pools = MemoryPools(DEVICES)
    strangers(pools, used=10, ours=0, lent=0)
    after = pools.use((device("RPC0", 0, "gone"), DEVICES[-1]))
    assert (after[HOST].strangers, after[RPC0].total) == (10, 0)
    assert RPC1 not in after
