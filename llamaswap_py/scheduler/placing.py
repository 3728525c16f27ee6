"""Which of a preset's choices to load: pure comparisons of variants and placements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamaswap_py.scheduler.ledger import Amounts, fits, is_counting
from llamaswap_py.scheduler.records import Choice, Footprint, InstanceKey
from llamaswap_py.scheduler.world import Instance, Preset, World


@dataclass(frozen=True, slots=True)
class Option:
    """A choice that can fit, with its charge; `variant` is the rank of its variant."""

    choice: Choice
    charge: Footprint
    variant: int


def possible_options(
    world: World, preset: Preset, kept: Sequence[InstanceKey]
) -> tuple[list[Option], str]:
    """Return the choices that fit beside the instances `kept`, and why the first one does not.

    Without `prefer_fit` only the first variant that can fit at all is left.
    """
    plan = preset.plan
    variants = list(dict.fromkeys(choice.variant for choice in plan.choices))
    options: list[Option] = []
    first_shortfall = ""
    for choice in plan.choices:
        charge = world.ledger.charge_of(plan, choice)
        shortfall = world.ledger.shortfall(charge, kept)
        if not shortfall:
            options.append(Option(choice, charge, variants.index(choice.variant)))
        first_shortfall = first_shortfall or shortfall
    if options and not plan.prefer_fit:
        best = min(option.variant for option in options)
        options = [option for option in options if option.variant == best]
    return options, first_shortfall


def best_fit(options: Sequence[Option], free: Amounts, coming: Amounts) -> Option | None:
    """Return the option to load without evicting anybody, None if there is none.

    The best variant; of its placements one device before a split, then the one that leaves least.
    """
    fitting = [one for one in options if fits(one.charge, free) and fits(one.charge, coming)]
    return min(fitting, key=lambda one: _fit_rank(one, free), default=None)


def _fit_rank(option: Option, free: Amounts) -> tuple[int, int, int]:
    touched = [pool for pool in option.charge if not is_counting(pool)]
    left = sum(free[pool] - option.charge[pool] for pool in touched)
    return option.variant, len(option.choice.devices), left


def waking_option(world: World, sleeping: Instance) -> Option:
    """Return what waking takes: what the instance gave back when it fell asleep."""
    full = world.ledger.charge_of(sleeping.plan, sleeping.choice)
    extra = {pool: size - sleeping.charge.get(pool, 0) for pool, size in full.items()}
    return Option(sleeping.choice, {pool: size for pool, size in extra.items() if size > 0}, 0)
