"""What was measured of the memory pools, as immutable records. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PoolReading:
    """One pool at one moment, in bytes. Page cache that can be dropped is not `used`.

    `ours` is what our children's process trees hold, `strangers` the rest of `used`. Both are None
    where the processes cannot be told apart, as in a container: see `strangers_by_charge`.
    """

    total: int
    used: int
    ours: int | None
    strangers: int | None


@dataclass(frozen=True, slots=True)
class Measurement:
    """All watched pools that could be read; one that is missing is unknown, never empty.

    `at` is the clock's time just before the first query: a process reaped before it, and memory
    given back before it, show. `unreadable` says why a pool is missing.
    """

    at: float
    pools: Mapping[str, PoolReading]
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """A measurement, and what each child (its whole process tree) holds: pid -> device -> bytes."""

    measurement: Measurement
    held: Mapping[int, Mapping[str, int]]


def read_pool(total: int, used: int, ours: int | None) -> PoolReading:
    """Return a reading whose strangers are what is not ours."""
    return PoolReading(total, used, ours, None if ours is None else max(used - ours, 0))


def strangers_by_charge(used: int, settled: int, loading: int, previous: int) -> int:
    """Return what strangers hold, in bytes, where `ours` cannot be measured.

    `settled` is the charge of children that are loaded, `loading` that of those still on their
    way, of which anything from nothing to all may be there already. `previous` is the last
    answer: it stands as long as it is possible.
    """
    least, most = max(used - settled - loading, 0), max(used - settled, 0)
    return min(max(previous, least), most)
