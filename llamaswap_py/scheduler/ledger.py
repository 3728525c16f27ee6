"""The memory ledger: what is promised to whom, per pool, and what still fits.

Two rules that are no bytes are kept as pools too, so that one arithmetic serves all: `max_loaded`
is a pool of that many places, and a preset of unknown footprint takes the only place of the pool
`unmeasured@DEVICE`. Claims, victim search and explanations need no second case for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llamaswap_py.scheduler.records import (
    Footprint,
    InstanceKey,
    Policy,
    Pool,
    PoolId,
    PresetPlan,
)
from llamaswap_py.units import format_size

LOADED = PoolId("max_loaded")
_UNMEASURED = "unmeasured@"

Amounts = dict[PoolId, int]


class Ledger:
    """Pools and the charges of every instance that is not proven gone."""

    def __init__(self, pools: Mapping[PoolId, Pool], policy: Policy) -> None:
        self.policy = policy
        self.charges: dict[InstanceKey, Footprint] = {}
        self.pools: dict[PoolId, Pool] = {}
        self.measure(pools)

    def measure(self, pools: Mapping[PoolId, Pool]) -> None:
        """Replace the pools of bytes; charges and counting pools stay."""
        places = {pool: size for pool, size in self.pools.items() if is_counting(pool)}
        self.pools = {**pools, **places}
        if self.policy.max_loaded:
            self.pools[LOADED] = Pool(self.policy.max_loaded)

    def charge_of(self, plan: PresetPlan) -> Footprint:
        """Return what an instance of `plan` takes from each pool, counting pools included."""
        charge: Amounts = dict(plan.footprint or {})
        if self.policy.max_loaded:
            charge[LOADED] = 1
        elif plan.footprint is None:
            charge.update(dict.fromkeys(_unmeasured(plan), 1))
        return charge

    def open_pools(self, plan: PresetPlan) -> None:
        """Make sure that the counting pools exist which `plan` is charged to."""
        if plan.footprint is None and not self.policy.max_loaded:
            for pool in _unmeasured(plan):
                self.pools.setdefault(pool, Pool(1))

    def free(self) -> Amounts:
        """Return bytes per pool that may still be promised: total - margin - charges."""
        free = {pool: size.total - size.margin for pool, size in self.pools.items()}
        for charge in self.charges.values():
            add(free, charge, -1)
        return free

    def shortfall(self, charge: Footprint, kept: Iterable[InstanceKey]) -> str:
        """Say why `charge` can never fit beside the instances `kept`; empty if it can."""
        room = {pool: size.total - size.margin for pool, size in self.pools.items()}
        held: Amounts = {}
        for key in kept:
            add(held, self.charges.get(key, {}), 1)
        for pool, need in charge.items():
            if pool not in room:
                known = ", ".join(p for p in self.pools if not is_counting(p)) or "none"
                return f"there is no device {pool} here (known: {known})"
            if need > room[pool] - held.get(pool, 0):
                return self._arithmetic(pool, need, held.get(pool, 0))
        return ""

    def explain(self, charge: Footprint, free: Mapping[PoolId, int]) -> str:
        """Return `host: needs 18.9 GiB · free 7.1 GiB · margin 1 GiB` for each pool of `charge`."""
        rows = []
        for pool, need in charge.items():
            row = f"{pool_name(pool)}: needs {amount(pool, need)}"
            row += f" · free {amount(pool, max(free.get(pool, 0), 0))}"
            if margin := self.pools[pool].margin:
                row += f" · margin {amount(pool, margin)}"
            rows.append(row)
        return "; ".join(rows)

    def _arithmetic(self, pool: PoolId, need: int, held: int) -> str:
        size = self.pools[pool]
        pinned = f" - {amount(pool, held)} pinned" if held else ""
        margin = f" - {amount(pool, size.margin)} margin" if size.margin else ""
        left = size.total - size.margin - held
        return (
            f"{pool_name(pool)}: needs {amount(pool, need)}, but {amount(pool, size.total)} in all"
            f"{margin}{pinned} leave {amount(pool, max(left, 0))}"
        )


def add(amounts: Amounts, charge: Footprint, sign: int) -> None:
    """Add (or with sign -1 take away) `charge` in place."""
    for pool, size in charge.items():
        amounts[pool] = amounts.get(pool, 0) + sign * size


def fits(charge: Footprint, free: Mapping[PoolId, int]) -> bool:
    """Return whether every pool has enough left."""
    return all(size <= free.get(pool, -1) for pool, size in charge.items())


def _unmeasured(plan: PresetPlan) -> list[PoolId]:
    return [PoolId(_UNMEASURED + device) for device in plan.devices or (PoolId("host"),)]


def is_counting(pool: PoolId) -> bool:
    """Return whether the pool holds places, not bytes."""
    return pool == LOADED or pool.startswith(_UNMEASURED)


def pool_name(pool: PoolId) -> str:
    """Return a pool's name for people."""
    if pool.startswith(_UNMEASURED):
        return f"{pool.removeprefix(_UNMEASURED)} (memory not declared: one at a time)"
    return str(pool)


def amount(pool: PoolId, size: int) -> str:
    """Return bytes as a size, places as a count."""
    return str(size) if is_counting(pool) else format_size(size)
