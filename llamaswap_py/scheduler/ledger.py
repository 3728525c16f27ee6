"""The memory ledger: which instance is charged with how much of each pool, and what still fits.

Four rules that do not count bytes are pools too, so that the same arithmetic applies to all.
`max_loaded` is a pool of that many places. An exclusive group is a pool of one place, and so is an
RPC server. A preset of unknown footprint takes the only place of the pool `unmeasured@DEVICE`. So
claims, the search for victims and explanations need no special case for them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, TypeVar

from llamaswap_py.scheduler.types import (
    Choice,
    Footprint,
    InstanceKey,
    Policy,
    Pool,
    PoolId,
    PresetId,
    PresetPlan,
)
from llamaswap_py.units import HOST, format_size

LOADED = PoolId("max_loaded")
_UNMEASURED = "unmeasured@"
_EXCLUSIVE = "exclusive@"
_RPC = "rpc@"

Amounts = dict[PoolId, int]
_NONE: Final[Footprint] = MappingProxyType({})
_Name = TypeVar("_Name", bound=str)


@dataclass(frozen=True, slots=True)
class Settling:
    """The charge of a reaped child, while its devices do not show the bytes as free yet.

    `strangers` are other programs' bytes just before; at `until` the charge ends in any case.
    """

    charge: Footprint
    strangers: Mapping[PoolId, int]
    until: float


class Ledger:
    """Pools, and the charge of every instance until its memory is proven free."""

    def __init__(self, pools: Mapping[PoolId, Pool], policy: Policy) -> None:
        self.policy = policy
        self.charges: dict[InstanceKey, Footprint] = {}
        self.settling: dict[InstanceKey, Settling] = {}
        self.reserved: dict[PresetId, Footprint] = {}
        self.pools: dict[PoolId, Pool] = {}
        self.measure(pools)

    def measure(self, pools: Mapping[PoolId, Pool]) -> None:
        """Replace the pools of bytes; charges and counting pools stay.

        A stopped child's charge ends once other programs seem to hold no more than before it was
        reaped, within a twentieth of the charge: then its memory is free again.
        """
        places = {pool: size for pool, size in self.pools.items() if is_counting(pool)}
        self.pools = {**pools, **places}
        if self.policy.max_loaded:
            self.pools[LOADED] = Pool(self.policy.max_loaded)
        for key, left in list(self.settling.items()):
            late = {p: size for p, size in left.charge.items() if not self._is_back(p, left)}
            if late:
                self.settling[key] = replace(left, charge=late)
            else:
                del self.settling[key]

    def _is_back(self, pool: PoolId, left: Settling) -> bool:
        now = self.pools[pool].strangers if pool in self.pools else 0
        return now - left.strangers.get(pool, 0) <= left.charge[pool] / 20

    def release(self, key: InstanceKey, now: float) -> None:
        """End the charge of a reaped child: at once, or when its devices show the bytes as free."""
        charge = self.charges.pop(key, {})
        watched = {
            pool: size
            for pool, size in charge.items()
            if pool in self.pools and self.pools[pool].watched
        }
        if watched:
            before = {pool: self.pools[pool].strangers for pool in watched}
            self.settling[key] = Settling(watched, before, now + self.policy.settle)

    def settle(self, now: float) -> list[InstanceKey]:
        """End the charges with a settle time that has run out, and return their instances."""
        late = [key for key, left in self.settling.items() if left.until <= now]
        for key in late:
            del self.settling[key]
        return late

    def charge_of(self, plan: PresetPlan, choice: Choice | None = None) -> Footprint:
        """Return what an instance takes from each pool, counting pools included.

        Without a `choice` it is for the plan's first one.
        """
        choice = choice or plan.choices[0]
        charge = self.spread(choice.footprint or {})
        if plan.reservation:
            return charge
        if self.policy.max_loaded:
            charge[LOADED] = 1
        elif choice.footprint is None:
            charge.update(dict.fromkeys(self._unmeasured(choice), 1))
        charge.update(dict.fromkeys((*_exclusive(plan), *rpc_pools(plan.endpoints)), 1))
        return charge

    def spread(self, footprint: Footprint) -> Amounts:
        """Return bytes per pool with what they take of the pools around them: memory counts once.

        A model on an integrated GPU takes main memory, and CUDA0 and Vulkan0 may be one card.
        """
        return spread(footprint, {pool: size.within for pool, size in self.pools.items()})

    def chain(self, pool: PoolId) -> list[PoolId]:
        """Return a pool and those whose memory it is a part of, from the inside to the outside."""
        found = [pool]
        while found[-1] in self.pools and (within := self.pools[found[-1]].within) is not None:
            found.append(within)
        return found

    def open_pools(self, plan: PresetPlan) -> None:
        """Make the counting pools that `plan` may be charged to, if they do not exist."""
        for choice in plan.choices:
            for pool in (*_exclusive(plan), *self._unmeasured(choice)):
                self.pools.setdefault(pool, Pool(1))
        for pool in rpc_pools(plan.endpoints):
            self.pools.setdefault(pool, Pool(1))

    def _unmeasured(self, choice: Choice) -> list[PoolId]:
        """Return the counting pools of a choice: of its devices, else of every GPU, else host."""
        of = choice.devices or self._gpus() or (PoolId(HOST),)
        devices = dict.fromkeys(map(self._card, of))
        return [PoolId(_UNMEASURED + device) for device in devices]

    def _gpus(self) -> tuple[PoolId, ...]:
        return tuple(one for one in self.pools if one != HOST and not is_counting(one))

    def _card(self, device: PoolId) -> PoolId:
        """Return the name that stands for a card which several engines call differently."""
        return [pool for pool in self.chain(device) if pool != HOST or device == HOST][-1]

    def free(self) -> Amounts:
        """Return bytes per pool that may still be promised; negative where strangers took them.

        It is total - margin - strangers - charges. A model for which a margin was lowered makes it
        negative, too: nothing else gets what it takes of the margin. Memory that a reaped child has
        not given back yet appears as other programs' too; it is counted only once.
        """
        free = {
            pool: size.total - size.margin - size.strangers for pool, size in self.pools.items()
        }
        for charge in (*self.charges.values(), *self.reserved.values()):
            add(free, charge, -1)
        owed: Amounts = {}
        for left in self.settling.values():
            add(owed, left.charge, 1)
        for pool, size in owed.items():
            shown = min(left.strangers[pool] for left in self._settling_in(pool))
            free[pool] -= max(size - max(self.pools[pool].strangers - shown, 0), 0)
        return free

    def left_by_strangers(self, kept: Iterable[InstanceKey]) -> Amounts:
        """Return the bytes per pool that other programs leave if all but `kept` are unloaded."""
        left = {
            pool: size.total - size.margin - size.strangers for pool, size in self.pools.items()
        }
        for charge in (*self.reserved.values(), *(self.charges.get(key, {}) for key in kept)):
            add(left, charge, -1)
        return left

    def _settling_in(self, pool: PoolId) -> list[Settling]:
        return [left for left in self.settling.values() if pool in left.charge]

    def unused(self, endpoints: Collection[str]) -> list[str]:
        """Return the RPC servers that no child and no dry run of ours uses."""
        held = (*self.charges.values(), *self.reserved.values())
        return [
            one
            for one, pool in zip(endpoints, rpc_pools(endpoints), strict=True)
            if not any(pool in charge for charge in held)
        ]

    def shortfall(
        self, charge: Footprint, kept: Iterable[InstanceKey], lowered: Footprint = _NONE
    ) -> str:
        """Say why `charge` can never fit beside the instances `kept`; empty if it can.

        `lowered` are the bytes of each margin that it may take. Where several devices have too
        little, it names the one that lacks the most.
        """
        room = {pool: size.total - size.margin for pool, size in self.pools.items()}
        add(room, {pool: size for pool, size in lowered.items() if pool in room}, 1)
        held: Amounts = {}
        for key in kept:
            add(held, self.charges.get(key, {}), 1)
        short: Amounts = {}
        for pool, need in charge.items():
            if pool not in room:
                known = ", ".join(p for p in self.pools if not is_counting(p)) or "none"
                return f"there is no device {pool} here (known: {known})"
            if (lack := need - room[pool] + held.get(pool, 0)) > 0:
                short[pool] = lack
        if short:
            worst = max(short, key=lambda pool: (is_counting(pool), short[pool]))
            return self._arithmetic(worst, charge[worst], held.get(worst, 0))
        return ""

    def explain(
        self, charge: Footprint, free: Mapping[PoolId, int], lowered: Footprint = _NONE
    ) -> str:
        """Return `host: needs 18.9 GiB · free 7.1 GiB · margin 1 GiB` for each pool of `charge`.

        `lowered` are the bytes of each margin that it may take: they count as free.
        """
        rows = []
        for pool, need in charge.items():
            if pool.startswith(_UNMEASURED):
                row = "memory unknown, so it is loaded alone"
                rows.append(row if free.get(pool, 0) > 0 else f"{row}: another such model is there")
                continue
            if pool.startswith(_RPC):
                if free.get(pool, 0) <= 0:
                    rows.append(f"{pool_name(pool)}: another one uses it")
                continue
            row = f"{pool_name(pool)}: needs {amount(pool, need)}"
            less = lowered.get(pool, 0)
            row += f" · free {amount(pool, max(free.get(pool, 0) + less, 0))}"
            if margin := self.pools[pool].margin - less:
                row += f" · margin {amount(pool, margin)}"
            if strangers := self.pools[pool].strangers:
                row += f" · other programs {amount(pool, strangers)}"
            rows.append(row)
        return "; ".join(dict.fromkeys(rows))

    def lacks(
        self, charge: Footprint, free: Mapping[PoolId, int], lowered: Footprint = _NONE
    ) -> str:
        """Return `needs 18.5 GiB, 8.7 GiB were free` for each pool that had too little."""
        there = {pool: free.get(pool, 0) + lowered.get(pool, 0) for pool in charge}
        short = [pool for pool, need in charge.items() if need > there[pool]]
        rows = []
        for pool in short or charge:
            have = amount(pool, max(there[pool], 0))
            if pool == LOADED:
                rows.append(f"policy.max_loaded is {self.pools[pool].total}")
            elif pool.startswith(_RPC):
                rows.append(f"the RPC server {pool.removeprefix(_RPC)} serves one at a time")
            elif is_counting(pool):
                rows.append(f"of {pool_name(pool)} one at a time")
            else:
                where = "" if pool == HOST else f" of {pool}"
                rows.append(f"needs {amount(pool, charge[pool])}{where}, {have} were free")
        return "; ".join(rows)

    def _arithmetic(self, pool: PoolId, need: int, held: int) -> str:
        size = self.pools[pool]
        stays = f" - {amount(pool, held)} kept loaded" if held else ""
        margin = f" - {amount(pool, size.margin)} margin" if size.margin else ""
        left = size.total - size.margin - held
        return (
            f"{pool_name(pool)}: needs {amount(pool, need)}, but {amount(pool, size.total)} in all"
            f"{margin}{stays} leave {amount(pool, max(left, 0))}"
        )


def spread(amounts: Mapping[_Name, int], within: Mapping[_Name, _Name | None]) -> dict[_Name, int]:
    """Return amounts, each also added to the memory that its pool lies in; `within` names that."""
    whole = dict(amounts)
    for name, size in amounts.items():
        around = within.get(name)
        while around is not None:
            whole[around] = whole.get(around, 0) + size
            around = within.get(around)
    return whole


def add(amounts: Amounts, charge: Footprint, sign: int) -> None:
    """Add (or with sign -1 take away) `charge` in place."""
    for pool, size in charge.items():
        amounts[pool] = amounts.get(pool, 0) + sign * size


def needed(charge: Footprint, lowered: Footprint) -> Footprint:
    """Return what has to be free for a charge that may take `lowered` bytes of the margins."""
    if not lowered:
        return charge
    return {pool: max(size - lowered.get(pool, 0), 0) for pool, size in charge.items()}


def fits(charge: Footprint, free: Mapping[PoolId, int]) -> bool:
    """Return whether every pool has enough left."""
    return all(size <= free.get(pool, -1) for pool, size in charge.items())


def _exclusive(plan: PresetPlan) -> list[PoolId]:
    return [PoolId(_EXCLUSIVE + group) for group in plan.groups]


def rpc_pools(endpoints: Iterable[str]) -> list[PoolId]:
    """Return the pools of one place that RPC servers are."""
    return [PoolId(_RPC + one) for one in endpoints]


def is_counting(pool: PoolId) -> bool:
    """Return whether the pool holds places, not bytes."""
    return pool == LOADED or pool.startswith((_UNMEASURED, _EXCLUSIVE, _RPC))


def pool_name(pool: PoolId) -> str:
    """Return a pool's name for messages."""
    if pool.startswith(_UNMEASURED):
        return f"{pool.removeprefix(_UNMEASURED)} (one model of unknown memory at a time)"
    if pool.startswith(_EXCLUSIVE):
        return f"group {pool.removeprefix(_EXCLUSIVE)} (exclusive)"
    if pool.startswith(_RPC):
        return f"RPC server {pool.removeprefix(_RPC)} (one model at a time)"
    return str(pool)


def amount(pool: PoolId, size: int) -> str:
    """Return bytes as a size, places as a count."""
    return str(size) if is_counting(pool) else format_size(size)
