"""`lswap estimate`: the memory of each model, its source, and which models fit together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.cli.show import memory_text, named_within
from llamaswap_py.cli.tables import print_table
from llamaswap_py.errors import LswapError
from llamaswap_py.estimate import Estimator
from llamaswap_py.estimate.estimator import evicted_for, fits, largest_sets
from llamaswap_py.scheduler.ledger import Ledger
from llamaswap_py.scheduler.types import PoolId
from llamaswap_py.supervisor.device_lists import find_devices
from llamaswap_py.supervisor.fit import FitCheck
from llamaswap_py.supervisor.located_engines import Engines
from llamaswap_py.supervisor.prepare import policy_of, pools_of, prepare
from llamaswap_py.units import HOST, format_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llamaswap_py.config.load import Origin
    from llamaswap_py.config.sections import Config
    from llamaswap_py.estimate.fitter import Tried
    from llamaswap_py.supervisor.fit import FitResult

_SOURCES: Final = {"engine": "the engine's list; other programs not measured"}
COLUMNS = ("model", "device", "memory", "source", "made of")


class TriedStep(msgspec.Struct):
    """One way to run a model that was tried: bytes per device, and how they are known."""

    what: str
    memory: dict[str, int]
    source: str
    fits: bool
    note: str = ""


class Line(msgspec.Struct):
    """One model: bytes per device, or why they are unknown. `made_of` has the parts as text."""

    model: str
    memory: dict[str, int] = {}
    source: str | None = None
    made_of: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    problem: str = ""
    chosen: str = ""
    """What was chosen where the file leaves things open, and for how much memory."""
    steps: tuple[TriedStep, ...] = ()
    """With `--explain`: what was tried, the best first."""
    evicts: tuple[str, ...] | None = None
    """The models to unload for it if all others that fit are loaded; None if it never fits."""


class Room(msgspec.Struct):
    """One device, in bytes; `source` says where its total comes from."""

    device: str
    total: int
    margin: int
    source: str
    within: str | None = None
    """The device in whose memory it computes."""


class Report(msgspec.Struct):
    """The whole answer. `together` has the largest sets of models that fit at the same time."""

    devices: list[Room]
    models: list[Line]
    together: list[tuple[str, ...]]

    @property
    def ok(self) -> bool:
        """Whether every model has an estimate and fits alone."""
        return all(not line.problem and line.evicts is not None for line in self.models)


def run(
    origin: Origin, model: str | None, *, fresh: bool, as_json: bool, explain: bool = False
) -> bool:
    """Print the estimates of a configuration or of one model; return True if there are no problems.

    `fresh` ignores declared and measured memory. `explain` prints the steps tried. Raises
    ConfigError for a file that cannot be read, LswapError for a model that is not in it.
    """
    config = origin.read()
    chosen = None
    if model is not None:
        found = config.find(model)
        if found is None:
            known = ", ".join(config.models)
            raise LswapError(f"{origin.name} has no model {model}", remedy=f"it has: {known}")
        chosen = found.id
    report = asyncio.run(estimate_config(config, chosen, fresh=fresh))
    if not explain:
        for line in report.models:
            line.steps = ()
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        _print(report)
    return report.ok


async def estimate_config(
    config: Config, chosen: str | None, *, fresh: bool, estimator: Estimator | None = None
) -> Report:
    """Estimate every preset, or only `chosen`, on the devices of this machine."""
    engines = Engines(config)
    devices = find_devices(config, engines)
    prepared = prepare(config, engines, devices)
    fit_check = FitCheck(config, devices, estimator or Estimator(), fresh=fresh)
    chosen_ones = [one for name, one in prepared.items() if chosen in (None, name)]
    judged = await fit_check.all(chosen_ones, None)
    lines = [_line(judged[one.preset.id]) for one in chosen_ones]
    rooms = [Room(one.id, one.total, one.margin, one.source, one.within) for one in devices]
    room = {one.device: one.total - one.margin for one in rooms}
    ledger = Ledger(pools_of(devices), policy_of(config))
    needs = {
        line.model: _needed(_spread(ledger, line.memory), judged[line.model].lowered, room)
        for line in lines
        if line.memory and not line.problem
    }
    for line in lines:
        if line.model in needs:
            line.evicts = evicted_for(line.model, _others(line.model, needs, room), needs, room)
    together = largest_sets(needs, room) if len(needs) > 1 else []
    return Report(rooms, lines, together)


def _line(judged: FitResult) -> Line:
    estimate = judged.estimate
    if estimate is None and judged.problem:
        return Line(judged.id, problem=judged.unknown)
    if estimate is None:  # unknown for now: the model can be loaded all the same
        return Line(judged.id, notes=(f"its memory is unknown: {judged.unknown}",), evicts=())
    footprint = estimate.footprint
    return Line(
        judged.id,
        footprint,
        estimate.source.value,
        {device: estimate.explain(device) for device in footprint},
        estimate.notes,
        f"{judged.problem} - {judged.remedy}" if judged.problem else "",
        judged.chosen,
        tuple(_step(one) for one in judged.tried),
    )


def _step(tried: Tried) -> TriedStep:
    gpus = [device for device in tried.footprint if device != HOST]
    text = tried.step.text(gpus) or "as the file says"
    return TriedStep(text, dict(tried.footprint), tried.source, tried.fits, tried.note)


def _others(name: str, needs: dict[str, dict[str, int]], room: dict[str, int]) -> list[str]:
    """Return the other models that fit together, taken in the file's order."""
    loaded: list[str] = []
    for other in needs:
        if other != name and fits([*loaded, other], needs, room):
            loaded.append(other)
    return loaded


