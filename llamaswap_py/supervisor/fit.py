"""Judges whether a preset fits: the memory of each way to load it, and remedies.

`lswap up`, `check`, `estimate` and `init` all use this module, so they agree about a file.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from llamaswap_py.config.sections import Config
from llamaswap_py.devices import Device
from llamaswap_py.estimate import Estimate, Estimator, Wanted
from llamaswap_py.estimate.fitter import Fitter, Tried
from llamaswap_py.estimate.types import EstimateError
from llamaswap_py.llamacpp.context_size import context_per_request
from llamaswap_py.scheduler.feasibility import LoadOption, judge, remedies
from llamaswap_py.scheduler.ledger import Ledger
from llamaswap_py.scheduler.planner import best_fit
from llamaswap_py.scheduler.types import Choice
from llamaswap_py.supervisor.chosen_ways import choose_ways, chooses
from llamaswap_py.supervisor.mends import Mend, Mender
from llamaswap_py.supervisor.prepare import Prepared, policy_of, pools_of
from llamaswap_py.supervisor.rooms import bytes_of, rooms_for
from llamaswap_py.supervisor.strangers import SteadyStrangers
from llamaswap_py.supervisor.ways import wanted_for, ways_to_load, weighed

BOUND: Final = 30.0
"""Seconds that `check` and `init` give to estimates; what is not done by then is said to be so."""
_LATE: Final = f"not estimated within {BOUND:.0f} s: `lswap estimate` goes on until it is"


@dataclass(slots=True)
class FitResult:
    """One preset: what it takes as it would be loaded first, and what keeps it from fitting.

    `problem` says why it can never fit, or that its file cannot be read, `remedy` what would help;
    "" if it fits. `unknown` says why there is no estimate. `mends` are what the file may say so
    that it fits, the best first. `context` are the tokens that one request gets, None if only the
    model's file says. `chosen` says what was chosen for it, `tried` the steps on the way. `lowered`
    are the bytes of each margin that it may take.
    """

    id: str
    estimate: Estimate | None = None
    unknown: str = ""
    problem: str = ""
    remedy: str = ""
    mends: tuple[Mend, ...] = ()
    choices: tuple[Choice, ...] = ()
    context: int | None = None
    chosen: str = ""
    lowered: Mapping[str, int] = field(default_factory=dict)
    tried: tuple[Tried, ...] = ()


class FitCheck:
    """Says of each preset of one configuration whether it fits; loads nothing.

    What the file pins is judged first, because the others have to fit beside it. What other
    programs steadily held when lswap last ran is left to them, as `lswap up` does.
    """

    def __init__(
        self, config: Config, devices: tuple[Device, ...], estimator: Estimator, *, fresh: bool
    ) -> None:
        self._devices = devices
        self._cache_ram = config.memory.cache_ram
        self._estimator = estimator.without_measured() if fresh else estimator
        self._fitter = Fitter(self._estimator)
        self._mender = Mender(devices, self._estimator, self._fitter, self._cache_ram, config)
        self._fresh = fresh
        self._ledger = Ledger(pools_of(devices), policy_of(config))
        self._pinned: Counter[str] = Counter()
        self._strangers = Counter(SteadyStrangers(devices=devices).kept())

    async def all(self, prepared: Sequence[Prepared], bound: float | None) -> dict[str, FitResult]:
        """Return a judgement of each; with `bound`, as many as can be had in so many seconds."""
        found = {one.preset.id: FitResult(one.preset.id, unknown=_LATE) for one in prepared}
        try:
            async with asyncio.timeout(bound):
                for one in sorted(prepared, key=lambda one: not one.preset.pin):
                    found[one.preset.id] = judged = await self.one(one)
                    if one.preset.pin and judged.estimate is not None:
                        self._pinned.update(judged.estimate.footprint)
        except TimeoutError:
            pass
        return found

    async def one(self, prepared: Prepared) -> FitResult:
        """Return the judgement of one preset, as if nothing else were loaded that can go."""
        judged = FitResult(prepared.preset.id)
        if prepared.plan.absent:
            judged.unknown = "known once its files are here (`lswap pull`)"
            return judged
        ways: list[_Way] = []
        for variant in prepared.ways:
            try:
                ways += await self._ways(prepared, variant, judged)
            except EstimateError as error:
                _note_failure(judged, error, prepared)
        estimates = {at: way.estimate for at, way in enumerate(ways) if way.estimate is not None}
        if not estimates:
            return judged
        choices = [way.choice for way in ways]
        if (last := len(choices) - 1) in estimates:
            choices, judged.mends = await self._mender.seek(
                prepared, choices, estimates[last], self._pinned
            )
        judged.choices = tuple(choices)
        return self._verdict(prepared, judged, ways)

    async def _ways(self, prepared: Prepared, variant: str, judged: FitResult) -> list[_Way]:
        """Return the ways to load a variant, each with its estimate; raises EstimateError."""
        if chooses(prepared, variant):
            preset = prepared.ways[variant].preset
            taken = (self._strangers + self._pinned, self._pinned, Counter[str]())
            rooms = rooms_for(preset, self._devices, taken)
            found = await choose_ways(
                prepared, variant, self._devices, self._fitter, self._cache_ram, rooms
            )
            return [_Way(one.choice, one.estimate, one.tried) for one in found]
        choices = [one for one in prepared.plan.choices if one.variant == variant]
        if self._fresh or any(one.footprint is None for one in choices):
            every = ways_to_load(prepared, self._devices)
            choices = [one for one in every if one.variant == variant]
        ways: list[_Way] = []
        for choice in choices:
            wanted = wanted_for(prepared, choice, self._devices, self._cache_ram)
            if wanted is None:
                problems = prepared.problems
                raise EstimateError(problems[0].message if problems else "no engine")
            try:
                estimate = await self._estimate(wanted)
            except EstimateError as error:
                _note_failure(judged, error, prepared)
                ways.append(_Way(choice))
                continue
            ways.append(_Way(weighed(prepared, choice, estimate), estimate))
        return ways

    def _verdict(self, prepared: Prepared, judged: FitResult, ways: Sequence[_Way]) -> FitResult:
        plan = replace(prepared.plan, choices=judged.choices)
        judged.problem = judged.remedy = judged.unknown = ""
        self._ledger.open_pools(plan)
        options, shortfall = judge(self._ledger, plan)
        first = self._first(options)
        known = [at for at, way in enumerate(ways) if way.estimate is not None]
        at = next((at for at, one in enumerate(judged.choices) if one is first), known[-1])
        way, choice = ways[at], judged.choices[at]
        judged.estimate, judged.tried, judged.chosen = way.estimate, way.tried, choice.chosen
        judged.lowered = bytes_of(choice.lowered)
        used = prepared.ways[choice.variant].chosen(choice.words if options else ())
        judged.context = context_per_request(used.preset)
        if not options:
            judged.problem = f"it can never fit: {shortfall}"
            judged.remedy = remedies(self._ledger, plan)
        return judged

    def _first(self, options: list[LoadOption]) -> Choice | None:
        """Return the choice that an empty machine would load."""
        free = {pool: size.total - size.margin for pool, size in self._ledger.pools.items()}
        best = best_fit(options, free, free)
        return None if best is None else best.choice

    async def _estimate(self, wanted: Wanted) -> Estimate:
        if self._fresh:
            return await self._estimator.work_out(wanted)
        return await self._estimator.estimate(wanted)


class _Way(NamedTuple):
    """One way to load a preset; `estimate` None if there is none."""

    choice: Choice
    estimate: Estimate | None = None
    tried: tuple[Tried, ...] = ()


def _note_failure(judged: FitResult, error: EstimateError, prepared: Prepared) -> None:
    judged.unknown = str(error)
    if prepared.preset.cmd is None:
        judged.problem, judged.remedy = error.message, error.remedy
