"""Make presets ready to run: engine, command line, environment, files, and what is wrong with them.

`lswap up` and `lswap check` see the same: a preset that cannot work is listed with its reason.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from llamaswap_py.config.argv import PresetProblem, build_args, check_args
from llamaswap_py.config.records import Config, Preset
from llamaswap_py.config.values import EngineChoice, EngineSpec
from llamaswap_py.devices import HOST, Device
from llamaswap_py.engine.locate import Engine, locate_engine
from llamaswap_py.errors import EngineError
from llamaswap_py.scheduler.ledger import Ledger
from llamaswap_py.scheduler.records import (
    Choice,
    Failure,
    Policy,
    Pool,
    PoolId,
    PresetId,
    PresetPlan,
)

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_FILE_OPTIONS = (
    *("mmproj", "model-draft", "lora", "control-vector"),
    *("grammar-file", "json-schema-file", "chat-template-file"),
)
_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A preset with all that a child needs; `problems` say why it cannot run, if it cannot."""

    preset: Preset
    plan: PresetPlan
    engine: Engine | None
    args: tuple[str, ...]
    env: Mapping[str, str]
    files: tuple[str, ...]
    problems: tuple[PresetProblem, ...]


class Engines:
    """Locates each engine that a configuration names, once."""

    def __init__(self, config: Config) -> None:
        self._found: dict[EngineSpec, Engine | EngineError] = {}
        for preset in config.models.values():
            self._locate(preset.engine)
        self._default = self._locate(config.engine)

    @property
    def default(self) -> Engine:
        """The engine of the file's top level; raises EngineError when there is none at all.

        Where only the presets' own engines work, the first of those stands for it.
        """
        found = [one for one in (self._default, *self._found.values()) if isinstance(one, Engine)]
        if found:
            return found[0]
        assert isinstance(self._default, EngineError)
        raise self._default

    @property
    def backends(self) -> frozenset[str]:
        """The backends of all engines that were found."""
        return frozenset(one.backend for one in self._found.values() if isinstance(one, Engine))

    def of(self, preset: Preset) -> Engine | EngineError:
        """Return a preset's engine, or why there is none."""
        return self._found[preset.engine]

    def _locate(self, spec: EngineSpec) -> Engine | EngineError:
        if spec not in self._found:
            try:
                self._found[spec] = locate_engine(_as_wanted(spec))
            except EngineError as error:
                self._found[spec] = error
        return self._found[spec]


def _as_wanted(spec: EngineSpec) -> str | dict[str, object]:
    if not isinstance(spec, EngineChoice):
        return spec
    wanted: dict[str, object] = {"build": spec.build, "backend": spec.backend}
    return {key: value for key, value in wanted.items() if value is not None}


def policy_of(config: Config) -> Policy:
    """Return the scheduler's knobs."""
    return Policy(
        max_loaded=config.policy.max_loaded,
        max_wait=config.policy.max_wait,
        queue_limit=config.policy.queue.limit,
        queue_timeout=config.policy.queue.timeout,
        settle=config.memory.settle,
    )


def pools_of(devices: tuple[Device, ...]) -> dict[PoolId, Pool]:
    """Return the devices as the scheduler's pools."""
    return {PoolId(one.id): Pool(one.total, one.margin, watched=one.watched) for one in devices}


def prepare(config: Config, engines: Engines, devices: tuple[Device, ...]) -> dict[str, Prepared]:
    """Prepare every preset of the file, in its order."""
    ledger = Ledger(pools_of(devices), policy_of(config))
    return {
        name: _prepare_one(preset, config, engines, devices, ledger)
        for name, preset in config.models.items()
    }


