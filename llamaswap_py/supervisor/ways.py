"""The ways to load a preset: its variants on their placements, and what to estimate for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from llamaswap_py.config.model_forms import ALL
from llamaswap_py.devices import Device, in_main_memory, seen_by
from llamaswap_py.estimate import Estimate, Wanted
from llamaswap_py.estimate.types import fits_in
from llamaswap_py.llamacpp.binaries import Engine
from llamaswap_py.scheduler.types import Choice, PoolId
from llamaswap_py.supervisor.prepare import LoadWay, Prepared, sleeping_footprint
from llamaswap_py.supervisor.rooms import bytes_of, outer_of
from llamaswap_py.units import HOST


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
    gpus = [PoolId(one.id) for one in _worth(way, prepared.engine, devices)]
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


def _worth(way: LoadWay, engine: Engine | None, devices: Sequence[Device]) -> list[Device]:
    """Return the GPUs to choose from: integrated ones only where there is no card, as in llama.cpp.

    `device: all` takes both.
    """
    gpus = usable(way, engine, devices)
    if way.preset.device == ALL:
        return gpus
    cards = [one for one in gpus if one.is_lent or not in_main_memory(one, devices)]
    return cards or gpus


def wanted_for(
    prepared: Prepared, choice: Choice, devices: tuple[Device, ...], cache_ram: int
) -> Wanted | None:
    """Return what to estimate for one way to load a preset; None without its engine.

    What was chosen comes last, also after the placement, which it may overrule.
    """
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
        args=(*wanted.args, *kept.args, *choice.words),
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

    `placement` names devices, and overrules those of the preset; both may leave them open.
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
    """Return a choice with the footprint of an estimate, and its parts as text."""
    footprint = {PoolId(device): size for device, size in estimate.footprint.items()}
    asleep = sleeping_footprint(prepared.preset, footprint)
    return replace(
        choice,
        footprint=footprint,
        source=estimate.source.value,
        sleeping=asleep,
        made_of=tuple((device, estimate.explain(device)) for device in estimate.footprint),
    )


def may_fit(choice: Choice, room: Mapping[str, int], devices: Sequence[Device]) -> bool:
    """Return whether a choice fits into `room` (bytes per device), or has an unknown footprint.

    `room` is without the margins; what the choice may take of them comes to it.
    """
    if choice.footprint is None:
        return True
    whole = {device: size + choice.lowered.get(PoolId(device), 0) for device, size in room.items()}
    return fits_in(bytes_of(choice.footprint), whole, outer_of(devices))
