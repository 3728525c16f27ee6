"""Twelve shapes on six machines: what llama.cpp's own fit does alone, and what lswap chooses.

    python -m bench.fit_matrix [--only SHAPE …] [--engine PATH] [--write docs/memory.md]

Files are sparse, so that a model of 40 GiB takes no disk. The machines are made of RPC devices on
loopback where an engine has a ggml-rpc-server beside it (fit_machines.py). Without one the rows
with cards are worked out by formulas, and llama.cpp's own fit is not asked. The exit status is 1
if there is a row where the engine alone runs and lswap does not.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil

from bench.estimates import serving
from bench.fit_bare import Bare, fit_alone
from bench.fit_machines import (
    LEAST,
    LOWERED,
    MACHINES,
    MARGIN,
    Lent,
    Machine,
    Placement,
    engine_that_lends,
    lent_devices,
    placements,
)
from bench.markers import write_into
from bench.measure import grid
from bench.shape_files import files_beside, write_projector, write_shape
from llamaswap_py.devices.process_memory import read_host_use
from llamaswap_py.errors import LswapError
from llamaswap_py.estimate import Estimate, Estimator, Source, Wanted
from llamaswap_py.estimate.fitter import Fitted, Fitter, FitWish
from llamaswap_py.llamacpp.binaries import Engine, locate_engine
from llamaswap_py.storage import LearnedFacts, RecordFolder
from llamaswap_py.units import GIB, HOST, format_size
from tests.estimate.shapes import SHAPES

COMMAND = "python -m bench.fit_matrix --write docs/memory.md"
CACHE_RAM = "1024"
_TRIES: dict[Source, str] = {Source.DRY_RUN: "dry run", Source.ANALYTIC: "formula"}
_ANSWER = 120.0


@dataclass(frozen=True, slots=True)
class Row:
    """One shape on one machine. `bare` is None where llama.cpp's own fit could not be asked."""

    shape: str
    machine: Machine
    bare: Bare | None
    placement: Placement
    fitted: Fitted
    margin: int = MARGIN
    real: str = ""

    @property
    def refused(self) -> bool:
        """Whether the engine alone runs, and lswap does not."""
        return self.bare is not None and self.bare.runs and not self.fitted.fits

    @property
    def less_of_both(self) -> bool:
        """Whether lswap chose a shorter context, and fewer weights on devices with it."""
        if self.bare is None or not self.bare.runs or self.fitted.step is None:
            return False
        shorter = self.fitted.step.context < self.bare.context
        return shorter and self.weights_on_devices < 0.98 * self.bare.weights_on_devices

    @property
    def weights_on_devices(self) -> int:
        parts = self.fitted.estimate.parts
        return sum(one.size for one in parts if one.what == "weights" and one.device != HOST)

    def cells(self) -> list[str]:
        """Return its cells in the table."""
        alone = "not asked" if self.bare is None else self.bare.text()
        return [self.shape, self.machine.name, alone, self._chosen(), self._margins(), self._how()]

    def _chosen(self) -> str:
        if not self.fitted.fits:
            smaller = self.fitted.smaller
            return "no" if smaller is None else f"no; {smaller.quantisation} would fit"
        if self.fitted.step is None:
            return "as the file says"
        said = self.fitted.step.text(self.placement.names)
        size = self.weights_on_devices
        said = f"{said}: {format_size(size)} of weights" if size else said
        return said if self.margin == MARGIN else f"{said}; margin {format_size(self.margin)}"

    def _margins(self) -> str:
        if not self.fitted.fits:
            return "-"
        footprint = self.fitted.estimate.footprint
        return ", ".join(
            f"{name} {format_size(size - footprint.get(name, 0))}"
            for name, size in self.placement.sizes.items()
        )

    def _how(self) -> str:
        return self.real or _TRIES.get(self.fitted.estimate.source, "formula")


@dataclass(frozen=True, slots=True)
class Setting:
    """What all rows have in common: the engine, the files, the devices, and what is loaded."""

    engine: Engine
    folder: Path
    devices: Sequence[Lent]
    real_limit: int

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.gguf"


