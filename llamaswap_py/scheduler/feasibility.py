"""Finds whether a preset can fit at all, and which changes would make it fit.

`lswap check`, `estimate`, `init`, `up` and the refusal of a request all call these functions, so
they always agree. Pure: the settings that may help come as data (`Choice.remedies`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from llamaswap_py.scheduler.ledger import LOADED, Amounts, Ledger, add, is_counting, needed
from llamaswap_py.scheduler.types import Choice, Footprint, InstanceKey, PoolId, PresetPlan
from llamaswap_py.units import HOST, MIB, format_size

LEAST_MARGIN: Final = 8
"""A smaller margin is named as a remedy only if at least one such part of the margin remains."""


@dataclass(frozen=True, slots=True)
class LoadOption:
    """A choice that can fit, with its charge; `variant` is the rank of its variant."""

    choice: Choice
    charge: Footprint
    variant: int

    @property
    def need(self) -> Footprint:
        """What has to be free for it: less than its charge if a margin was lowered for it."""
        return needed(self.charge, self.choice.lowered)


def judge(
    ledger: Ledger, plan: PresetPlan, kept: Sequence[InstanceKey] = ()
) -> tuple[list[LoadOption], str]:
    """Return the choices that fit beside the instances `kept`, and why the first one does not.

    Without `prefer_fit` it returns only the first variant that can fit at all. A margin is lowered
    for one only if none fits with the whole margins.
    """
    variants = list(dict.fromkeys(map(_variant, plan.choices)))
    options: list[LoadOption] = []
    first_shortfall = ""
    for choice in plan.choices:
        charge = ledger.charge_of(plan, choice)
        shortfall = ledger.shortfall(charge, kept, choice.lowered)
        if not shortfall:
            options.append(LoadOption(choice, charge, variants.index(_variant(choice))))
        first_shortfall = first_shortfall or shortfall
    options = [one for one in options if not one.choice.lowered] or options
    if options and not plan.prefer_fit:
        best = min(option.variant for option in options)
        options = [option for option in options if option.variant == best]
    return options, first_shortfall


def _variant(choice: Choice) -> tuple[str, bool, bool]:
    return choice.variant, choice.beside, choice.passing


def remedies(
    ledger: Ledger,
    plan: PresetPlan,
    kept: Sequence[InstanceKey] = (),
    groups: Mapping[InstanceKey, str] = MappingProxyType({}),
) -> str:
    """Return the changes that make a preset fit beside `kept`, with numbers, the best first.

    It names only changes that were computed to be enough. If none is enough, it says so.
    `groups` has the persistent group of each of the `kept` that stays for that, and is not pinned.
    """
    found = [*_settings(ledger, plan, kept), *_declared(ledger, plan)]
    found += _kept_loaded(ledger, plan, kept, groups)
    found += [text for choice in plan.choices for text in _margin(ledger, plan, choice, kept)]
    found += _places(ledger, kept)
    return "; ".join(dict.fromkeys(found)) or _nothing(plan)


def footprint_text(footprint: Footprint) -> str:
    """Return `4.4 GiB` of the host, or `CUDA0 7 GiB + host 1.2 GiB`."""
    sizes = {str(pool): size for pool, size in footprint.items() if size and not is_counting(pool)}
    if set(sizes) == {HOST}:
        return format_size(sizes[PoolId(HOST)])
    return " + ".join(f"{pool} {format_size(size)}" for pool, size in sizes.items()) or "0 B"


def _settings(ledger: Ledger, plan: PresetPlan, kept: Sequence[InstanceKey]) -> Iterator[str]:
    """Yield the settings with which the preset fits."""
    for choice in plan.choices:
        for remedy in choice.remedies:
            changed = replace(choice, footprint=remedy.footprint, lowered={})
            leaner = ledger.charge_of(plan, changed)
            if not ledger.shortfall(leaner, kept):
                needs = footprint_text(remedy.footprint)
                said = f"with {remedy.words} it needs {needs} and fits"
                writes = f" (`{remedy.command}` writes that into the file)"
                yield said + (writes if remedy.command else "")


def _declared(ledger: Ledger, plan: PresetPlan) -> Iterator[str]:
    """Yield the most that may be declared, if more was declared than the device has."""
    room = _room(ledger)
    for choice in plan.choices:
        if choice.source != "declared" or plan.reservation:
            continue
        needs = choice.footprint or {}
        over = [pool for pool, need in needs.items() if pool in room and need > room[pool]]
        for pool in over:
            yield f"declare no more than `memory: {{{pool}: {_written(max(room[pool], 0))}}}`"


def _margin(
    ledger: Ledger, plan: PresetPlan, choice: Choice, kept: Sequence[InstanceKey]
) -> Iterator[str]:
    """Yield the smaller margins with which a choice fits, if they are not too small."""
    held, charge = _held(ledger, kept), ledger.charge_of(plan, choice)
    margins: Amounts = {}
    for pool, need in charge.items():
        size = ledger.pools.get(pool)
        if size is None:
            return
        left = size.total - held.get(pool, 0) - need
        if left >= size.margin:
            continue
        if is_counting(pool) or left < size.margin / LEAST_MARGIN or left <= 0:
            return
        margins[pool] = left
    if not margins:
        return
    written = ", ".join(f"{pool}: {_written(left)}" for pool, left in margins.items())
    if set(margins) == {pool for pool in ledger.pools if not is_counting(pool)}:
        written = _written(min(margins.values()))
        yield f"`memory.margin: {written}` would be enough"
    else:
        yield f"`memory.margin: {{{written}}}` would be enough"


def _kept_loaded(
    ledger: Ledger,
    plan: PresetPlan,
    kept: Sequence[InstanceKey],
    groups: Mapping[InstanceKey, str],
) -> Iterator[str]:
    """Yield the models in the way that stay: the smallest that is enough, else all together."""
    if not kept or not judge(ledger, plan, ())[0]:
        return
    enough = [key for key in kept if judge(ledger, plan, [one for one in kept if one != key])[0]]
    if enough:
        least = min(enough, key=lambda key: sum(_bytes(ledger, key).values()))
        if group := groups.get(least):
            yield (
                f"{_told(ledger, least)} stays, because the group {group} is persistent: "
                f"`persistent: false` in `groups.{group}` lets it leave"
            )
        else:
            yield f"pinned {_told(ledger, least)} is in the way: `lswap unpin {least.preset}`"
    elif not groups:
        told = ", ".join(_told(ledger, key) for key in kept)
        yield f"pinned models are in the way, unpin some: {told}"
    else:
        told = ", ".join(
            f"{_told(ledger, key)} of the persistent group {groups[key]}"
            if key in groups
            else f"pinned {_told(ledger, key)}"
            for key in kept
        )
        yield f"models that stay are in the way: {told}"


def _places(ledger: Ledger, kept: Sequence[InstanceKey]) -> Iterator[str]:
    """Yield the needed `policy.max_loaded`, if pinned models take all its places."""
    taken = _held(ledger, kept).get(LOADED, 0)
    if LOADED in ledger.pools and taken >= ledger.pools[LOADED].total:
        yield f"`policy.max_loaded: {taken + 1}` leaves a place beside them"


_SMALLER: Final = "take a smaller file of this model"


def _nothing(plan: PresetPlan) -> str:
    tried = [one for choice in plan.choices for one in choice.remedies]
    if plan.reservation:
        return "reserve less"
    if plan.kind == "program":
        return "no change of its settings makes it fit here"
    smaller = next((one.smaller for one in plan.choices if one.smaller), _SMALLER)
    if not tried:
        return f"no change of its settings makes it fit here: {smaller}"
    least = min(tried, key=lambda one: sum(one.footprint.values()))
    return (
        f"no change of its settings makes it fit here: with {least.words} it still needs "
        f"{footprint_text(least.footprint)}; {smaller}"
    )


def _told(ledger: Ledger, key: InstanceKey) -> str:
    return f"{key.preset} ({footprint_text(_bytes(ledger, key))})"


def _bytes(ledger: Ledger, key: InstanceKey) -> Footprint:
    charge = ledger.charges.get(key, {})
    return {pool: size for pool, size in charge.items() if not is_counting(pool)}


def _held(ledger: Ledger, kept: Sequence[InstanceKey]) -> Amounts:
    held: Amounts = {}
    for key in kept:
        add(held, ledger.charges.get(key, {}), 1)
    return held


def _room(ledger: Ledger) -> Amounts:
    return {pool: size.total - size.margin for pool, size in ledger.pools.items()}


def _written(size: int) -> str:
    """Return a size in the file's form, rounded down so that the preset fits."""
    if size % MIB and size < MIB:
        return f"{size}B"
    return f"{size // MIB}MiB"
