"""The scheduler's memory pools, made from measurements of the devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from llamaswap_py.devices import Device, Measurement, strangers_by_charge
from llamaswap_py.scheduler import InstanceKey
from llamaswap_py.scheduler.types import Footprint, Pool, PoolId
from llamaswap_py.supervisor.prepare import pools_of
from llamaswap_py.supervisor.reservations import Reservation
from llamaswap_py.units import HOST


class MemoryPools:
    """The pools as last measured. What was not read stays as it was."""

    def __init__(self, devices: tuple[Device, ...]) -> None:
        self.pools = pools_of(devices)
        self._lent = _lent(devices)

    def use(self, devices: tuple[Device, ...]) -> dict[PoolId, Pool]:
        """Take other devices; what was measured of those that stay is kept."""
        before, self.pools = self.pools, pools_of(devices)
        self._lent = _lent(devices)
        for pool, now in self.pools.items():
            if now.watched and pool in before:
                self.pools[pool] = replace(now, strangers=before[pool].strangers)
        return dict(self.pools)

    def update(
        self,
        measurement: Measurement,
        charges: Mapping[InstanceKey, Footprint],
        loading: frozenset[InstanceKey],
        reserved: Sequence[Reservation] = (),
        held: Mapping[int, Mapping[str, int]] = MappingProxyType({}),
        kept: int = 0,
        unseen: Mapping[InstanceKey, Sequence[int]] = MappingProxyType({}),
    ) -> dict[PoolId, Pool]:
        """Return all pools; `charges` are those of children that are not reaped.

        `held` are the bytes of each process tree that was read. Memory of a reservation's program
        counts as other programs' only beyond the reservation. The `kept` bytes of the host do not
        count either: they are freed as soon as they are needed, like page cache.
        `unseen` are instances, each with its processes, that something serves for which was not
        found: what is charged for them is taken off what seems to be other programs'.
        """
        for name, reading in measurement.pools.items():
            pool = PoolId(name)
            if pool not in self.pools or not self.pools[pool].watched:
                continue  # it was measured just before it went away
            strangers, given_up = reading.strangers, kept if name == HOST else 0
            if strangers is None:
                promised = {key: charge.get(pool, 0) for key, charge in charges.items()}
                strangers = strangers_by_charge(
                    max(reading.used - given_up, 0),
                    settled=sum(size for key, size in promised.items() if key not in loading),
                    loading=sum(size for key, size in promised.items() if key in loading)
                    + sum(one.footprint.get(pool, 0) for one in reserved),
                    previous=self.pools[pool].strangers,
                )
            else:
                strangers = max(strangers - given_up, 0)
                strangers = _without_reserved(pool, strangers, reserved, held)
                if unseen:
                    strangers = self._without_unseen(
                        pool, strangers, charges, loading, unseen, held
                    )
                if name == HOST and self._lent:
                    strangers = self._without_lent(strangers, charges, loading)
            self.pools[pool] = replace(self.pools[pool], total=reading.total, strangers=strangers)
        return dict(self.pools)

    def _without_unseen(
        self,
        pool: PoolId,
        strangers: int,
        charges: Mapping[InstanceKey, Footprint],
        loading: frozenset[InstanceKey],
        unseen: Mapping[InstanceKey, Sequence[int]],
        held: Mapping[int, Mapping[str, int]],
    ) -> int:
        """Return what strangers hold, less what is charged for models whose processes are unknown.

        What their known processes hold was not counted for strangers in the first place.
        """
        missing = {
            key: max(
                charges.get(key, {}).get(pool, 0)
                - sum(held.get(pid, {}).get(str(pool), 0) for pid in pids),
                0,
            )
            for key, pids in unseen.items()
        }
        return strangers_by_charge(
            strangers,
            settled=sum(size for key, size in missing.items() if key not in loading),
            loading=sum(size for key, size in missing.items() if key in loading),
            previous=self.pools[pool].strangers,
        )

    def _without_lent(
        self,
        strangers: int,
        charges: Mapping[InstanceKey, Footprint],
        loading: frozenset[InstanceKey],
    ) -> int:
        """Return what strangers hold of the host, less what lenders hold for our models.

        An RPC server of this machine is another program, but models on its devices are charged.
        """
        lent = {
            key: sum(charge.get(pool, 0) for pool in self._lent) for key, charge in charges.items()
        }
        return strangers_by_charge(
            strangers,
            settled=sum(size for key, size in lent.items() if key not in loading),
            loading=sum(size for key, size in lent.items() if key in loading),
            previous=self.pools[PoolId(HOST)].strangers,
        )


def _lent(devices: Sequence[Device]) -> frozenset[PoolId]:
    """Return the devices of main memory that RPC servers lend; others may be parts of these."""
    return frozenset(PoolId(one.id) for one in devices if one.is_lent and one.unified)


def _without_reserved(
    pool: PoolId,
    strangers: int,
    reserved: Sequence[Reservation],
    held: Mapping[int, Mapping[str, int]],
) -> int:
    """Return what strangers hold, less what they hold within a reservation.

    Where a reservation's processes are not known, what strangers took since it began to be held is
    taken for its program's.
    """
    for one in reserved:
        size = one.footprint.get(pool, 0)
        used = held.get(one.pid, {}).get(str(pool)) if one.pid is not None else None
        if used is not None:  # its tree was read as ours: only what is beyond counts
            strangers += max(used - size, 0)
        elif one.pid is None and size:
            grown = strangers - one.baseline.setdefault(pool, strangers)
            strangers -= min(max(grown, 0), size)
    return strangers
