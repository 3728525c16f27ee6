"""Finds the preset that a model name means, by id or alias, and similar names."""

from __future__ import annotations

import difflib
import hashlib
import time
from collections.abc import Collection, Iterable, Mapping
from urllib.parse import unquote

from llamaswap_py.config.preset_names import spelled
from llamaswap_py.config.sections import Alias, Config
from llamaswap_py.errors import ApiError
from llamaswap_py.scheduler.ledger import fits, needed
from llamaswap_py.scheduler.lifecycle import State
from llamaswap_py.scheduler.state import SchedulerState
from llamaswap_py.scheduler.types import RPC_LOST, PresetId


class Names:
    """Every name that a client may use, and the preset behind it."""

    def __init__(
        self,
        names: Mapping[str, Iterable[str]],
        choosing: Mapping[str, Alias],
        state: SchedulerState,
        unlisted: Collection[str] = (),
    ) -> None:
        """Take the names of each preset, its id among them, and the aliases that choose.

        Names of the presets that are `unlisted` are never suggested.
        """
        self._presets = {name: preset for preset, own in names.items() for name in own}
        self._choosing = choosing
        self._state = state
        self._unlisted = frozenset(unlisted)

    def known(self, name: str) -> str | None:
        """Return how the file spells a name that a client gave, None if it has no such name."""
        if name in self._presets or name in self._choosing:
            return name
        return spelled(name, self._presets) or spelled(name, self._choosing)

    def resolve(self, name: str, seed: str = "") -> str | None:
        """Return the preset that a model name or alias means.

        `seed` decides an alias with shares: one request always gets the same answer.
        """
        if (preset := self._presets.get(name)) is not None:
            return preset
        known = self.known(name)
        if known is None:
            return None
        if (preset := self._presets.get(known)) is not None:
            return preset
        alias = self._choosing[known]
        return self._first(alias.first) if alias.first else _drawn(alias.split or {}, seed)

    def fixed(self, name: str) -> str | None:
        """Return the preset that always has this name, None where there is none."""
        return self._presets.get(name) or self._presets.get(self.known(name) or "")

    def resolve_substitute(self, when_full: str) -> str:
        """Return `substitute:NAME` with the preset that NAME means; raises ApiError."""
        if not when_full:
            return when_full
        kind, _, name = when_full.partition(":")
        if kind != "substitute" or name == "loaded":
            return when_full
        preset = self.resolve(name) or self.resolve(unquote(name))
        if preset is None:
            raise ApiError("bad_request", f"x-lswap-when-full: there is no model {name!r}")
        return f"substitute:{preset}"

    def nearest(self, name: str) -> list[str]:
        """Return up to three known names that look like `name`."""
        shown = [one for one, preset in self._presets.items() if preset not in self._unlisted]
        folded = {known.lower(): known for known in (*shown, *self._choosing)}
        close = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)
        return [folded[one] for one in close]

    def _can_load(self, name: str) -> bool:
        """Return whether there is such a preset, and no RPC server that it needs is gone."""
        preset = self._state.presets.get(PresetId(name))
        if preset is None:
            return False
        failure = preset.plan.problem or preset.failure
        if failure is None or failure.kind != RPC_LOST or preset.serving is not None:
            return True
        return preset.plan.problem is None and time.monotonic() >= preset.retry_at

    def _first(self, presets: tuple[str, ...]) -> str:
        """Return the first that is ready, else the first that fits, else the first.

        One whose RPC server is gone is passed over, if there is another.
        """
        known = [one for one in presets if self._can_load(one)]
        for one in known:
            serving = self._state.presets[PresetId(one)].serving
            if serving is not None and serving.state is State.READY and serving.gate_for is None:
                return one
        ledger = self._state.ledger
        free = ledger.free()
        for one in known:
            preset = self._state.presets[PresetId(one)]
            if preset.serving is not None:
                return one
            plan = preset.plan
            if plan.problem is None and any(
                fits(needed(ledger.charge_of(plan, choice), choice.lowered), free)
                for choice in plan.choices
            ):
                return one
        return known[0] if known else presets[0]


def names_of(config: Config, state: SchedulerState) -> Names:
    """Return all names of a configuration."""
    names = {name: (name, *one.other_names) for name, one in config.models.items()}
    unlisted = [name for name, one in config.models.items() if one.unlisted]
    return Names(names, config.aliases, state, unlisted)


def _drawn(shares: Mapping[str, int], seed: str) -> str:
    """Return one of the names, by chance: as often as its share says."""
    digest = hashlib.sha256(seed.encode()).digest()
    at = int.from_bytes(digest[:8], "big") % sum(shares.values())
    for name, share in shares.items():
        at -= share
        if at < 0:
            return name
    raise AssertionError("the shares are above 0")