def _prepare_one(
    preset: Preset,
    config: Config,
    engines: Engines,
    devices: tuple[Device, ...],
    ledger: Ledger,
) -> Prepared:
    engine = engines.of(preset)
    files = model_files(preset)
    problems = list(_file_problems(preset, config, files))
    options = None
    if isinstance(engine, EngineError):
        where = config.where(f"models.{preset.id}.engine")
        problems.append(PresetProblem(preset.id, where, engine.message, engine.remedy))
    else:
        options = engine.options
        problems += check_args(preset, config, options)
    problems += _device_problems(preset, config, devices)
    plan = _plan(preset, config, problems)
    ledger.open_pools(plan)
    if not problems and (shortfall := ledger.shortfall(ledger.charge_of(plan), ())):
        where = config.where(f"models.{preset.id}.memory")
        remedy = "declare less memory, a lower margin, or a larger device"
        problems.append(PresetProblem(preset.id, where, f"it can never fit: {shortfall}", remedy))
        plan = _plan(preset, config, problems)
    found = engine if isinstance(engine, Engine) else None
    return Prepared(
        preset=preset,
        plan=plan,
        engine=found,
        args=build_args(preset, config, options),
        env=preset.env,
        files=files,
        problems=tuple(problems),
    )


def model_files(preset: Preset) -> tuple[str, ...]:
    """Return every file a load reads: all shards of the model, projector, draft, adapters."""
    files = list(_shards(preset.model))
    for option in _FILE_OPTIONS:
        value = preset.args.get(option)
        if isinstance(value, str):
            files.append(value)
        elif isinstance(value, tuple):
            files += [str(one) for one in value]
    return tuple(files)


def _shards(model: str) -> list[str]:
    match = _SHARD.fullmatch(model)
    if match is None:
        return [model]
    count = int(match["count"])
    return [f"{match['stem']}-{n:05d}-of-{match['count']}.gguf" for n in range(1, count + 1)]


def _file_problems(preset: Preset, config: Config, files: tuple[str, ...]) -> list[PresetProblem]:
    problems = []
    for file in files:
        is_model = file in _shards(preset.model)
        reason = _unreadable(Path(file), gguf=is_model)
        if reason:
            key = "model" if is_model else "args"
            where = config.where(f"models.{preset.id}.{key}")
            remedy = "check the path, or put the file there"
            problems.append(PresetProblem(preset.id, where, f"{file}: {reason}", remedy))
    return problems


def _unreadable(path: Path, *, gguf: bool) -> str:
    try:
        if path.is_dir():
            return "this is a folder, not a file"
        with path.open("rb") as file:
            if gguf and file.read(len(_MAGIC)) != _MAGIC:
                return "this is no GGUF file (it does not begin with GGUF)"
    except FileNotFoundError:
        return "there is no such file"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _device_problems(
    preset: Preset, config: Config, devices: tuple[Device, ...]
) -> list[PresetProblem]:
    known = [one.id for one in devices]
    named = {"device": () if preset.device == "auto" else preset.device}
    named["memory"] = tuple(preset.memory or ())
    return [
        PresetProblem(
            preset.id,
            config.where(f"models.{preset.id}.{key}"),
            f"there is no device {name} here",
            f"known: {', '.join(known)}; others can be declared under memory.devices",
        )
        for key, names in named.items()
        for name in names
        if name not in known
    ]


def _plan(preset: Preset, config: Config, problems: list[PresetProblem]) -> PresetPlan:
    problem = None
    if problems:
        kind = "config"
        problem = Failure(kind, "; ".join(map(str, problems)))
    placement = () if preset.device == "auto" else tuple(PoolId(one) for one in preset.device)
    return PresetPlan(
        preset=PresetId(preset.id),
        choices=(Choice(_footprint(preset, config), placement),),
        fingerprint=_fingerprint(preset),
        pin=preset.pin,
        ttl=preset.ttl,
        concurrency=preset.concurrency,
        drain_timeout=preset.drain_timeout,
        cancel_at_drain_deadline=preset.on_drain_deadline == "cancel",
        problem=problem,
    )


def _footprint(preset: Preset, config: Config) -> dict[PoolId, int] | None:
    """Return what the file declares, and the prompt cache where nothing is said of the host."""
    if preset.memory is None:
        return None
    footprint = {PoolId(device): size for device, size in preset.memory.items()}
    footprint.setdefault(PoolId(HOST), config.memory.cache_ram)
    return footprint


def _fingerprint(preset: Preset) -> str:
    """Return what tells its child apart from that of another version of the file."""
    told = (preset.model, preset.args, preset.extra, preset.env, preset.engine, preset.device)
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()[:16]
