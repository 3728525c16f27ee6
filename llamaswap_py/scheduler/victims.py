"""Chooses the idle instances to evict: pure choices over sets of instances."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

from llamaswap_py.scheduler.ledger import Amounts, add, fits
from llamaswap_py.scheduler.state import Instance
from llamaswap_py.scheduler.types import Footprint, InstanceKey

EXACT = 10
"""Up to this many candidates all sets are tried; with more, the cheapest instances come first."""


def choose_idle(
    charge: Footprint,
    free: Amounts,
    idle: Sequence[Instance],
    cost: Callable[[Instance], float],
) -> list[Instance] | None:
    """Return the idle instances to evict so that `charge` fits at the least reload cost.

    Returns None if even all of them are not enough. Ties go to the smaller set, then to the least
    recently used, then to the name, so that equal states give equal choices.
    """
    costs = {one.key: cost(one) for one in idle}
    order = sorted(idle, key=lambda one: (costs[one.key], one.last_used, one.key))
    greedy = enough(charge, free, order)
    if greedy is None or len(order) > EXACT:
        return greedy

    def rank(chosen: list[Instance]) -> tuple[float, int, list[tuple[float, InstanceKey]]]:
        worth = math.fsum(costs[one.key] for one in chosen)
        return worth, len(chosen), sorted((one.last_used, one.key) for one in chosen)

    best = min(_sufficient(charge, free, order), key=rank)
    return sorted(best, key=lambda one: (one.last_used, one.key))


def _sufficient(
    charge: Footprint, free: Amounts, order: list[Instance]
) -> Iterator[list[Instance]]:
    for size in range(1, len(order) + 1):
        for chosen in combinations(order, size):
            room = dict(free)
            for one in chosen:
                add(room, one.charge, 1)
            if fits(charge, room):
                yield list(chosen)


def enough(charge: Footprint, free: Amounts, order: Sequence[Instance]) -> list[Instance] | None:
    """Take instances in `order` until `charge` fits, then put back those that are not needed.

    The second pass goes from the last taken to the first, so what was preferred stays chosen.
    """
    room = dict(free)
    taken: list[Instance] = []
    for one in order:
        if fits(charge, room):
            break
        if _helps(one, charge, room):
            add(room, one.charge, 1)
            taken.append(one)
    if not fits(charge, room):
        return None
    for one in reversed(list(taken)):
        add(room, one.charge, -1)
        if fits(charge, room):
            taken.remove(one)
        else:
            add(room, one.charge, 1)
    return taken


def _helps(one: Instance, charge: Footprint, room: Amounts) -> bool:
    """Return whether it holds any pool that `charge` is short of."""
    return any(
        need > room.get(pool, 0) and one.charge.get(pool, 0) > 0 for pool, need in charge.items()
    )
