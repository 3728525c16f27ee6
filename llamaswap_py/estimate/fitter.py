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
from llamaswap_py.estimate.types import Estimate, EstimateError, Source
from llamaswap_py.llamacpp.memory_settings import read_settings
from llamaswap_py.units import HOST

if TYPE_CHECKING:
    from llamaswap_py.estimate.estimator import Estimator, Opened
    from llamaswap_py.estimate.wanted import Wanted

__all__ = ["FitStep", "FitWish", "Fitted", "Fitter", "Tried"]

PROOFS: Final = 4
"""Dry runs of one fit at most; after them the formulas alone decide."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One step that was estimated, by `source`; `note` says why it does not work at all."""

    step: FitStep
    footprint: Mapping[str, int]
    fits: bool
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a preset runs as; `step` is None if nothing is open, or if nothing fits.

    `estimate` is that of the step, else of the smallest one that was tried.
    """

    step: FitStep | None
    estimate: Estimate
    tried: tuple[Tried, ...]
    fits: bool


class Fitter:
    """Fits presets with one estimator, which keeps the results of dry runs."""

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator

    async def fit(
        self, wanted: Wanted, room: Mapping[str, int], wish: FitWish, *, said: Collection[str]
    ) -> Fitted:
        """Return the first step that fits into `room` (bytes per device).

        `said` names the options that the file gives. Raises EstimateError like the estimator.
        """
        if wanted.declared is not None or wanted.is_program:
            return _unfitted(await self._estimator.estimate(wanted), room)
        try:
            opened = await self._estimator.open(wanted)
        except EstimateError:  # the engine may read files that lswap cannot
            return _unfitted(await self._estimator.estimate(wanted), room)
        settings = read_settings(wanted.args)
        steps = fit_steps(opened.model[0], settings, said, wanted.gpus, wish)
        search = _Search(self._estimator, opened, wanted, dict(room), steps)
        return await search.run()


def _unfitted(estimate: Estimate, room: Mapping[str, int]) -> Fitted:
    return Fitted(None, estimate, (), fits_in(estimate.footprint, room))


def fits_in(footprint: Mapping[str, int], room: Mapping[str, int]) -> bool:
    """Return whether every device has room for its part."""
    return all(size <= room.get(device, 0) for device, size in footprint.items() if size)


@dataclass(slots=True)
class _Search:
    """The search of one fit: what was worked out, proven, and learned by it."""

    estimator: Estimator
    opened: Opened
    wanted: Wanted
    room: dict[str, int]
    steps: tuple[FitStep, ...]
    worked_out: dict[int, Estimate] = field(default_factory=dict)
    proven: dict[int, Tried] = field(default_factory=dict)
    estimates: dict[int, Estimate] = field(default_factory=dict)
    beyond: dict[str, int] = field(default_factory=dict)
    """By how many bytes the last proof exceeded the formula, per device."""

    async def run(self) -> Fitted:
        """Find, prove, correct, until a proven step is the first that fits."""
        best: int | None = None
        for _ in range(PROOFS):
            found = await asyncio.to_thread(self._first, best)
            if found is None:
                break
            if await self._prove(found):
                best = found
        if best is None and (found := await asyncio.to_thread(self._first, None)) is not None:
            best = found
            self._believe(found)
        return self._fitted(best)

    def _first(self, before: int | None) -> int | None:
        """Return the first step that should fit and is not proven yet, before another one."""
        end = len(self.steps) if before is None else before
        for run in _runs(self.steps[:end]):
            start = self._leaves_devices(run)
            for step in run[start:]:
                if step.rank not in self.proven and self._should_fit(step):
                    return step.rank
        return None

    def _leaves_devices(self, run: Sequence[FitStep]) -> int:
        """Return where in a run of steps that move more and more, devices are full no longer."""
        if not run[0].moved:
            return 0
        low, high = 0, len(run)
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
        return fits_in(footprint, self.room)

    def _estimate(self, step: FitStep) -> Estimate:
        if step.rank not in self.worked_out:
            args = (*self.wanted.args, *step.words)
            found = self.estimator.reckon(self.opened, args, self.wanted.gpus)
            self.worked_out[step.rank] = found
        return self.worked_out[step.rank]

    def _corrected(self, footprint: Mapping[str, int]) -> dict[str, int]:
        return {
            device: max(size + self.beyond.get(device, 0), 0) for device, size in footprint.items()
        }

    async def _prove(self, rank: int) -> bool:
        step = self.steps[rank]
        wanted = replace(self.wanted, args=(*self.wanted.args, *step.words))
        estimate = await self.estimator.estimate(wanted)
        formula = self._estimate(step).footprint
        if estimate.source is not Source.ANALYTIC:
            self.beyond = {
                device: size - formula.get(device, 0) for device, size in estimate.footprint.items()
            }
        fits = fits_in(estimate.footprint, self.room)
        self.estimates[rank] = estimate
        self.proven[rank] = Tried(step, estimate.footprint, fits, estimate.source.value)
        return fits

    def _believe(self, rank: int) -> None:
        """Take a step by the formulas alone."""
        step, estimate = self.steps[rank], self._estimate(self.steps[rank])
        note = f"{PROOFS} dry runs did not find a step that fits: this one is not proven"
        self.estimates[rank] = replace_notes(estimate, note)
        footprint = self._corrected(estimate.footprint)
        self.proven[rank] = Tried(step, footprint, True, estimate.source.value, note)

    def _fitted(self, best: int | None) -> Fitted:
        at = len(self.steps) - 1 if best is None else best
        estimate = self.estimates.get(at) or self._estimate(self.steps[at])
        tried = {
            rank: Tried(
                self.steps[rank], one.footprint, self._should_fit(self.steps[rank]), one.source
            )
            for rank, one in self.worked_out.items()
        }
        tried |= self.proven
        step = None if best is None else self.steps[best]
        return Fitted(
            step, estimate, tuple(tried[rank] for rank in sorted(tried)), best is not None
        )


def replace_notes(estimate: Estimate, note: str) -> Estimate:
    """Return an estimate with one note more."""
    return Estimate(estimate.source, estimate.parts, (*estimate.notes, note))


def _runs(steps: Sequence[FitStep]) -> list[list[FitStep]]:
    """Return steps in groups: those that differ in what is on devices only, and the others."""
    keyed = groupby(steps, key=lambda one: (one.moved, one.context, one.slots))
    return [list(group) for _, group in keyed]
