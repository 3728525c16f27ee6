"""Chooses what a preset runs as on each placement, where its file leaves things open.

`lswap up`, `check`, `estimate` and `init` all choose here, so that they choose alike.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from llamaswap_py.config.preset import Preset
from llamaswap_py.devices import Device
from llamaswap_py.estimate import Estimate, Wanted
from llamaswap_py.estimate.fitter import FitStep, Fitted, Fitter, FitWish, Tried
from llamaswap_py.estimate.types import fits_in
from llamaswap_py.llamacpp.context_size import least_context
from llamaswap_py.scheduler.ledger import spread
from llamaswap_py.scheduler.types import Choice, PoolId
from llamaswap_py.supervisor.prepare import LoadWay, Prepared
from llamaswap_py.supervisor.rooms import DeviceRoom, lowered_for, outer_of, positive
from llamaswap_py.supervisor.ways import placements, wanted_for, weighed
from llamaswap_py.units import HOST, format_size

_ATTEMPTS: Final = 6
"""How often a device is given less of the memory that it shares, before nothing fits."""


@dataclass(frozen=True, slots=True)
class ChosenWay:
    """One placement of a variant, with what was chosen for it and the steps that were tried.

    `rank` is the place of the chosen step in the order of preference; None if nothing fits. `step`
    is None also where nothing is open.
    """

    choice: Choice
    estimate: Estimate
    tried: tuple[Tried, ...]
    rank: int | None
    step: FitStep | None = None


def chooses(prepared: Prepared, variant: str) -> bool:
    """Return whether lswap may choose anything of a variant."""
    preset = prepared.ways[variant].preset
    return preset.fit.chooses and preset.memory is None and prepared.engine is not None


def wish_of(preset: Preset) -> FitWish:
    """Return what the file wishes of the choice; `fit-ctx` in `args` is its least context."""
    least = least_context(preset) or preset.fit.least
    return FitWish(least, max(preset.fit.want, least), preset.fit.favor)


async def choose_ways(
    prepared: Prepared,
    variant: str,
    devices: tuple[Device, ...],
    fitter: Fitter,
    cache_ram: int,
    rooms: Sequence[DeviceRoom],
    *,
    after: int = -1,
) -> list[ChosenWay]:
    """Return the best ways to load a variant, those on the fewest and smallest devices first.

    Each of `rooms` is tried if nothing fits into those before it, and then with smaller margins. If
    nothing fits at all, every placement is returned with the step that lacks the least memory, so
    that messages can say how much is missing. `after` is the rank of a step that ran out of memory:
    only later ones are tried. Raises EstimateError.
    """

    async def fitted(room: Mapping[str, int], whole: Mapping[str, int]) -> list[ChosenWay]:
        return await _choose_each(
            prepared, variant, devices, fitter, cache_ram, room, whole, after=after
        )

    found: list[ChosenWay] = []
    for room in _distinct(rooms):
        found = await fitted(room.whole, room.whole)
        if _fits(found):
            return _best(found, devices)
        if room.less and _fits(least := await fitted(room.less[-1], room.whole)):
            for less in room.less[:-1]:
                if _fits(ways := await fitted(less, room.whole)):
                    return _best(ways, devices)
            return _best(least, devices)
    return found


@dataclass(frozen=True, slots=True)
class Beside:
    """The models in use that a way has to fit beside, and the bytes that they leave per device."""

    names: tuple[str, ...]
    left: Mapping[str, int]


def beside(
    others: Mapping[str, Sequence[Mapping[str, int]]],
    needs: Sequence[Mapping[str, int]],
    room: Mapping[str, int],
    devices: Sequence[Device],
) -> Beside:
    """Return as many of `others` as leave place for one of `needs`, in their order.

    Both are bytes per device, for each placement. A model counts on the one of its placements that
    leaves the most on the device with the least left.
    """
    names: list[str] = []
    left = dict(room)
    within = outer_of(devices)
    for name, ways in others.items():
        rests = []
        for way in ways:
            taken = spread(way, within)
            rest = {device: size - taken.get(device, 0) for device, size in left.items()}
            if min(rest.values()) >= 0 and any(fits_in(one, rest, within) for one in needs):
                rests.append(rest)
        if rests:
            left = max(rests, key=lambda rest: sorted(rest.values()))
            names.append(name)
    return Beside(tuple(names), left)


async def choose_beside(
    prepared: Prepared,
    variant: str,
    devices: tuple[Device, ...],
    fitter: Fitter,
    cache_ram: int,
    others: Beside,
    lower: FitStep,
    *,
    after: int = -1,
) -> list[ChosenWay]:
    """Return the best ways to load a variant beside `others`, with less context than `lower`.

    Nothing is returned if there is no such way. `after` is the rank of a step that ran out of
    memory. Raises EstimateError.
    """
    said = f"to fit beside {listed(others.names)}"
    asked = (prepared, variant, devices, fitter, cache_ram, others.left, others.left)
    found = await _choose_each(*asked, after=after, lower=lower, said=said)
    found = [one for one in found if one.rank is not None]
    return _best(found, devices) if found else []


async def least_beside(
    prepared: Prepared,
    variant: str,
    devices: tuple[Device, ...],
    fitter: Fitter,
    cache_ram: int,
    lower: FitStep,
    *,
    after: int = -1,
) -> list[Mapping[str, int]]:
    """Return what a variant takes on each placement with the least context that may be chosen.

    Placements where that is not less than with `lower` are left out. Raises EstimateError.
    """
    way, known = prepared.ways[variant], _options(prepared)
    found: list[Mapping[str, int]] = []
    for placement in placements(prepared.as_variant(variant), devices):
        choice = Choice(None, placement, variant, "unknown")
        wanted = wanted_for(prepared, choice, devices, cache_ram)
        assert wanted is not None, "nothing is chosen for a preset without an engine"
        wish = wish_of(way.preset)
        least = await fitter.lightest(
            wanted, wish, said=way.said, known=known, after=after, lower=lower
        )
        found += [] if least is None else [least]
    return found


def _distinct(rooms: Sequence[DeviceRoom]) -> list[DeviceRoom]:
    return [one for at, one in enumerate(rooms) if one not in rooms[:at]]


def _fits(ways: Sequence[ChosenWay]) -> bool:
    return any(one.rank is not None for one in ways)


async def _choose_each(
    prepared: Prepared,
    variant: str,
    devices: tuple[Device, ...],
    fitter: Fitter,
    cache_ram: int,
    room: Mapping[str, int],
    whole: Mapping[str, int],
    *,
    after: int,
    lower: FitStep | None = None,
    said: str = "",
) -> list[ChosenWay]:
    """Fit each placement into `room`; `whole` is the same with the whole margins."""
    way = prepared.ways[variant]
    found: list[ChosenWay] = []
    for placement in placements(prepared.as_variant(variant), devices):
        choice = Choice(None, placement, variant, "unknown")
        wanted = wanted_for(prepared, choice, devices, cache_ram)
        assert wanted is not None, "nothing is chosen for a preset without an engine"
        fitted = await _fit(
            prepared, way, wanted, devices, fitter, positive(room), after=after, lower=lower
        )
        step = fitted.step
        if step is None and fitted.closest is not None:  # it says how much is missing
            choice = replace(choice, words=fitted.closest.words)
        elif step is not None:
            why = said or f"for {_room_text(placement, devices, positive(room))}"
            if text := step.text(wanted.gpus):
                text += f": chosen {why}"
            if text and after > (-1 if lower is None else lower.rank):
                text += ", and less than that, because a load ran out of memory"
            choice = replace(
                choice,
                words=step.words,
                chosen=text,
                leaner=after < 0 or lower is not None,
                beside=lower is not None,
            )
        rank = (0 if step is None else step.rank) if fitted.fits else None
        if rank is not None and room is not whole:
            choice = _with_lowered(choice, fitted.estimate, devices, whole, room)
        if (smaller := fitted.smaller) is not None:
            text = (
                f"take {smaller.quantisation} of this model ({format_size(smaller.size)}): it "
                f"would run with {smaller.step.text(wanted.gpus) or 'what the file says'}"
            )
            choice = replace(choice, smaller=text)
        choice = weighed(prepared, choice, fitted.estimate)
        found.append(ChosenWay(choice, fitted.estimate, fitted.tried, rank, step))
    return found


async def _fit(
    prepared: Prepared,
    way: LoadWay,
    wanted: Wanted,
    devices: Sequence[Device],
    fitter: Fitter,
    room: Mapping[str, int],
    *,
    after: int,
    lower: FitStep | None,
) -> Fitted:
    """Fit into the room of every device, and into that of the memory which several share.

    The fitter knows devices one by one. Where one is part of another, as an integrated GPU of main
    memory, it gets less until both together have room. The same holds for the quantisation that
    is named where nothing fits.
    """
    known = _options(prepared)
    left = dict(room)
    refused: Fitted | None = None
    for _ in range(_ATTEMPTS):
        fitted = await fitter.fit(
            wanted,
            left,
            wish_of(way.preset),
            said=way.said,
            known=known,
            after=after,
            lower=lower,
        )
        if fitted.fits:
            footprint: Mapping[str, int] = fitted.estimate.footprint
        elif fitted.smaller is not None:
            footprint = fitted.smaller.footprint
            refused = refused or fitted
        else:
            return replace(refused, smaller=None) if refused else fitted
        whole = spread(footprint, outer_of(devices))
        over = max((size - room.get(device, 0) for device, size in whole.items()), default=0)
        if over <= 0:
            return replace(refused, smaller=fitted.smaller) if refused else fitted
        for one in devices:
            if one.within is not None and footprint.get(one.id):
                left[one.id] = max(min(left[one.id], footprint[one.id]) - over, 0)
    return replace(refused or fitted, step=None, fits=False, smaller=None)


def _options(prepared: Prepared) -> Collection[str] | None:
    """Return the options of the engine; None if they are not known."""
    return (prepared.engine.options or None) if prepared.engine is not None else None


def _with_lowered(
    choice: Choice,
    estimate: Estimate,
    devices: Sequence[Device],
    whole: Mapping[str, int],
    room: Mapping[str, int],
) -> Choice:
    """Return a choice with what it takes of the margins, and say so."""
    lowered = lowered_for(estimate.footprint, devices, whole, room)
    left = [
        f"{format_size(one.margin - lowered[one.id])} on {one.id}"
        for one in devices
        if one.id in lowered
    ]
    if not left:
        return choice
    text = f"margin lowered to {' and '.join(left)} for this model: nothing smaller fits"
    return replace(
        choice,
        chosen=f"{choice.chosen}; {text}" if choice.chosen else text,
        lowered={PoolId(device): size for device, size in lowered.items()},
    )


def _best(found: Sequence[ChosenWay], devices: Sequence[Device]) -> list[ChosenWay]:
    """Keep the ways of the lowest rank; several devices only where no single one does."""
    best = min(one.rank for one in found if one.rank is not None)
    kept = [one for one in found if one.rank == best]
    fewest = min(len(one.choice.devices) for one in kept)
    totals = {PoolId(one.id): one.total for one in devices}
    return sorted(
        (one for one in kept if len(one.choice.devices) == fewest),
        key=lambda one: sum(totals.get(pool, 0) for pool in one.choice.devices),
    )


def _room_text(placement: Sequence[str], devices: Sequence[Device], room: Mapping[str, int]) -> str:
    """Return `2 GiB less 128 MiB`, of each device where there are several."""
    used = [one for one in devices if one.id in (placement or (HOST,))]
    said = []
    for one in used:
        less = one.total - room.get(one.id, 0)
        size = format_size(one.total) + (f" less {format_size(less)}" if less else "")
        said.append(f"{one.id} {size}" if len(used) > 1 else size)
    return " and ".join(said)


def listed(names: Sequence[str]) -> str:
    """Return `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
