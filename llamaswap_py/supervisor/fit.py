"""Judges whether a preset fits: the memory of each way to load it, and remedies.

`lswap up`, `check`, `estimate` and `init` all use this module, so they agree about a file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final

from llamaswap_py.config.sections import Config
from llamaswap_py.devices import Device, in_main_memory, seen_by
from llamaswap_py.errors import LswapError
from llamaswap_py.estimate import Estimate, Estimator, Wanted
from llamaswap_py.estimate.remedies import Leaner, Remedies
from llamaswap_py.estimate.types import EstimateError
from llamaswap_py.llamacpp.binaries import Engine
from llamaswap_py.scheduler.feasibility import LoadOption, judge, remedies
from llamaswap_py.scheduler.ledger import Ledger
from llamaswap_py.scheduler.planner import best_fit
from llamaswap_py.scheduler.types import Choice, PoolId, Remedy
from llamaswap_py.supervisor.prepare import (
    LoadWay,
    Prepared,
    policy_of,
    pools_of,
    sleeping_footprint,
)
from llamaswap_py.units import HOST

BOUND: Final = 30.0
"""Seconds that `check` and `init` give to estimates; what is not done by then is said to be so."""
_LATE: Final = f"not estimated within {BOUND:.0f} s: `lswap estimate` goes on until it is"


@dataclass(slots=True)
class FitResult:
    """One preset: what it takes as it would be loaded first, and what keeps it from fitting.

    `problem` says why it can never fit, or that its file cannot be read, `remedy` what would help;
    "" if it fits. `unknown` says why there is no estimate. `mend` is what its `args` may say so
    that it fits, if that is enough.
    """

    id: str
    estimate: Estimate | None = None
    unknown: str = ""
    problem: str = ""
    remedy: str = ""
    mend: Leaner | None = None
    choices: tuple[Choice, ...] = ()


class FitCheck:
    """Says of each preset of one configuration whether it fits; loads nothing."""

    def __init__(
        self, config: Config, devices: tuple[Device, ...], estimator: Estimator, *, fresh: bool
    ) -> None:
        self._devices = devices
        self._cache_ram = config.memory.cache_ram
        self._estimator = estimator
        self._fresh = fresh
        self._ledger = Ledger(pools_of(devices), policy_of(config))

    async def all(self, prepared: Sequence[Prepared], bound: float | None) -> dict[str, FitResult]:
        """Return a judgement of each; with `bound`, as many as can be had in so many seconds."""
        found = {one.preset.id: FitResult(one.preset.id, unknown=_LATE) for one in prepared}
        try:
            async with asyncio.timeout(bound):
                for one in prepared:
                    found[one.preset.id] = await self.one(one)
        except TimeoutError:
            pass
        return found

    async def one(self, prepared: Prepared) -> FitResult:
        """Return the judgement of one preset, as if nothing else were loaded."""
        judged = FitResult(prepared.preset.id)
        if prepared.plan.absent:
            judged.unknown = "known once its files are here (`lswap pull`)"
            return judged
        estimates: dict[int, Estimate] = {}
        choices = list(prepared.plan.choices)
        if self._fresh or any(one.footprint is None for one in choices):
            choices = ways_to_load(prepared, self._devices)
        for at, choice in enumerate(choices):
            wanted = wanted_for(prepared, choice, self._devices, self._cache_ram)
            if wanted is None:
                judged.unknown = prepared.problems[0].message if prepared.problems else "no engine"
                judged.problem = judged.unknown
                return judged
            try:
                estimates[at] = await self._estimate(wanted)
            except EstimateError as error:
                judged.unknown = str(error)
                if not wanted.is_program:
                    judged.problem, judged.remedy = error.message, error.remedy
                continue
            choices[at] = weighed(prepared, choice, estimates[at])
        if not estimates:
            return judged
        last = len(choices) - 1
        wanted = wanted_for(prepared, choices[last], self._devices, self._cache_ram)
        if wanted is not None and last in estimates and wanted.declared is None:
            leaner = await leaner_for(
                prepared, choices, wanted, estimates[last], self._devices, self._estimator
            )
            choices[last] = replace(choices[last], remedies=as_remedies(leaner))
            room = {one.id: one.total - one.margin for one in self._devices}
            enough = (one for one in leaner if one.entry and fits_in(one.footprint, room))
            judged.mend = next(enough, None)
        judged.choices = tuple(choices)
        return self._verdict(prepared, judged, estimates)

    def _verdict(
        self, prepared: Prepared, judged: FitResult, estimates: Mapping[int, Estimate]
    ) -> FitResult:
        plan = replace(prepared.plan, choices=judged.choices)
        judged.problem = judged.remedy = judged.unknown = ""
        self._ledger.open_pools(plan)
        options, shortfall = judge(self._ledger, plan)
        first = self._first(options)
        at = next((at for at, one in enumerate(judged.choices) if one is first), max(estimates))
        judged.estimate = estimates.get(at)
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


def wanted_for(
    prepared: Prepared, choice: Choice, devices: tuple[Device, ...], cache_ram: int
) -> Wanted | None:
    """Return what to estimate for one way to load a preset; None without its engine."""
    variant = prepared.as_variant(choice.variant)
    wanted = _wanted_of(
        variant,
        devices,
        cache_ram=cache_ram,
        placement=choice.devices or None,
        variant=choice.variant,
    )
    if wanted is None or variant.engine is None:
        return wanted
    kept = variant.ways[choice.variant].place(choice.devices, devices, variant.engine)
    return replace(
        wanted,
        args=(*wanted.args, *kept.args),
        env={**wanted.env, **kept.env},
        names=dict(kept.names),
    )


def _wanted_of(
    prepared: Prepared,
    devices: Sequence[Device],
    *,
    cache_ram: int,
    placement: Sequence[str] | None = None,
    variant: str = "",
) -> Wanted | None:
    """Return what to estimate for a preset; None for one that needs an engine and has none.

    `placement` are device names and overrules what the preset says; both may leave it open.
    """
    engine, command = prepared.engine, prepared.preset.cmd
    if engine is None and command is None:
        return None
    way = next(iter(prepared.ways.values()))
    gpus = tuple(usable(way, engine, devices))
    named = placement if placement is not None else way.named
    if named is not None:
        by_name = {one.id: one for one in gpus}
        gpus = tuple(by_name[name] for name in named if name in by_name)
    return Wanted(
        preset=prepared.preset.id,
        model=prepared.preset.model,
        args=prepared.args,
        files=prepared.files,
        gpus=tuple(one.id for one in gpus),
        env=dict(prepared.env),
        variant=variant,
        engine="program" if engine is None else f"{engine.label}:{_binary_identity(engine.path)}",
        fit_params=None if engine is None else engine.fit_params,
        machine=tuple(f"{one.id}={one.uuid or one.source}:{one.total}" for one in gpus),
        declared=prepared.preset.memory,
        cache_ram=cache_ram if command is None else 0,
        is_program=command is not None,
    )


def _binary_identity(path: Path) -> str:
    """A rebuilt engine of the same number is another engine."""
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size}-{status.st_mtime_ns}"


def weighed(prepared: Prepared, choice: Choice, estimate: Estimate) -> Choice:
    """Return a choice with what it takes."""
    footprint = {PoolId(device): size for device, size in estimate.footprint.items()}
    asleep = sleeping_footprint(prepared.preset, footprint)
    return replace(
        choice,
        footprint=footprint,
        source=estimate.source.value,
        sleeping=asleep,
        made_of=tuple((device, estimate.explain(device)) for device in estimate.footprint),
    )


async def leaner_for(
    prepared: Prepared,
    choices: Sequence[Choice],
    wanted: Wanted,
    estimate: Estimate,
    devices: tuple[Device, ...],
    estimator: Estimator,
    pinned: Mapping[str, int] | None = None,
) -> tuple[Leaner, ...]:
    """Return settings that lower what the last choice takes; none if one of them all fits.

    `pinned` are bytes per device that no eviction frees.
    """
    alone = {one.id: one.total - one.margin for one in devices}
    beside = {device: room - (pinned or {}).get(device, 0) for device, room in alone.items()}
    if any(_fits(one, beside) for one in choices):
        return ()
    room = beside if any(_fits(one, alone) for one in choices) else alone
    known = None if prepared.engine is None else prepared.engine.options
    extra = prepared.as_variant(choices[-1].variant).preset.extra
    try:
        seeking = Remedies(estimator, wanted, estimate, room, known=known, extra=extra)
        return tuple(await seeking.seek())
    except LswapError:  # the judgement stands without a remedy
        return ()


def as_remedies(leaner: Sequence[Leaner]) -> tuple[Remedy, ...]:
    """Return them as the scheduler's data."""
    return tuple(
        Remedy(one.words, {PoolId(device): size for device, size in one.footprint.items()})
        for one in leaner
    )


