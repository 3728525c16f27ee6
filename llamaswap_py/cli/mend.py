"""`lswap estimate MODEL --write`: changes the file so that a model fits.

It checks the changed file before it writes it, by the same functions as `lswap check`.
"""

from __future__ import annotations

import asyncio
import posixpath
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llamaswap_py.cli.conflicts import conflicts
from llamaswap_py.cli.show import memory_text
from llamaswap_py.config.edit import Edit, edit_keys
from llamaswap_py.config.load import COMMAND_LINE
from llamaswap_py.errors import ConfigError, LswapError
from llamaswap_py.estimate import Estimator
from llamaswap_py.llamacpp.memory_settings import CACHE_RAM
from llamaswap_py.supervisor.device_lists import find_devices
from llamaswap_py.supervisor.fit import FitCheck, FitResult
from llamaswap_py.supervisor.located_engines import Engines
from llamaswap_py.supervisor.prepare import prepare

if TYPE_CHECKING:
    from llamaswap_py.config.load import Origin
    from llamaswap_py.config.sections import Config
    from llamaswap_py.supervisor.mends import Mend


def run(origin: Origin, model: str | None, *, yes: bool) -> bool:
    """Write what makes a model fit; return False if it does not fit and nothing was written.

    Without `yes` it asks first; without a terminal to ask at it writes nothing. Raises LswapError.
    """
    config = origin.read()
    if model is None:
        raise LswapError("--write needs a model", remedy="lswap estimate [CONFIG] MODEL --write")
    if (found := config.find(model)) is None:
        remedy = f"it has: {', '.join(config.models)}"
        raise LswapError(f"{origin.name} has no model {model}", remedy=remedy)
    name = found.id
    judged, problem = judge(config, name)
    if not problem:
        print(f"{name} fits as it is: nothing to write")
        return True
    print(f"problem: {name}: {problem}")
    for mend in judged.mends:
        edit = _edit(origin, config, name, mend)
        if (proven := _proven(origin, config, name, edit)) is not None:
            return _write(edit, name, proven, mend, yes=yes)
    print(f"nothing was written: lswap found no change of the file with which {name} fits")
    return False


def judge(config: Config, name: str) -> tuple[FitResult, str]:
    """Return the judgement of a model beside the pinned ones, and its problem or ""."""
    engines = Engines(config)
    devices = find_devices(config, engines)
    every = prepare(config, engines, devices)
    chosen = [one for id, one in every.items() if id == name or one.preset.pin]
    found = asyncio.run(FitCheck(config, devices, Estimator(), fresh=False).all(chosen, None))
    judged = found[name]
    if problems := every[name].problems:
        return judged, "; ".join(str(one) for one in problems)
    if judged.problem:
        return judged, f"{judged.problem} - {judged.remedy}"
    if judged.estimate is None and judged.unknown:
        return judged, f"its memory is unknown: {judged.unknown}"
    plans = [
        replace(one.plan, choices=found[one.preset.id].choices or one.plan.choices)
        for one in chosen
        if not one.problems and not found[one.preset.id].problem
    ]
    return judged, dict(conflicts(config, plans, devices)).get(name, "")


def _edit(origin: Origin, config: Config, name: str, mend: Mend) -> Edit:
    """Return the change of the file that has the model's entry, else of the file for new models."""
    line = config.lines.get(f"models.{name}")
    named = config.sources.file(line) if line is not None and config.sources is not None else None
    file = origin.file if named is None else Path(named)
    if file is None or named == COMMAND_LINE:
        raise ConfigError(
            "there is no file to write it into", remedy="`lswap init` writes one for these models"
        )
    keys = mend.keys(name)
    if mend.model:
        keys = {place: _as_written(file, config, name, str(path)) for place, path in keys.items()}
    return edit_keys(file, keys)


def _as_written(file: Path, config: Config, name: str, path: str) -> str:
    """Return the path of another file in the same folder, in the form of the entry's own path."""
    import yaml

    said = yaml.safe_load(file.read_text(encoding="utf-8"))["models"][name]["model"]
    own, other = posixpath.basename(config.models[name].model), posixpath.basename(path)
    other = other.replace("${", "$${")
    return said.removesuffix(own) + other if isinstance(said, str) and said.endswith(own) else path


def _proven(origin: Origin, config: Config, name: str, edit: Edit) -> FitResult | None:
    """Return the judgement of the changed file; None if the model does not fit with it.

    None also if the change would alter another model, as shared lines (an anchor) do.
    """
    try:
        changed = origin.read({edit.path: edit.after})
    except ConfigError:
        return None
    others = {id: one for id, one in config.models.items() if id != name}
    if name in changed.broken or others != {
        id: one for id, one in changed.models.items() if id != name
    }:
        return None
    judged, problem = judge(changed, name)
    return None if problem else judged


def _write(edit: Edit, name: str, proven: FitResult, mend: Mend, *, yes: bool) -> bool:
    print(edit.diff, end="")
    takes = memory_text(proven.estimate.footprint if proven.estimate else None)
    runs = f" ({proven.chosen})" if proven.chosen else ""
    print(f"with this {name} needs {takes} and fits{runs}")
    if not yes:
        if not sys.stdin.isatty():
            print("nothing was written: --yes writes it")
            return False
        if not typer.confirm(f"Write it into {edit.path}?", default=True):
            return False
    edit.write()
    takes_over = "a running lswap reads it by itself"
    if CACHE_RAM in mend.args:
        takes_over = "restart a running lswap, so that it takes the size of the prompt cache"
    print(f"wrote {edit.path}: {takes_over}")
    return True
