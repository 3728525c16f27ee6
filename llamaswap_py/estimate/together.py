"""Which presets fit together, and which would have to give way. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Final

Needs = Mapping[str, Mapping[str, int]]
"""Preset -> bytes per device."""

EXACT: Final = 12
"""Up to so many presets every set is looked at; with more, sets are grown in the file's order."""


def fits(names: Sequence[str], needs: Needs, room: Mapping[str, int]) -> bool:
    """Return whether all of `names` fit at once; a device that is not there has no room."""
    used: dict[str, int] = {}
    for name in names:
        for device, size in needs[name].items():
            used[device] = used.get(device, 0) + size
    return all(size <= room.get(device, 0) for device, size in used.items() if size)


def largest_sets(needs: Needs, room: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Return the sets that fit and to which nothing can be added, the largest first."""
    names = [name for name in needs if fits([name], needs, room)]
    if len(names) > EXACT:
        grown = {_grown([name], names, needs, room) for name in names}
        return sorted(grown, key=lambda one: (-len(one), [names.index(each) for each in one]))
    found: list[tuple[str, ...]] = []
    for size in range(len(names), 0, -1):
        for chosen in combinations(names, size):
            inside = any(set(chosen) <= set(larger) for larger in found)
            if not inside and fits(chosen, needs, room):
                found.append(chosen)
    return found


def evicted_for(
    name: str, loaded: Sequence[str], needs: Needs, room: Mapping[str, int]
) -> tuple[str, ...] | None:
    """Return the smallest set of `loaded` whose going makes room for `name`.

    Of sets of one size it is the one with the fewest bytes. () if nothing has to go, None if it
    does not fit even alone. The scheduler also weighs how soon each would be wanted again.
    """
    others = [one for one in loaded if one != name]
    if not fits([name], needs, room):
        return None
    if len(others) > EXACT:
        kept = _grown([name], others, needs, room)
        return tuple(one for one in others if one not in kept)
    for size in range(len(others) + 1):
        sets = [
            gone
            for gone in combinations(others, size)
            if fits([name, *(one for one in others if one not in gone)], needs, room)
        ]
        if sets:
            return min(sets, key=lambda gone: sum(sum(needs[one].values()) for one in gone))
    return None


def _grown(
    start: Sequence[str], names: Sequence[str], needs: Needs, room: Mapping[str, int]
) -> tuple[str, ...]:
    chosen = list(start)
    for name in names:
        if name not in chosen and fits([*chosen, name], needs, room):
            chosen.append(name)
    order = {name: at for at, name in enumerate(names)}
    return tuple(sorted(chosen, key=lambda one: order.get(one, -1)))
