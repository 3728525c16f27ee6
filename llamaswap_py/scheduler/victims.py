"""Who gives way: pure choices over sets of instances."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llamaswap_py.scheduler.ledger import Amounts, add, fits
from llamaswap_py.scheduler.records import Footprint
from llamaswap_py.scheduler.world import Instance


def choose_idle(
    charge: Footprint, free: Amounts, idle: Iterable[Instance]
) -> list[Instance] | None:
    """Return idle instances whose memory makes `charge` fit, least recently used first.

    Returns None if even all of them do not suffice. Ties go to the name, so that equal states
    give equal choices.
    """
    order = sorted(idle, key=lambda one: (one.last_used, one.key))
    return enough(charge, free, order)


def enough(charge: Footprint, free: Amounts, order: Sequence[Instance]) -> list[Instance] | None:
    """Take instances in `order` until `charge` fits, then put back each one not needed after all.

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
