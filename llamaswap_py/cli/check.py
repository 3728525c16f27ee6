"""`lswap check`: all problems of a configuration on this machine. It loads no model."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from llamaswap_py.children.containment import unenforced_here
from llamaswap_py.children.listeners import can_tell
from llamaswap_py.cli.conflicts import conflicts, shut_out
from llamaswap_py.cli.init import serves_text
from llamaswap_py.cli.show import memory_text
from llamaswap_py.cli.tables import print_table
from llamaswap_py.config.argv import PresetProblem
from llamaswap_py.config.load import Origin
from llamaswap_py.config.warnings import warnings
from llamaswap_py.errors import ConfigError, EngineError, LswapError
from llamaswap_py.estimate import Estimator
from llamaswap_py.estimate.estimator import read_slot_shape
from llamaswap_py.llamacpp.context_size import context_per_request
from llamaswap_py.supervisor.device_lists import find_devices, unlisted
from llamaswap_py.supervisor.fit import BOUND, FitCheck
from llamaswap_py.supervisor.located_engines import Engines
from llamaswap_py.supervisor.never_loads import never_loads
from llamaswap_py.supervisor.prepare import further_problems, prepare
from llamaswap_py.supervisor.preset_programs import port_text

if TYPE_CHECKING:
    from llamaswap_py.config.sections import Config
    from llamaswap_py.supervisor.fit import FitResult
    from llamaswap_py.supervisor.prepare import LoadWay, Prepared


class Checked(msgspec.Struct):
    """One preset: its memory, the source of that figure, and its problems."""

    id: str
    context_per_request: int | None
    memory: dict[str, int] | None
    problems: list[str] = []
    memory_source: str | None = None
    memory_unknown: str = ""
    """Why `memory` is not known."""
    port: str = ""
    """Which process may listen on the port of a `cmd` program."""
    chosen: str = ""
    """What lswap chose where the file leaves things open, and for how much memory."""


class Report(msgspec.Struct):
    """The result. `ok` is True if there are no problems; warnings do not count."""

    ok: bool
    engine: str | None = None
    problems: list[str] = []
    warnings: list[str] = []
    models: list[Checked] = []


def run(origin: Origin, *, as_json: bool) -> bool:
    """Print the problems of a configuration; return True if there are none."""
    report = check(origin)
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        _print(origin.name if origin.path else serves_text(origin), report)
    return report.ok


def check(origin: Origin) -> Report:
    """Return all problems that can be found without loading a model."""
    try:
        config = origin.read()
    except ConfigError as error:
        problems = [*str(error).splitlines(), *_besides(error.partial)]
        return Report(ok=False, problems=list(dict.fromkeys(problems)))
    problems = []
    engine = None
    engines = Engines(config)
    try:
        if (default := engines.default) is not None:
            engine = f"{default.path} ({default.label})"
    except EngineError as error:
        problems.append(f"{config.where('engine')}: {error}")
    devices = find_devices(config, engines)
    prepared = prepare(config, engines, devices)
    fit_check = FitCheck(config, devices, Estimator(), fresh=False)
    judged = asyncio.run(fit_check.all(list(prepared.values()), BOUND))
    models = [_checked(one, problems, judged[name], config) for name, one in prepared.items()]
    plans = [
        replace(one.plan, choices=judged[name].choices or one.plan.choices)
        for name, one in prepared.items()
        if not one.problems and not judged[name].problem
    ]
    never = dict(conflicts(config, plans, devices))
    problems += [f"{config.where(f'models.{name}')}: {why}" for name, why in never.items()]
    beside_groups = [
        f"{config.where(f'models.{name}')}: {why}"
        for name, why in shut_out(config, plans, devices)
        if name not in never
    ]
    useless = [
        f"{config.where(f'models.{name}')}: keep_kv does nothing with sliding windows - set "
        "swa-full: true in args"
        for name, one in prepared.items()
        if any(map(_has_windows, one.ways.values()))
    ]
    return Report(
        ok=not problems and not any(model.problems for model in models),
        engine=engine,
        problems=problems,
        warnings=[
            *warnings(config),
            *unlisted(config, devices),
            *beside_groups,
            *useless,
            *unenforced_here(config),
        ],
        models=models,
    )


def _besides(config: Config | None) -> list[str]:
    """Return further problems of a file that cannot be used: options, files and devices."""
    if config is None:
        return []
    engines = Engines(config)
    devices = find_devices(config, engines)
    return [
        str(problem)
        for preset in config.models.values()
        for problem in further_problems(preset, config, engines, devices)
    ]


def _has_windows(way: LoadWay) -> bool:
    """Return whether `keep_kv` cannot work because the model has sliding windows."""
    try:
        return way.preset.keep_kv and read_slot_shape(way.preset.model, way.args).windows
    except LswapError:  # reported elsewhere
        return False


def _checked(prepared: Prepared, said: list[str], judged: FitResult, config: Config) -> Checked:
    """Return the result for a preset, without problems that were reported for the whole file."""
    preset = prepared.preset
    problems = [
        str(problem)
        for problem in prepared.problems
        if not (said and problem.where.endswith(".engine"))
    ]
    if judged.problem and judged.estimate is not None and not prepared.problems:
        where = config.where(f"models.{preset.id}")
        problems.append(str(PresetProblem(preset.id, where, judged.problem, judged.remedy)))
    if not problems and not prepared.problems:
        problems += [str(one) for one in never_loads(prepared, judged, config)]
    estimate = judged.estimate
    return Checked(
        preset.id,
        judged.context or context_per_request(preset),
        preset.memory if estimate is None else estimate.footprint,
        problems,
        None if estimate is None else estimate.source.value,
        judged.unknown if estimate is None and preset.memory is None else "",
        port_text(preset, can_tell=can_tell()),
        "" if problems else judged.chosen,
    )


def _print(name: str, report: Report) -> None:
    if report.engine:
        print(f"engine: {report.engine}")
    if report.models:
        columns = ("model", "state", "context/request", "memory")
        print_table(columns, [_row(model) for model in report.models])
    # A mistake in `defaults` concerns every model, and is printed once.
    said = (*report.problems, *(text for each in report.models for text in each.problems))
    for problem in dict.fromkeys(said):
        print(f"problem: {problem}")
    for model in report.models:
        if model.memory_unknown and not model.problems:
            print(f"note: {model.id}: its memory is unknown: {model.memory_unknown}")
    for model in report.models:
        if model.chosen:
            print(f"note: {model.id}: {model.chosen}")
    for model in report.models:
        if model.port and not model.problems:
            print(f"note: {model.id}: {model.port}")
    for warning in report.warnings:
        print(f"warning: {warning}")
    print(f"{name}: {_verdict(report)}")


def _verdict(report: Report) -> str:
    """Return `fine`, or what cannot be used: `lswap up` serves the models without a problem."""
    if report.ok:
        return "fine"
    failed = sum(bool(model.problems) for model in report.models)
    some = not report.problems and failed < len(report.models)
    what = f"{failed} of {len(report.models)} models not usable" if some else "not usable"
    return f"{what}: see the problems above"


def _row(model: Checked) -> tuple[str, ...]:
    context = f"{model.context_per_request:,}" if model.context_per_request else "the model's"
    memory = memory_text(model.memory) if model.memory else "?"
    if model.memory and model.memory_source:
        memory += f" ({model.memory_source})"
    return model.id, "failed" if model.problems else "fine", context, memory