def _spread(ledger: Ledger, memory: Mapping[str, int]) -> dict[str, int]:
    """Return what a model takes of each device, and of the memory around it."""
    charge = ledger.spread({PoolId(device): size for device, size in memory.items()})
    return {str(pool): size for pool, size in charge.items()}


def _needed(
    memory: dict[str, int], lowered: Mapping[str, int], room: Mapping[str, int]
) -> dict[str, int]:
    """Return what a model needs of each device: all of one where a margin was lowered for it."""
    return {
        device: min(size, room.get(device, 0)) if device in lowered else size
        for device, size in memory.items()
    }


def _print(report: Report) -> None:
    rows = [row for line in report.models for row in _rows(line)]
    if rows:
        print_table(COLUMNS, rows)
    for room in report.devices:
        use = format_size(max(room.total - room.margin, 0))
        kept = format_size(room.margin)
        name, inside = named_within(room.device, room.within)
        total = f"{format_size(room.total)}{inside} ({_SOURCES.get(room.source, room.source)})"
        print(f"{name}: {total} – kept free {kept}, available {use}")
    for line in report.models:
        if line.chosen:
            print(f"{line.model}: {line.chosen}")
        if line.steps:
            rows = [
                (one.what, memory_text(one.memory), one.source, _fit_text(one))
                for one in line.steps
            ]
            print_table(("tried", "memory", "source", "fits"), rows)
    for names in report.together:
        print("fit together: " + ", ".join(names))
    for line in report.models:
        if line.evicts:
            print(f"to load {line.model}, {_listed(line.evicts)} would be unloaded first")
    for line in report.models:
        for note in line.notes:
            print(f"note: {line.model}: {note}")
    for line in report.models:
        if line.problem:
            print(f"problem: {line.model}: {line.problem}")


def _fit_text(step: TriedStep) -> str:
    """Return whether a step fits, with what is noted of it."""
    return ("yes" if step.fits else "no") + (f": {step.note}" if step.note else "")


def _listed(names: Sequence[str]) -> str:
    """Return `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _rows(line: Line) -> list[tuple[str, ...]]:
    source = line.source or ""
    return [
        (line.model, device, format_size(size), source, line.made_of[device])
        for device, size in line.memory.items()
    ]
