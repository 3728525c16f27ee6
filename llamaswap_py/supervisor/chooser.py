"""Chooses the context, layers and slots of presets, and keeps to them until a reason to change.

Reasons are another file, clearly more or less memory for ten minutes, and a load that ran out of
memory. It also chooses one more variant, which fits beside the models of the last day.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from llamaswap_py.estimate.files import FileIdentity, identify
from llamaswap_py.estimate.types import EstimateError, fits_in
from llamaswap_py.llamacpp.memory_settings import OF_CONTEXT
from llamaswap_py.scheduler.types import Choice
from llamaswap_py.supervisor.chosen_ways import (
    Beside,
    ChosenWay,
    beside,
    choose_beside,
    choose_ways,
    chooses,
    least_beside,
)
from llamaswap_py.supervisor.rooms import DeviceRoom, bytes_of, outer_of, positive, room_for
from llamaswap_py.supervisor.step_downs import StepDown, StepDowns
from llamaswap_py.supervisor.ways import may_fit, wanted_for

if TYPE_CHECKING:
    from llamaswap_py.estimate import Estimate
    from llamaswap_py.estimate.fitter import FitStep, Fitter
    from llamaswap_py.supervisor.memory_budgets import Budgets
    from llamaswap_py.supervisor.prepare import Prepared

_log: Final = logging.getLogger("lswap")
_CHANGE: Final = 0.1
"""The share by which the memory for a preset has to change before lswap chooses anew for it."""
_STEADY: Final = 600.0
"""The seconds for which it has to stay changed."""

Room: TypeAlias = Mapping[str, int]
"""Bytes per device."""
_Files: TypeAlias = tuple[FileIdentity, ...] | None
InUse: TypeAlias = Mapping[str, Sequence[Room]]
"""Models in use, and the bytes per device that each may take."""


@dataclass(slots=True)
class _Variant:
    """What was chosen for one variant of a preset.

    `step` is the step of `choices`. `after` and `after_beside` are the ranks of steps that ran out
    of memory.
    """

    choices: tuple[Choice, ...] = ()
    files: Sequence[FileIdentity] = ()
    step: FitStep | None = None
    rank: int = 0
    after: int = -1
    after_beside: int = -1
    beside: tuple[Choice, ...] = ()
    beside_rank: int = -1
    names: tuple[str, ...] = ()
    """The models that `beside` fits beside."""
    in_use: InUse = field(default_factory=dict)
    """The models that `beside` was chosen for."""
    seen: InUse = field(default_factory=dict)
    """The models that were in use at the last look."""
    is_kept: bool = True
    """Whether `after` and `after_beside` are on the disk."""


@dataclass(slots=True)
class _Chosen:
    """What was chosen for a preset, and for which bytes per device."""

    room: Room
    variants: dict[str, _Variant] = field(default_factory=dict)
    changed_at: float | None = None
    """Since when the memory that it could have has been clearly more or less."""


class Chooser:
    """Owns the choices of all presets.

    `estimated` returns a choice with its footprint as it is known now. `found` is given the
    estimate of each new choice.
    """

    def __init__(
        self,
        prepared: Mapping[str, Prepared],
        budgets: Budgets,
        fitter: Fitter,
        cache_ram: int,
        estimated: Callable[[str, Choice], Awaitable[Choice]],
        found: Callable[[str, Choice, Estimate], None],
    ) -> None:
        self._prepared = prepared
        self._budgets = budgets
        self._fitter = fitter
        self._cache_ram = cache_ram
        self._estimated = estimated
        self._found = found
        self._chosen: dict[str, _Chosen] = {}
        self._step_downs = StepDowns()

    @property
    def known(self) -> frozenset[str]:
        """The presets for which something was chosen."""
        return frozenset(self._chosen)

    def forget(self, presets: Collection[str]) -> None:
        """Drop the choices of these, so that lswap chooses anew for them."""
        self._chosen = {name: one for name, one in self._chosen.items() if name not in presets}

    async def choose(self, preset: str, prepared: Prepared, variant: str) -> list[Choice]:
        """Return the choices of a variant: those of before, as long as they fit."""
        rooms = self._budgets.rooms(preset, prepared.ways[variant].preset)
        chosen = self._chosen.setdefault(preset, _Chosen(positive(rooms[0].whole)))
        files = await asyncio.to_thread(identities, prepared.ways[variant].files)
        known = chosen.variants.get(variant)
        kept: list[Choice] = []
        if known is None or (files is not None and files != known.files):
            known = chosen.variants[variant] = _Variant(files=files or ())
            await self._recall(prepared, variant, known, chosen.room, files)
        elif known.choices:
            kept = [await self._estimated(preset, one) for one in known.choices]
            devices = self._budgets.devices
            if any(may_fit(one, room.whole, devices) for one in kept for room in rooms):
                known.choices = tuple(kept)
                kept = []
        if not known.is_kept:
            await self._keep(prepared, variant, known, chosen.room, files)
        if not known.choices or kept:
            await self._choose(preset, prepared, variant, known, rooms)
        # What runs with an earlier choice is charged for it, even if that does not fit any more.
        words = {(one.devices, one.words) for one in known.choices}
        kept = [one for one in kept if (one.devices, one.words) not in words]
        try:
            found = await self._choose_beside(
                preset, prepared, variant, known, positive(rooms[0].whole)
            )
        except EstimateError as error:
            _log.warning("%s: no variant that fits beside other models: %s", preset, error)
            found = []
        known.beside = tuple(found)
        return [*known.choices, *known.beside, *kept]

    async def _choose(
        self,
        preset: str,
        prepared: Prepared,
        variant: str,
        known: _Variant,
        rooms: Sequence[DeviceRoom],
    ) -> None:
        asked = (prepared, variant, self._budgets.devices, self._fitter, self._cache_ram, rooms)
        ways = await choose_ways(*asked, after=known.after)
        if known.after >= 0 and all(way.rank is None for way in ways):
            # There is nothing less, so its load is not repeated when it runs out of memory again.
            ways = [_as_last(one) for one in await choose_ways(*asked)]
        self._record(preset, ways)
        known.choices = tuple(way.choice for way in ways)
        known.rank = max((way.rank or 0 for way in ways), default=0)
        known.step = next((way.step for way in ways if way.rank is not None), None)

    def _record(self, preset: str, ways: Iterable[ChosenWay]) -> None:
        for way in ways:
            self._found(preset, way.choice, way.estimate)

    # Beside the models in use

    async def _choose_beside(
        self,
        preset: str,
        prepared: Prepared,
        variant: str,
        known: _Variant,
        room: Room,
    ) -> list[Choice]:
        """Return choices with less context that fit beside the models in use, if any are needed."""
        before, known.in_use = known.in_use, self._budgets.in_use(preset)
        known.seen = known.in_use
        if not known.in_use or not has_beside(prepared, variant) or known.step is None:
            return []
        devices, step = self._budgets.devices, known.step
        after = max(step.rank, known.after_beside)
        asked = (prepared, variant, devices, self._fitter, self._cache_ram)
        needs = await least_beside(*asked, step, after=after)
        others = beside(known.in_use, needs, room, devices)
        if not others.names or self._any_fits(known.choices, others):
            return []
        known.names = others.names
        if not _others_differ(before, known.in_use):
            kept = [await self._estimated(preset, one) for one in known.beside]
            if self._any_fits(kept, others):
                return kept
        ways = await choose_beside(*asked, others, step, after=after)
        self._record(preset, ways)
        known.beside_rank = max((way.rank or 0 for way in ways), default=-1)
        return [way.choice for way in ways]

    # What other programs leave

    async def choose_for_leftovers(
        self, preset: str, prepared: Prepared, left: Room
    ) -> list[Choice]:
        """Return the ways to load a preset that fit into what other programs leave now."""
        found: list[Choice] = []
        devices = self._budgets.devices
        for variant in prepared.ways:
            if not chooses(prepared, variant):
                continue
            usual = room_for(prepared.ways[variant].preset, devices, {})
            room = {
                one.id: max(left.get(one.id, 0) - (one.total - one.margin - usual[one.id]), 0)
                for one in devices
            }
            asked = (prepared, variant, devices, self._fitter, self._cache_ram, [DeviceRoom(room)])
            ways = [one for one in await choose_ways(*asked) if one.rank is not None]
            self._record(preset, ways)
            found += [_passing(one.choice) for one in ways]
        return found

    # After a load that ran out of memory

    def reduce(self, preset: str, failed: Choice) -> None:
        """Have the next step chosen after one that ran out of memory, until something changes."""
        chosen = self._chosen.get(preset)
        known = None if chosen is None else chosen.variants.get(failed.variant)
        if known is None:
            return
        if failed.beside:
            known.after_beside, known.beside = known.beside_rank, ()
        else:
            known.after, known.choices, known.step = known.rank, (), None
        known.is_kept = False

    async def _recall(
        self, prepared: Prepared, variant: str, known: _Variant, room: Room, files: _Files
    ) -> None:
        """Skip what ran out of memory in an earlier run, unless the memory has clearly changed."""
        key = self._key(prepared, variant, files)
        failed = await asyncio.to_thread(self._step_downs.read, key) if key else None
        if failed is None:
            return
        if differs(failed.room, room):
            await asyncio.to_thread(self._step_downs.discard, key)
        else:
            known.after, known.after_beside = failed.rank, failed.beside

    async def _keep(
        self, prepared: Prepared, variant: str, known: _Variant, room: Room, files: _Files
    ) -> None:
        """Keep what ran out of memory for later runs."""
        known.is_kept = True
        if key := self._key(prepared, variant, files):
            failed = StepDown(dict(room), known.after, known.after_beside)
            await asyncio.to_thread(self._step_downs.write, key, failed)

    def _key(self, prepared: Prepared, variant: str, files: _Files) -> str:
        """Return a key of a variant with its files, engine and devices; "" if a file is gone."""
        bare = Choice(None, (), variant, "unknown")
        wanted = wanted_for(prepared, bare, self._budgets.devices, self._cache_ram)
        return "" if wanted is None or files is None else wanted.key(files, exact=True)

    # When to choose anew

    def outgrown(self, loaded: Collection[str], now: float) -> list[str]:
        """Return the presets whose memory has been clearly more or less for long, by `now`.

        A preset that is loaded keeps what it runs with.
        """
        due = []
        for preset, chosen in self._chosen.items():
            if preset not in self._prepared or preset in loaded:
                continue
            budget = self._budgets.rooms(preset, self._prepared[preset].preset)[0]
            room = positive(budget.whole)
            if not differs(chosen.room, room):
                chosen.changed_at = None
            elif chosen.changed_at is None:
                chosen.changed_at = now
            elif now - chosen.changed_at >= _STEADY:
                due.append(preset)
        return due

    def _any_fits(self, choices: Iterable[Choice], others: Beside) -> bool:
        within = outer_of(self._budgets.devices)
        return any(fits_in(bytes_of(one.footprint), others.left, within) for one in choices)

    def _is_crowded(self, preset: str, known: _Variant, in_use: InUse) -> bool:
        """Return whether no way beside others fits there any more, as one of them takes more."""
        room = positive(self._budgets.rooms(preset, self._prepared[preset].preset)[0].whole)
        others = {name: in_use[name] for name in known.names if name in in_use}
        needs = [bytes_of(one.footprint) for one in known.beside]
        found = beside(others, needs, room, self._budgets.devices)
        return bool(needs) and found.names != tuple(others)

    def in_other_company(self, loaded: Collection[str]) -> list[str]:
        """Return the presets whose choices were made for other models in use than there are now.

        A preset that is loaded keeps what it runs with.
        """
        due = []
        for preset, chosen in self._chosen.items():
            if preset not in self._prepared or preset in loaded:
                continue
            in_use = self._budgets.in_use(preset)
            for variant, known in chosen.variants.items():
                is_open = known.step is not None and has_beside(self._prepared[preset], variant)
                if not is_open:
                    continue
                if _others_differ(known.seen, in_use) or self._is_crowded(preset, known, in_use):
                    known.seen = in_use
                    due.append(preset)
        return list(dict.fromkeys(due))


def has_beside(prepared: Prepared, variant: str) -> bool:
    """Return whether lswap may add a choice with less context to a variant.

    An entry that has variants, or gives a context, says itself how the model is to run.
    """
    way = prepared.ways[variant]
    return (
        way.preset.fit.variants == "auto"
        and not prepared.preset.variants
        and not OF_CONTEXT & way.said
    )


def identities(files: Sequence[str]) -> tuple[FileIdentity, ...] | None:
    """Return the identities of a preset's files; None if one is gone. Blocks."""
    try:
        return identify(files)
    except EstimateError:
        return None


def differs(before: Room, now: Room) -> bool:
    """Return whether the memory of a device is clearly more or less than before."""
    return any(
        abs(now.get(device, 0) - size) > _CHANGE * max(size, 1) for device, size in before.items()
    )


def _others_differ(before: InUse, now: InUse) -> bool:
    """Return whether other models are in use, or one takes clearly more or less."""
    if before.keys() != now.keys():
        return True
    return any(
        len(before[name]) != len(ways) or any(map(differs, before[name], ways))
        for name, ways in now.items()
    )


def _as_last(way: ChosenWay) -> ChosenWay:
    """Return a way that ran out of memory, and below which there is nothing less."""
    choice = way.choice
    said = choice.chosen and f"{choice.chosen}; a load ran out of memory, and there is nothing less"
    return replace(way, choice=replace(choice, leaner=False, chosen=said))


def _passing(choice: Choice) -> Choice:
    said = choice.chosen and f"{choice.chosen}, as other programs leave no more"
    return replace(choice, passing=True, leaner=False, chosen=said)
