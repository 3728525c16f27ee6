"""Chooses how a preset runs where its file leaves things open, so that it fits.

Formulas search through the steps, because they are quick. A dry run proves what they find. Where a
proven figure differs from the formula's, the difference corrects the further search.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Final

from llamaswap_py.estimate.fitting import FitStep, FitWish, fit_steps
from llamaswap_py.estimate.formula import layer_devices
from llamaswap_py.estimate.layer_sizes import layer_bytes, refused_devices
from llamaswap_py.estimate.quantisations import smaller, weights_of
from llamaswap_py.estimate.splits import divide_layers
from llamaswap_py.estimate.types import DoesNotRunError, Estimate, EstimateError, Part, Source
from llamaswap_py.llamacpp.memory_settings import (
    OF_DIVISION,
    option_words,
    read_settings,
    with_split,
)
from llamaswap_py.units import HOST, format_size

if TYPE_CHECKING:
    from llamaswap_py.estimate.estimator import Estimator, Opened
    from llamaswap_py.estimate.wanted import Wanted

__all__ = ["FitStep", "FitWish", "Fitted", "Fitter", "Tried"]

PROOFS: Final = 6
"""Dry runs that look for the best step. If none of them fits, each further one skips more steps."""
MEASURED_BEYOND: Final = "measured beyond the estimate"


@dataclass(frozen=True, slots=True)
class Tried:
    """One step that was estimated, by `source`; `note` says why it does not work at all."""

    step: FitStep
    footprint: Mapping[str, int]
    fits: bool
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Smaller:
    """The largest quantisation with which a model would fit, and how it would then run.

    `size` is the bytes of its weights, by the header and the usual bits of a weight; `footprint`
    is what it would take on each device, by the formulas.
    """

    quantisation: str
    size: int
    step: FitStep
    footprint: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a preset runs as; `step` is None if nothing is open, or if nothing fits.

    `estimate` is that of the step, else of the step that lacks the least memory: `closest`.
    `smaller` is set if nothing fits, but a smaller quantisation would.
    """

    step: FitStep | None
    estimate: Estimate
    tried: tuple[Tried, ...]
    fits: bool
    closest: FitStep | None = None
    smaller: Smaller | None = None


class Fitter:
    """Fits presets with one estimator, which keeps the results of dry runs."""

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator

    async def fit(
        self,
        wanted: Wanted,
        room: Mapping[str, int],
        wish: FitWish,
        *,
        said: Collection[str],
        known: Collection[str] | None = None,
        after: int = -1,
        lower: FitStep | None = None,
    ) -> Fitted:
        """Return the first step that fits into `room` (bytes per device).

        `said` names the options that the file gives, `known` those of the engine (with dashes;
        None: all of them). `after` is the rank of a step that ran out of memory: only later ones
        are tried. With `lower`, only steps with less context or prompt cache than it are tried.
        Raises EstimateError like the estimator.
        """
        if wanted.declared is not None or wanted.is_program:
            return _as_it_is(await self._estimator.estimate(wanted), room)
        settings = read_settings(wanted.args)
        try:
            opened = await self._estimator.open(wanted)
            self._estimator.reckon(opened, wanted.args, wanted.gpus)
        except EstimateError:  # the engine may know models that the formulas do not
            return _as_it_is(await self._estimator.estimate(wanted), room)
        steps = fit_steps(opened.model[0], settings, said, wanted.gpus, wish, known=known)
        splits = len(wanted.gpus) > 1 and not OF_DIVISION & set(said)
        limits = await asyncio.to_thread(self._estimator.limits.refused, wanted)
        search = _Search(
            self._estimator, opened, wanted, dict(room), steps, limits, splits=splits, after=after
        )
        if lower is not None:
            search.shut = frozenset(one.rank for one in steps if not one.lowers(lower))
            return await search.run()
        if len(steps) > 1 or splits or steps[0].words:
            return await search.run()
        as_it_is = _as_it_is(await self._estimator.estimate(wanted), room)
        if as_it_is.fits:
            return as_it_is
        return replace(as_it_is, smaller=await search.smaller())

    async def lightest(
        self,
        wanted: Wanted,
        wish: FitWish,
        *,
        said: Collection[str],
        known: Collection[str] | None = None,
        after: int = -1,
        lower: FitStep,
    ) -> Mapping[str, int] | None:
        """Return what the smallest step below `lower` takes, by the formulas; None without one.

        Raises EstimateError for a model that the formulas do not know.
        """
        opened = await self._estimator.open(wanted)
        settings = read_settings(wanted.args)
        steps = fit_steps(opened.model[0], settings, said, wanted.gpus, wish, known=known)
        there = [one for one in steps if one.lowers(lower) and one.rank > after]
        if not there:
            return None
        args = (*wanted.args, *there[-1].words)
        return self._estimator.reckon(opened, args, wanted.gpus).footprint