def fits_in(footprint: Mapping[str, int], room: Mapping[str, int]) -> bool:
    """Return whether every device has room for its part."""
    return all(size <= room.get(device, 0) for device, size in footprint.items() if size)


def _fits(choice: Choice, room: Mapping[str, int]) -> bool:
    if choice.footprint is None:
        return True
    return fits_in({str(pool): size for pool, size in choice.footprint.items()}, room)


def ways_to_load(prepared: Prepared, devices: tuple[Device, ...]) -> list[Choice]:
    """Return every variant on every placement, footprints unknown."""
    return [
        Choice(None, placement, variant, "unknown")
        for variant in prepared.ways
        for placement in placements(prepared.as_variant(variant), devices)
    ]


def placements(prepared: Prepared, devices: tuple[Device, ...]) -> list[tuple[PoolId, ...]]:
    """Return where a preset may be loaded: its own devices, else each GPU, then all together."""
    way = next(iter(prepared.ways.values()))
    if way.named is not None:
        return [tuple(PoolId(one) for one in way.named)]
    gpus = [PoolId(one.id) for one in _worth(usable(way, prepared.engine, devices), devices)]
    if prepared.engine is None or not gpus:
        return [()]
    singles = [(gpu,) for gpu in gpus]
    return list(chain(singles, [tuple(gpus)] if len(gpus) > 1 else []))


def usable(way: LoadWay, engine: Engine | None, devices: Sequence[Device]) -> list[Device]:
    """Return the devices besides the host that an engine can use, in its order.

    One that does not list its devices uses all that are known, unless it is built for the CPU.
    """
    names = None if engine is None else seen_by(way.view, devices)
    if names is not None:
        by_id = {one.id: one for one in devices}
        return [by_id[id] for id in names]
    on_cpu = engine is not None and engine.backend == "cpu"
    return [one for one in devices if one.id != HOST and not on_cpu]


def _worth(gpus: Sequence[Device], devices: Sequence[Device]) -> list[Device]:
    """Return the GPUs to choose from: integrated ones only where there is no card, as llama.cpp."""
    cards = [one for one in gpus if one.is_lent or not in_main_memory(one, devices)]
    return cards or list(gpus)
