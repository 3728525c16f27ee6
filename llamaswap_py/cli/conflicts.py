"""Finds presets that can never be loaded beside those that stay loaded, for `lswap check`.

Each of these presets fits alone, so no other check finds them. The scheduler would refuse every
request for the one that is loaded second. Memory that could not be estimated does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from llamaswap_py.config.sections import Config
from llamaswap_py.devices import Device
from llamaswap_py.scheduler.feasibility import remedies
from llamaswap_py.scheduler.ledger import Ledger
from llamaswap_py.scheduler.types import Choice, InstanceKey, PresetPlan
from llamaswap_py.supervisor.prepare import policy_of, pools_of


def conflicts(
    config: Config, plans: Sequence[PresetPlan], devices: tuple[Device, ...]
) -> Iterator[tuple[str, str]]:
    """Yield each preset that has no room beside the pinned ones, and why.

    `plans` has the presets that could be loaded alone.
    """
    ledger = Ledger(pools_of(devices), policy_of(config))
    for plan in plans:
        ledger.open_pools(plan)
    # The pinned ones first, in the file's order: a later one may find no room.
    for plan in sorted(plans, key=lambda one: not one.pin):
        shortfall = _settle(plan, ledger)
        if shortfall:
            kept = [key for key in ledger.charges if key.preset != plan.preset]
            pinned = ", ".join(key.preset for key in kept)
            why = f"it can never be loaded while {pinned} stays (`pin` or `keep`) - {shortfall}"
            yield plan.preset, f"{why} - {remedies(ledger, plan, kept)}"


def shut_out(
    config: Config, plans: Sequence[PresetPlan], devices: tuple[Device, ...]
) -> Iterator[tuple[str, str]]:
    """Yield each preset that has no room beside a model of a persistent group, and why.

    It can be loaded as long as no such model is loaded, and never after that.
    """
    for group in (name for name, one in config.groups.items() if one.persistent):
        members = [one for one in plans if group in one.persistent and not one.pin]
        for plan in plans:
            if group in plan.persistent:
                continue
            found = [(one, _beside(config, devices, plan, one, group)) for one in members]
            shut = [(one.preset, why) for one, why in found if why]
            if shut:
                names, (first, why) = " or ".join(name for name, _ in shut), shut[0]
                once = f"it can never be loaded once {names} is loaded"
                stays = f"because the group {group} is persistent"
                yield plan.preset, f"{once}, {stays}; beside {first}: {why}"


def _beside(
    config: Config, devices: tuple[Device, ...], plan: PresetPlan, other: PresetPlan, group: str
) -> str:
    """Return why a preset does not fit beside one of a persistent group, with the remedy."""
    ledger = Ledger(pools_of(devices), policy_of(config))
    for one in (plan, other):
        ledger.open_pools(one)
    _settle(replace(other, pin=True), ledger)
    kept = list(ledger.charges)
    shortfall = _settle(replace(plan, pin=False), ledger)
    if not shortfall:
        return ""
    return f"{shortfall} - {remedies(ledger, plan, kept, dict.fromkeys(kept, group))}"


def _settle(plan: PresetPlan, ledger: Ledger) -> str:
    """Enter a pinned preset into the ledger where it fits; else return why it does not fit."""
    first = ""
    for choice in plan.choices:
        charge = ledger.charge_of(plan, _known(choice))
        shortfall = ledger.shortfall(charge, ledger.charges, choice.lowered)
        if not shortfall:
            if plan.pin:
                ledger.charges[InstanceKey(plan.preset, 0)] = charge
            return ""
        first = first or shortfall
    return first


def _known(choice: Choice) -> Choice:
    """Return a choice with the declared memory alone."""
    return replace(choice, footprint=choice.footprint or {})