def measure_row(setting: Setting, shape: str, machine: Machine) -> Row:
    """Fit one shape to one machine, both ways; load it where it is small enough."""
    tried = placements(machine, setting.devices)
    everything = tried[-1]
    fit_params = setting.engine.fit_params
    asked = fit_params is not None and all(one.endpoint for one in everything.devices)
    bare = None
    if asked and fit_params is not None:
        beside = SHAPES[shape].projector
        bare = fit_alone(fit_params, setting.file(shape), everything, beside)
    found = [(MARGIN, *_best(setting, shape, tried, MARGIN))]
    if not found[0][-1].fits and _best(setting, shape, tried, LEAST)[-1].fits:
        found += [(size, *_best(setting, shape, tried, size)) for size in LOWERED]
    margin, wanted, placement, fitted = next((one for one in found if one[-1].fits), found[0])
    real = _load(setting, wanted, placement, fitted) if _is_real(setting, shape, fitted) else ""
    return Row(shape, machine, bare, placement, fitted, margin, real)


def _best(
    setting: Setting, shape: str, tried: Sequence[Placement], margin: int
) -> tuple[Wanted, Placement, Fitted]:
    """Return the placement with the best step; among equal ones the first, which is smallest."""
    found: list[tuple[Wanted, Placement, Fitted]] = []
    for placement in tried:
        wanted = _wanted(setting, shape, placement)
        found.append(
            (wanted, placement, asyncio.run(_fit(setting, wanted, placement.room(margin))))
        )
    return min(found, key=lambda one: (not one[2].fits, one[2].step.rank if one[2].step else 0))


async def _fit(setting: Setting, wanted: Wanted, room: Mapping[str, int]) -> Fitted:
    with tempfile.TemporaryDirectory(dir=setting.folder) as state:
        cache = RecordFolder(Path(state) / "cache", Estimate, version=1)
        estimator = Estimator(LearnedFacts(Path(state) / "learned"), cache)
        return await Fitter(estimator).fit(wanted, room, FitWish(), said=())


def _wanted(setting: Setting, name: str, placement: Placement) -> Wanted:
    shape = SHAPES[name]
    model = str(setting.file(name))
    args = ["--model", model, *placement.args, "--cache-ram", CACHE_RAM]
    args += [str(setting.file(word)) if word in SHAPES else word for word in shape.args]
    files = [model, *(str(setting.file(one)) for one in files_beside(name))]
    if shape.projector:
        files.append(str(setting.file(name).with_suffix(".mmproj")))
        args += ["--mmproj", files[-1]]
    is_here = all(one.endpoint for one in placement.devices)
    return Wanted(
        name,
        model,
        tuple(args),
        tuple(files),
        placement.names,
        names=placement.engine_names,
        engine=setting.engine.label,
        fit_params=setting.engine.fit_params if is_here else None,
    )


# Real loads


def _is_real(setting: Setting, shape: str, fitted: Fitted) -> bool:
    """Whether a row can be loaded: dry run, small enough, and no projector (which has no data)."""
    if not fitted.fits or fitted.estimate.source is not Source.DRY_RUN or SHAPES[shape].projector:
        return False
    return sum(fitted.estimate.footprint.values()) <= setting.real_limit


def _load(setting: Setting, wanted: Wanted, placement: Placement, fitted: Fitted) -> str:
    """Start llama-server as lswap chose, let it answer; return what it took of each device."""
    words = fitted.step.words if fitted.step else ()
    wanted = replace(wanted, args=(*wanted.args, *words))
    before = {one.name: _held(one.pid) for one in placement.devices}
    try:
        with serving(setting.engine, wanted, threads=2) as (process, url):
            body = {"prompt": [1, 300, 301], "n_predict": 1}
            answer = httpx.post(f"{url}/completion", json=body, timeout=_ANSWER, trust_env=False)
            if answer.status_code != 200:
                return f"dry run; **the real load answered {answer.status_code}**"
            host = read_host_use(process.pid, wanted.files)
            took = {one.name: _held(one.pid) - before[one.name] for one in placement.devices}
    except (SystemExit, httpx.HTTPError) as error:
        return f"dry run; **the real load failed: {str(error).splitlines()[0]}**"
    took[HOST] = 0 if host is None else host.kept(fitted.estimate.in_place)
    footprint = fitted.estimate.footprint
    each = (
        f"{name} {format_size(size)} of {format_size(footprint.get(name, 0))}"
        for name, size in took.items()
        if footprint.get(name)
    )
    return f"real load: {', '.join(each)}"


def _held(pid: int) -> int:
    return psutil.Process(pid).memory_info().rss


# The table


