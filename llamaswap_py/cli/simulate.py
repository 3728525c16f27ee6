"""`lswap simulate`: a configuration and a trace under lswap's scheduler and the peers' policies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.cli.tables import print_table
from llamaswap_py.config.load import read_config
from llamaswap_py.errors import ConfigError
from llamaswap_py.scheduler.types import Policy
from llamaswap_py.simulator.models_file import SLOTS, parse_models
from llamaswap_py.simulator.policies import LSWAP, POLICIES, StuckError, run_case
from llamaswap_py.simulator.report import COLUMNS, row_of
from llamaswap_py.simulator.scenario import SimulatedChild, make_case
from llamaswap_py.simulator.trace_file import parse_trace
from llamaswap_py.supervisor.device_lists import find_devices
from llamaswap_py.supervisor.located_engines import Engines
from llamaswap_py.supervisor.prepare import policy_of, pools_of, prepare
from llamaswap_py.units import format_duration, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamaswap_py.simulator.run_records import Case, Result
    from llamaswap_py.supervisor.prepare import Prepared

READ_RATE: Final = "2GiB"
"""Bytes per second at which models load, unless the option gives another rate."""
_SHORTEST_LOAD: Final = 0.1


def run_either(
    config: Path | None,
    models: Path | None,
    trace: Path | None,
    policies: Sequence[str],
    read_rate: str,
    replay: Path | None,
    lines: tuple[int, int | None],
    *,
    as_json: bool,
) -> bool:
    """Simulate a trace, or replay `lines` of a record; return False if anything is wrong.

    Raises ConfigError for wrong input, and if neither or both are given.
    """
    remedy = "give --trace and one of --config and --models, or --replay FILE alone"
    if replay is not None:
        from llamaswap_py.cli.replay import run as run_replay

        if any(one is not None for one in (config, models, trace)) or policies:
            raise ConfigError(
                "--replay needs no --config, --models, --trace or --policy: leave them out",
                remedy=remedy,
            )
        return run_replay(replay, first=lines[0], last=lines[1], as_json=as_json)
    if trace is None:
        raise ConfigError("there is no trace to simulate", remedy=remedy)
    if (config is None) == (models is None):
        raise ConfigError("there has to be one file with the models", remedy=remedy)
    if models is not None:
        case = case_of(models, trace)
    else:
        assert config is not None
        case = read_case(config, trace, read_rate)
    return run(case, policies=policies, as_json=as_json)


def run(
    case: Case,
    *,
    policies: Sequence[str] = (),
    as_json: bool = False,
) -> bool:
    """Print the result of the case under each policy; return False if lswap broke an invariant.

    Raises ConfigError for an unknown policy.
    """
    for name in policies:
        if name not in POLICIES:
            raise ConfigError(f"unknown policy {name!r}", remedy=f"known: {', '.join(POLICIES)}")
    results = [one for name in policies or POLICIES if (one := _run(case, name)) is not None]
    if as_json:
        print(msgspec.json.encode(results).decode())
    else:
        _print(case, results)
    return not any(result.breaches for result in results)


def read_case(config_path: Path, trace_path: Path, read_rate: str = READ_RATE) -> Case:
    """Return the case for a configuration and a trace; raises ConfigError."""
    config = read_config(config_path)
    rate = _rate(read_rate)
    engines = Engines(config)
    devices = find_devices(config, engines)
    prepared = prepare(config, engines, devices)
    asks = parse_trace(_read(trace_path), tuple(prepared), name=str(trace_path))
    plans = [(one.plan, _loading(one, rate)) for one in prepared.values()]
    return make_case(trace_path.stem, plans, pools_of(devices), policy_of(config), asks)


def case_of(models_path: Path, trace_path: Path) -> Case:
    """Return the case for a file of simulated models and a trace; raises ConfigError."""
    models = parse_models(_read(models_path), str(models_path))
    names = tuple(plan.preset for plan, _ in models.plans)
    asks = parse_trace(_read(trace_path), names, name=str(trace_path))
    return make_case(trace_path.stem, models.plans, models.pools, Policy(), asks)


def _rate(text: str) -> int:
    try:
        rate = parse_size(text)
    except ValueError as error:
        raise ConfigError(str(error), where="--read-rate") from None
    if rate <= 0:
        raise ConfigError("must be more than 0", where="--read-rate")
    return rate


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"the file cannot be read: {reason}", where=str(path)) from None


def _loading(prepared: Prepared, rate: int) -> SimulatedChild:
    """Return the load time, from the size of the files, else from the footprint."""
    size = sum(_size(file) for file in prepared.files)
    if not size:
        size = sum((prepared.plan.choices[0].footprint or {}).values())
    parallel = prepared.preset.args.get("parallel")
    named = isinstance(parallel, int) and not isinstance(parallel, bool) and parallel > 0
    slots = parallel if named else SLOTS
    assert isinstance(slots, int)
    return SimulatedChild(max(size / rate, _SHORTEST_LOAD), slots)


def _size(file: str) -> int:
    try:
        return Path(file).stat().st_size
    except OSError:
        return 0


def _run(case: Case, policy: str) -> Result | None:
    """Run one policy; return None for a peer under which requests never end."""
    try:
        return run_case(case, policy)
    except StuckError:
        if policy == LSWAP:
            raise
        print(f"{policy}: some requests would wait for ever")
        return None


def _print(case: Case, results: Sequence[Result]) -> None:
    rows = ((one.name, format_duration(one.load), str(one.slots)) for one in case.models)
    print_table(("model", "load", "slots"), [*rows])
    print(f"\n{len(case.asks)} requests:")
    print_table(COLUMNS, [row_of(one) for one in results])
    for result in results:
        if result.policy == LSWAP:
            print(f"\nlongest wait: {result.eta_used:.0%} of what lswap promises")
        for breach in result.breaches:
            print(f"invariant broken: {breach}")
