"""Which of a preset's choices to load: pure comparisons of variants and placements."""

from __future__ import annotations

from collections.abc import Sequence

from llamaswap_py.scheduler.judging import Option
from llamaswap_py.scheduler.ledger import Amounts, fits, is_counting
from llamaswap_py.scheduler.world import Instance, World


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