@contextmanager
def opened(engine: Engine, folder: Path | None, real_limit: int) -> Iterator[Setting]:
    """Make the folder of the files, and lend the devices."""
    with tempfile.TemporaryDirectory(prefix="lswap-fit-", dir=folder) as name:
        count = max(len(one.cards) for one in MACHINES)
        with lent_devices(engine, Path(name), count) as devices:
            yield Setting(engine, Path(name), devices, real_limit)


def measure(
    setting: Setting,
    shapes: Sequence[str],
    machines: Sequence[Machine],
    note: Callable[[str], None],
) -> list[Row]:
    """Return the rows of these shapes on these machines."""
    rows = []
    for shape in shapes:
        for name in (shape, *files_beside(shape)):
            write_shape(setting.file(name), SHAPES[name])
        write_projector(setting.file(shape).with_suffix(".mmproj"), SHAPES[shape])
        for machine in machines:
            note(f"{shape}, {machine.name}")
            rows.append(measure_row(setting, shape, machine))
    return rows


def render(rows: Sequence[Row], setting: Setting) -> str:
    """Return the page: what it was measured on, the table, and what it shows."""
    made = "RPC devices of this host" if setting.devices[0].endpoint else "no device: formulas"
    head = (
        f"{datetime.now(UTC):%Y-%m-%d}, llama.cpp {setting.engine.label}; cards are {made}; "
        f"rows up to {format_size(setting.real_limit)} were loaded."
    )
    titles = ["shape", "machine", "llama.cpp alone", "lswap", "left free", "found by"]
    table = grid([titles, *(row.cells() for row in rows)], left=tuple(range(len(titles))))
    return f"{head}\n\n{table}\n\n{_summary(rows)}"


def _summary(rows: Sequence[Row]) -> str:
    compared = [row for row in rows if row.bare is not None]
    alone = sum(row.bare.runs for row in compared if row.bare)
    loaded = sum(row.real.startswith("real") for row in rows)
    failed = sum(row.real.startswith("dry") for row in rows)
    lines = [
        f"{len(rows)} rows, {len(compared)} of them compared with llama.cpp's own fit:",
        "",
        f"* the engine alone runs: {alone}; lswap runs: {sum(row.fitted.fits for row in compared)}",
        _listed("the engine alone runs and lswap does not", [one for one in rows if one.refused]),
        *(_said_of_margin(row) for row in rows if row.margin < MARGIN),
        _listed(
            "lswap chose a shorter context and fewer weights on devices",
            [one for one in rows if one.less_of_both],
        ),
        f"* loaded for real: {loaded}; a real load failed: {failed}",
    ]
    return "\n".join(lines)


def _said_of_margin(row: Row) -> str:
    said = (
        f"* {row.shape} on {row.machine.name}: nothing smaller fits, so lswap lowers the margin "
        f"to {format_size(row.margin)}"
    )
    if row.bare is None or not row.bare.runs:
        return said
    left = format_size(row.bare.left)
    return f"{said}; the engine alone would leave {left} of the host's {row.machine.host} GiB"


def _listed(what: str, rows: Sequence[Row]) -> str:
    names = "; ".join(f"{row.shape} on {row.machine.name}" for row in rows)
    return f"* {what}: {len(rows)}" + (f" ({names})" if names else "")


def main() -> int:
    """Measure, print or write the table; return 1 if lswap refuses what the engine runs."""
    parser = argparse.ArgumentParser(prog="python -m bench.fit_matrix", description=__doc__)
    parser.add_argument("--only", nargs="*", metavar="SHAPE", choices=SHAPES, help="some shapes")
    parser.add_argument("--engine", help="a llama-server (one with a ggml-rpc-server, else auto)")
    parser.add_argument("--folder", type=Path, help="where the sparse files are written")
    parser.add_argument("--real-up-to", type=float, default=18, metavar="GIB", help="(18)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put it between its markers")
    asked = parser.parse_args()
    began = time.monotonic()
    limit = min(int(asked.real_up_to * GIB), psutil.virtual_memory().available // 2)
    try:
        engine = locate_engine(asked.engine) if asked.engine else engine_that_lends()
        with opened(engine or locate_engine(), asked.folder, limit) as setting:
            rows = measure(setting, asked.only or list(SHAPES), MACHINES, _note)
            text = render(rows, setting)
    except LswapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if asked.write:
        write_into(asked.write, COMMAND, text)
    else:
        print(text)
    _note(f"{(time.monotonic() - began) / 60:.1f} minutes")
    failed = any(row.refused or row.real.startswith("dry") for row in rows)
    return 1 if failed else 0


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
