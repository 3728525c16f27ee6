"""Turn measurements of the devices into the scheduler's pools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llamaswap_py.devices import Device, Measurement, strangers_by_charge
from llamaswap_py.scheduler import InstanceKey
from llamaswap_py.scheduler.records import Footprint, Pool, PoolId


class WatchedPools:
    """The pools as last measured. What was not read stays as it was."""

    def __init__(self, devices: tuple[Device, ...]) -> None:
        self.pools = {
            PoolId(one.id): Pool(one.total, one.margin, watched=one.watched) for one in devices
        }

    def update(
        self,
        measurement: Measurement,
        charges: Mapping[InstanceKey, Footprint],
        loading: frozenset[InstanceKey],
    ) -> dict[PoolId, Pool]:
        """Return all pools; `charges` are those of children that are not reaped."""
        for name, reading in measurement.pools.items():
            pool = PoolId(name)
            strangers = reading.strangers
            if strangers is None:
                held = {key: charge.get(pool, 0) for key, charge in charges.items()}
                strangers = strangers_by_charge(
                    reading.used,
                    settled=sum(size for key, size in held.items() if key not in loading),
                    loading=sum(size for key, size in held.items() if key in loading),
                    previous=self.pools[pool].strangers,
                )
            self.pools[pool] = replace(self.pools[pool], total=reading.total, strangers=strangers)
        return dict(self.pools)