def _as_it_is(estimate: Estimate, room: Mapping[str, int]) -> Fitted:
    return Fitted(None, estimate, (), not _shortfall(estimate.footprint, room))


def _shortfall(footprint: Mapping[str, int], room: Mapping[str, int]) -> int:
    """Return the bytes that are missing, over all devices."""
    return sum(max(size - room.get(device, 0), 0) for device, size in footprint.items())


@dataclass(slots=True)
class _Search:
    """The search of one fit: what was worked out, proven, and learned by it."""

    estimator: Estimator
    opened: Opened
    wanted: Wanted
    room: dict[str, int]
    steps: tuple[FitStep, ...]
    limits: dict[str, int]
    splits: bool = False
    after: int = -1
    shut: frozenset[int] = frozenset()
    """Ranks of steps that are not tried."""
    worked_out: dict[int, Estimate] = field(default_factory=dict)
    words: dict[int, tuple[str, ...]] = field(default_factory=dict)
    estimates: dict[int, Estimate] = field(default_factory=dict)
    proven: dict[int, Tried] = field(default_factory=dict)
    beyond: dict[str, int] = field(default_factory=dict)
    """By how many bytes the last proof exceeded the formula, per device."""
    excess: dict[str, int] = field(default_factory=dict)
    """By how many bytes measured memory exceeded a dry run, per device."""
    doubted: dict[str, int] = field(default_factory=dict)
    """Sizes from which on a device may refuse a tensor, until it has taken a smaller one."""

    async def run(self) -> Fitted:
        """Find, prove, correct, until a proven step is the first that fits."""
        best: int | None = None
        for attempt in range(PROOFS):
            found = await asyncio.to_thread(self._first, best)
            if found is None and best is None and attempt == 0:
                found = await asyncio.to_thread(self._closest)
            if found is None:
                break
            if attempt == 0:
                await self._measure(found)
            if await self._prove(found):
                best = found
        if best is None:
            best = await self._prove_further()
        if best is None:
            return self._unfitted(None if self.shut else await self.smaller())
        return Fitted(self.proven[best].step, self.estimates[best], self._tried(), fits=True)

    async def _prove_further(self) -> int | None:
        """Prove steps further and further down, until one fits; None if none does.

        If formulas are wrong by much, proving every step would take minutes. The steps that were
        skipped just before the one that fits are then searched by halving.
        """
        skipped, failed = 1, -1
        best = await asyncio.to_thread(self._first, None)
        while best is not None and not await self._prove(best):
            failed = best
            best = await asyncio.to_thread(self._first, None, failed + skipped)
            skipped *= 2
        left = [] if best is None else await asyncio.to_thread(self._likely, failed, best)
        while left:
            middle = len(left) // 2
            if await self._prove(left[middle]):
                best, left = left[middle], left[:middle]
            else:
                left = left[middle + 1 :]
        return best

    async def smaller(self) -> Smaller | None:
        """Return the largest quantisation that the formulas say would fit."""
        return await asyncio.to_thread(self._smaller)

    # By the formulas

    def _first(self, before: int | None, after: int = -1) -> int | None:
        """Return the first step that should fit and is not proven yet, between two others."""
        steps = self.steps[max(self.after, after) + 1 : before]
        for run in _runs([one for one in steps if one.rank not in self.shut]):
            start = self._where_devices_have_room(run)
            for step in run[start:]:
                if step.rank in self.proven:
                    continue
                if self._should_fit(step):
                    return step.rank
                if step.moved and _places(step) != _places(run[start]):
                    break  # the host is too small, and further steps take more of it
        return None

    def _likely(self, after: int, before: int) -> list[int]:
        """Return the steps between two others that should fit and are not proven."""
        return [
            one.rank
            for one in self.steps[after + 1 : before]
            if one.rank not in self.shut | self.proven.keys() and self._should_fit(one)
        ]

    def _where_devices_have_room(self, run: Sequence[FitStep]) -> int:
        """Return the place in a run of steps where ever less is on devices, by halving."""
        low, high = 0, len(run) if run[0].moved else 0
        while low < high:
            middle = (low + high) // 2
            if self._should_fit(run[middle], devices_only=True):
                high = middle
            else:
                low = middle + 1
        return low

    def _should_fit(self, step: FitStep, *, devices_only: bool = False) -> bool:
        footprint = self._corrected(self._estimate(step).footprint)
        if devices_only:
            footprint.pop(HOST, None)
        return not _shortfall(footprint, self.room) and not self._refused(step)

    def _refused(self, step: FitStep) -> str:
        """Return why the engine cannot run a step, whatever memory there is; "" if it can."""
        for one in self.proven.values():
            alike = one.step.context == step.context and _places(one.step) == _places(step)
            if one.note and alike:
                return one.note
        if not (limits := {**self.limits, **self.doubted}):
            return ""
        settings = read_settings(self._args(step))
        refused = refused_devices(self.opened.model[0], settings, self.wanted.gpus, limits)
        return "; ".join(
            f"a cache tensor of {format_size(size)} is too large for {device}"
            for device, size in refused.items()
        )

    def _estimate(self, step: FitStep) -> Estimate:
        if step.rank not in self.worked_out:
            found = self.estimator.reckon(self.opened, self._args(step), self.wanted.gpus)
            if self.splits and step.layers_on_devices:
                self.words[step.rank] = self._split(step, found)
                found = self.estimator.reckon(self.opened, self._args(step), self.wanted.gpus)
            self.worked_out[step.rank] = found
        return self.worked_out[step.rank]

    def _args(self, step: FitStep) -> tuple[str, ...]:
        return (*self.wanted.args, *step.words, *self.words.get(step.rank, ()))

    def _split(self, step: FitStep, unsplit: Estimate) -> tuple[str, ...]:
        """Return the words that divide the layers by the room there is for them."""
        settings, gpus = read_settings(self._args(step)), self.wanted.gpus
        sizes = layer_bytes(self.opened.model, settings)
        held = {gpu: unsplit.footprint.get(gpu, 0) for gpu in gpus}
        for device, size in zip(
            layer_devices(self.opened.model[0], settings, gpus), sizes, strict=True
        ):
            if device in held:
                held[device] -= size
        rooms = [max(self.room.get(gpu, 0) - self._more(gpu), 0) for gpu in gpus]
        there = sizes[len(sizes) - step.layers_on_devices :]
        counts = divide_layers(there, [held[gpu] for gpu in gpus], rooms)
        return tuple(w for one in with_split(counts).items() for w in option_words(*one))

    def _corrected(self, footprint: Mapping[str, int]) -> dict[str, int]:
        return {device: max(size + self._more(device), 0) for device, size in footprint.items()}

    def _more(self, device: str) -> int:
        return self.beyond.get(device, 0) + self.excess.get(device, 0)

    def _closest(self) -> int | None:
        """Return the step that lacks the least memory of those worked out."""
        lacking = {
            rank: _shortfall(self._corrected(one.footprint), self.room)
            for rank, one in self.worked_out.items()
            if not self._refused(self.steps[rank])
        }
        return min(lacking, key=lambda rank: (lacking[rank], -rank), default=None)

    # By dry runs and measurements

    async def _measure(self, near: int) -> None:
        """Note how far measured memory exceeded the worked-out one, with the most similar words."""
        ranks = sorted(self.worked_out) if self.splits else [one.rank for one in self.steps]
        each = [self._args(self.steps[rank]) for rank in ranks]
        found = await self.estimator.measured(self.wanted, each)
        if not found:
            return
        at = min(found, key=lambda at: abs(ranks[at] - near))
        try:
            worked_out = await self.estimator.work_out(replace(self.wanted, args=each[at]))
        except EstimateError:
            return
        self.excess = {
            device: more
            for device, size in found[at].footprint.items()
            if (more := size - worked_out.footprint.get(device, 0)) > 0
        }

    async def _prove(self, rank: int) -> bool:
        """Estimate a step as it would be loaded; return whether it fits."""
        step = self.steps[rank]
        formula = self._estimate(step).footprint
        wanted = replace(self.wanted, args=self._args(step))
        try:
            estimate = await self.estimator.prove(wanted)
        except DoesNotRunError as error:
            size = await self.estimator.keep_refusal(wanted, self.opened, error)
            if size:  # the limits of devices are powers of two: go on with half of it
                self.limits[error.device] = min(size, self.limits.get(error.device, size))
                self.doubted[error.device] = size // 2 + 1
            footprint = self._corrected(formula)
            source = Source.DRY_RUN.value
            self.proven[rank] = Tried(self._said(step), footprint, False, source, error.message)
            return False
        if step.layers_on_devices and estimate.source is Source.DRY_RUN:
            self.doubted.clear()
        if estimate.source is not Source.MEASURED:
            more = [Part(device, MEASURED_BEYOND, size) for device, size in self.excess.items()]
            estimate = Estimate(estimate.source, (*estimate.parts, *more), estimate.notes)
        said, footprint = self._said(step), estimate.footprint
        if estimate.source is not Source.ANALYTIC:
            self.beyond = {
                device: size - formula.get(device, 0) - self.excess.get(device, 0)
                for device, size in footprint.items()
            }
            if self.splits:  # the room for layers is another one
                self.worked_out.clear()
        fits = not _shortfall(footprint, self.room)
        self.estimates[rank] = estimate
        self.proven[rank] = Tried(said, footprint, fits, estimate.source.value)
        return fits

    # The result

    def _said(self, step: FitStep) -> FitStep:
        """Return a step with all its words."""
        return replace(step, words=(*step.words, *self.words.get(step.rank, ())))

    def _tried(self) -> tuple[Tried, ...]:
        tried = {
            rank: Tried(
                self._said(self.steps[rank]),
                self._corrected(one.footprint),
                self._should_fit(self.steps[rank]),
                one.source.value,
                self._refused(self.steps[rank]),
            )
            for rank, one in self.worked_out.items()
        }
        tried |= self.proven
        return tuple(tried[rank] for rank in sorted(tried))

    def _unfitted(self, helpful: Smaller | None) -> Fitted:
        if not self.worked_out:  # no step is left after the one that ran out of memory
            self._estimate(self.steps[-1])
        tried = self._tried()
        least = min(tried, key=lambda one: (_shortfall(one.footprint, self.room), -one.step.rank))
        rank = least.step.rank
        estimate = self.estimates.get(rank) or self._estimate(self.steps[rank])
        return Fitted(None, estimate, tried, fits=False, closest=least.step, smaller=helpful)

    def _smaller(self) -> Smaller | None:
        """Return the largest quantisation that the formulas say would fit."""
        there = list(smaller(self.opened.model))
        found: Smaller | None = None
        low, high = 0, len(there)
        while low < high:
            middle = (low + high) // 2
            quantisation, headers = there[middle]
            other = replace(
                self,
                opened=self.opened._replace(model=headers),
                worked_out={},
                words={},
                proven={},
            )
            if (rank := other._first(None)) is None:
                low = middle + 1
            else:
                high = middle
                step = other._said(self.steps[rank])
                takes = other._corrected(other._estimate(self.steps[rank]).footprint)
                found = Smaller(quantisation.name, weights_of(headers), step, takes)
        return found


def _places(step: FitStep) -> tuple[int, int, int]:
    return step.slots, step.layers_on_devices, step.experts_on_host


def _runs(steps: Sequence[FitStep]) -> list[list[FitStep]]:
    """Return steps in groups: those that differ in what is on devices only, and the others."""
    keyed = groupby(steps, key=lambda one: (one.moved, one.context, one.slots))
    return [list(group) for _, group in keyed]
