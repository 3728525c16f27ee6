"""Makes presets ready to run: engine, command line, environment, files, and their problems.

`lswap up` and `lswap check` both use it: a preset that cannot work is listed with its reason. A
preset with `cmd` is a program other than llama-server, and does not have an engine.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from llamaswap_py.config.argv import PresetProblem, build_args, check_preset
from llamaswap_py.config.model_forms import starts_container
from llamaswap_py.config.preset import variant_presets
from llamaswap_py.config.sections import Config, Preset, groups_of
from llamaswap_py.devices import Device, Placement, meant, place, seen_by
from llamaswap_py.errors import EngineError, LswapError
from llamaswap_py.estimate.files import with_whole_batch
from llamaswap_py.estimate.types import PROMPT_CACHE, named
from llamaswap_py.hub.cache import cache_folder
from llamaswap_py.llamacpp.binaries import Engine
from llamaswap_py.llamacpp.embedding_models import kind_of, ranks_whole
from llamaswap_py.llamacpp.memory_settings import (
    CACHE_RAM,
    devices_named,
    names_of,
)
from llamaswap_py.redaction import hide
from llamaswap_py.scheduler.feasibility import judge, remedies
from llamaswap_py.scheduler.ledger import Ledger
from llamaswap_py.scheduler.types import (
    RPC_LOST,
    TOO_LARGE,
    Choice,
    Failure,
    Policy,
    Pool,
    PoolId,
    PresetId,
    PresetPlan,
)
from llamaswap_py.supervisor.device_views import view_of
from llamaswap_py.supervisor.hub_models import with_files
from llamaswap_py.supervisor.located_engines import Engines
from llamaswap_py.supervisor.preset_files import FILE_REMEDIES, file_problems, model_files
from llamaswap_py.supervisor.preset_programs import program_problems
from llamaswap_py.supervisor.preset_servers import (
    ServerTries,
    endpoints_of,
    kind_of_problems,
    server_problems,
)
from llamaswap_py.units import HOST, MIB, format_size

_ASLEEP_GPU, _ASLEEP_HOST = 600 * MIB, 64 * MIB


@dataclass(frozen=True, slots=True)
class LoadWay:
    """One variant of a preset: the preset as it says, its command line, the files it reads.

    `view` is how its engine sees the devices, `named` the devices that it may use, None where that
    is left open. `own_choice`: its arguments name them, as the engine calls them. `said` are the
    options that may not be chosen, because the file or lswap gives them.
    """

    preset: Preset
    args: tuple[str, ...]
    files: tuple[str, ...]
    view: str = ""
    named: tuple[str, ...] | None = None
    own_choice: bool = False
    said: frozenset[str] = frozenset()

    def place(
        self, chosen: Sequence[str], devices: tuple[Device, ...], engine: Engine
    ) -> Placement:
        """Return how its child is kept to the chosen devices."""
        return place(
            chosen,
            devices,
            view=self.view,
            backend=engine.backend,
            own_env=self.preset.env,
            own_choice=self.own_choice,
        )

    def chosen(self, words: tuple[str, ...]) -> LoadWay:
        """Return the way with words that were chosen besides, which come last and count."""
        if not words:
            return self
        preset = msgspec.structs.replace(self.preset, extra=(*self.preset.extra, *words))
        return replace(self, preset=preset, args=(*self.args, *words))


@dataclass(frozen=True, slots=True)
class Prepared:
    """A preset with all that a child needs; `problems` say why it cannot run, if it cannot.

    `ways` are its variants by name; a preset without variants has one, named "".
    """

    preset: Preset
    plan: PresetPlan
    engine: Engine | None
    ways: Mapping[str, LoadWay]
    problems: tuple[PresetProblem, ...]

    @property
    def args(self) -> tuple[str, ...]:
        """The command line of the first variant."""
        return next(iter(self.ways.values())).args

    @property
    def files(self) -> tuple[str, ...]:
        """The files of the first variant."""
        return next(iter(self.ways.values())).files

    @property
    def env(self) -> Mapping[str, str]:
        """The environment of every child, besides its placement."""
        return self.preset.env

    def as_variant(self, name: str, words: tuple[str, ...] = ()) -> Prepared:
        """Return the preset as if that variant, with chosen words, were all there is."""
        way = self.ways[name].chosen(words)
        return replace(self, preset=way.preset, ways={name: way})


def policy_of(config: Config) -> Policy:
    """Return the scheduler's knobs."""
    return Policy(
        max_loaded=config.policy.max_loaded,
        max_wait=config.policy.max_wait,
        detached_timeout=config.policy.detached_timeout,
        queue_limit=config.policy.queue.limit,
        queue_timeout=config.policy.queue.timeout,
        settle=config.memory.settle,
    )


def pools_of(devices: tuple[Device, ...]) -> dict[PoolId, Pool]:
    """Return the devices as the scheduler's pools."""
    return {
        PoolId(one.id): Pool(
            one.total,
            one.margin,
            watched=one.watched,
            within=None if one.within is None else PoolId(one.within),
        )
        for one in devices
    }


def prepare(
    config: Config,
    engines: Engines,
    devices: tuple[Device, ...],
    in_use: frozenset[str] = frozenset(),
) -> dict[str, Prepared]:
    """Prepare every preset of the file, in its order; `in_use` are RPC servers of our children."""
    ledger, tries = Ledger(pools_of(devices), policy_of(config)), ServerTries(in_use)
    return {
        name: _prepare_one(preset, config, engines, devices, ledger, tries)
        for name, preset in config.models.items()
    }


@dataclass(slots=True)
class Presets:
    """The configuration that counts now, and its presets made ready to run.

    A reload changes `config` and what is in `prepared`; the mapping itself stays.
    """

    config: Config
    prepared: dict[str, Prepared]
    devices: tuple[Device, ...]

    async def prepare(self, preset: Preset) -> Prepared:
        """Make one preset ready to run, as if the file had no other."""
        alone = msgspec.structs.replace(self.config, models={preset.id: preset})
        return (await self.prepare_all(alone))[preset.id]

    async def prepare_all(self, config: Config) -> dict[str, Prepared]:
        """Make the presets of another configuration ready to run; changes nothing."""
        return await asyncio.to_thread(lambda: prepare(config, Engines(config), self.devices))

    def plans(self) -> tuple[PresetPlan, ...]:
        """Return what the scheduler has to know of each."""
        return tuple(one.plan for one in self.prepared.values())


def _prepare_one(
    preset: Preset,
    config: Config,
    engines: Engines,
    devices: tuple[Device, ...],
    ledger: Ledger,
    tries: ServerTries,
) -> Prepared:
    if preset.id in config.broken:
        return _broken(preset, config, engines, devices)
    named = [with_files(one) for one in variant_presets(preset)]
    absent = any(missing for _, missing in named)
    preset, _ = with_files(preset)
    engine = engines.of(preset) if preset.cmd is None else None
    found = engine if isinstance(engine, Engine) else None
    ways = {one.variant: _way(one, config, found) for one, _ in named}
    problems: list[PresetProblem] = []
    if isinstance(engine, Engine):
        ways = {name: _sighted(way, engine, devices) for name, way in ways.items()}
    for way in ways.values():
        problems += _file_problems(way, config)
        lost: list[PresetProblem] = []
        if isinstance(engine, Engine) and seen_by(way.view, devices) is None:
            lost = server_problems(way.preset, way.args, engine, config, tries)
        problems += lost or _device_problems(way.preset, config, devices, way.view)
    if isinstance(engine, EngineError):
        where = config.where(f"models.{preset.id}.engine")
        problems.append(PresetProblem(preset.id, where, engine.message, engine.remedy))
    elif engine is None:
        problems += program_problems(preset, config)
    else:
        problems += check_preset(preset, config, engine.options)
    problems = _without_secrets(problems, config)
    kind = kind_of_problems(problems)
    plan = _plan(preset, config, ways, problems, absent=absent, kind=kind)
    ledger.open_pools(plan)
    options_that_fit, shortfall = judge(ledger, plan)
    if not problems and not options_that_fit:
        where = config.where(f"models.{preset.id}.memory")
        message, remedy = f"it can never fit: {shortfall}", remedies(ledger, plan)
        problems.append(PresetProblem(preset.id, where, message, remedy))
        plan = _plan(preset, config, ways, problems, absent=absent, kind=TOO_LARGE)
    return Prepared(preset, plan, found, ways, tuple(problems))


def _broken(
    preset: Preset, config: Config, engines: Engines, devices: tuple[Device, ...]
) -> Prepared:
    """Return a preset that the file describes wrongly: it is listed, and cannot run."""
    problems = [PresetProblem(preset.id, *one) for one in config.broken[preset.id]]
    if (described := config.described.get(preset.id)) is not None:
        problems += further_problems(described, config, engines, devices)
    ways = {"": LoadWay(preset, (), ())}
    return Prepared(
        preset, _plan(preset, config, ways, problems, absent=False), None, ways, tuple(problems)
    )


def further_problems(
    preset: Preset, config: Config, engines: Engines, devices: tuple[Device, ...]
) -> list[PresetProblem]:
    """Return what is wrong with options, files and devices of a preset that has other mistakes."""
    if preset.cmd is not None:
        return []
    engine = engines.found(preset)
    options = engine.options if engine is not None else None
    problems: list[PresetProblem] = []
    try:
        ways = [with_files(one)[0] for one in variant_presets(preset)]
    except LswapError:  # its repository has no name that can be: said already
        return []
    for one in ways:
        problems += _file_problems(_way(one, config, engine), config)
        problems += _device_problems(one, config, devices)
    problems += check_preset(preset, config, options)
    return _without_secrets(problems, config)


def _without_secrets(problems: Iterable[PresetProblem], config: Config) -> list[PresetProblem]:
    """Return each problem once, with values of the environment as the file names them."""
    told = (
        replace(
            one,
            message=hide(one.message, config.secrets),
            remedy=hide(one.remedy, config.secrets),
        )
        for one in problems
    )
    return list(dict.fromkeys(told))


def _way(preset: Preset, config: Config, engine: Engine | None) -> LoadWay:
    if preset.cmd is not None:
        return LoadWay(preset, preset.cmd.words, (), named=_named(preset))
    ranks = engine is not None and ranks_whole(engine.build)
    whole = with_whole_batch(preset, ranks_whole=ranks)
    args = build_args(whole, config, None if engine is None else engine.options)
    said = names_of(args) - (whole.args.keys() - preset.args.keys())
    preset = whole
    if "memory.cache_ram" not in config.lines:
        said.discard(CACHE_RAM)
    files, named = model_files(preset), _named(preset)
    return LoadWay(preset, args, files, named=named, said=frozenset(said))


def _named(preset: Preset) -> tuple[str, ...] | None:
    """Return the devices a preset names, None where it leaves them open."""
    return None if isinstance(preset.device, str) else preset.device


def _sighted(way: LoadWay, engine: Engine, devices: tuple[Device, ...]) -> LoadWay:
    """Return a way to load a preset with what its engine sees of the devices."""
    view = view_of(engine, way.preset.env, way.args).key
    asked = devices_named(way.args)
    if asked is None:
        named = _named(way.preset)
        if named is not None:
            named = tuple(meant(one, view, devices) or one for one in named)
        return replace(way, view=view, named=named)
    ours = {name: id for id, name in (seen_by(view, devices) or {}).items()}
    named = tuple(ours.get(one, one) for one in asked) or (HOST,)
    return replace(way, view=view, named=named, own_choice=True)


def is_mended(prepared: Prepared, config: Config, tries: ServerTries) -> bool:
    """Tell whether the reported problem of a file, or of an RPC server, is solved; blocks."""
    if any(one.kind == RPC_LOST for one in prepared.problems):
        return not any(map(tries.failure, prepared.plan.endpoints))
    then = {one for one in prepared.problems if one.remedy in FILE_REMEDIES}
    now = set(
        _without_secrets(
            (one for way in prepared.ways.values() for one in _file_problems(way, config)), config
        )
    )
    return then != now


def _file_problems(way: LoadWay, config: Config) -> list[PresetProblem]:
    return file_problems(way.preset, way.files, config)


def _device_problems(
    preset: Preset, config: Config, devices: tuple[Device, ...], view: str = ""
) -> list[PresetProblem]:
    known = [one.id for one in devices]
    named = {"device": _named(preset) or ()}
    named["memory"] = tuple(preset.memory or ())
    found = [
        PresetProblem(
            preset.id,
            config.where(f"models.{preset.id}.{key}"),
            f"there is no device {name} here",
            f"known: {', '.join(known)}; others can be declared under memory.devices",
        )
        for key, names in named.items()
        for name in names
        if name not in known and meant(name, view, devices) is None
    ]
    usable = seen_by(view, devices)
    if usable is not None:
        found += [
            PresetProblem(
                preset.id,
                config.where(f"models.{preset.id}.device"),
                f"its engine does not list {name}",
                f"it lists: {', '.join(usable) or 'none'}; take one of them, or another engine",
            )
            for name in named["device"]
            if name in known and meant(name, view, devices) is None
        ]
    return found


def _plan(
    preset: Preset,
    config: Config,
    ways: Mapping[str, LoadWay],
    problems: list[PresetProblem],
    *,
    absent: bool,
    kind: str = "config",
) -> PresetPlan:
    problem = None
    if problems:
        problem = Failure(kind, "; ".join(str(one) for one in problems))
    undeclared = any(way.preset.memory is None for way in ways.values())
    return PresetPlan(
        preset=PresetId(preset.id),
        choices=tuple(_choice(way, config) for way in ways.values()),
        prefer_fit=preset.prefer == "fit",
        groups=(groups := groups_of(config, preset.id)),
        endpoints=endpoints_of(way.args for way in ways.values()),
        persistent=tuple(one for one in groups if config.groups[one].persistent),
        priority=preset.priority,
        when_full=preset.when_full,
        fingerprint=_fingerprint(preset, ways),
        estimating=undeclared and problem is None and not absent,
        absent=absent,
        kind="program" if preset.cmd is not None else kind_of(preset),
        pin=preset.pin,
        ttl=preset.ttl,
        concurrency=preset.concurrency,
        drain_timeout=preset.drain_timeout,
        cancel_at_drain_deadline=preset.on_drain_deadline == "cancel",
        problem=problem,
        single=preset.served_by == "container" or _starts_container(preset),
    )


def _starts_container(preset: Preset) -> bool:
    return preset.cmd is not None and starts_container(preset.cmd.words) is not None


def _choice(way: LoadWay, config: Config) -> Choice:
    preset = way.preset
    placement = tuple(PoolId(one) for one in way.named or ())
    footprint = _footprint(preset, config)
    return Choice(
        footprint,
        placement,
        preset.variant,
        "unknown" if footprint is None else "declared",
        sleeping_footprint(preset, footprint),
        made_of=_made_of(preset, config),
    )


def _made_of(preset: Preset, config: Config) -> tuple[tuple[str, str], ...]:
    """Say what is charged besides what a preset declares."""
    if preset.memory is None or preset.cmd is not None or HOST in preset.memory:
        return ()
    return ((HOST, f"{format_size(config.memory.cache_ram)} {named(PROMPT_CACHE)}"),)


def sleeping_footprint(
    preset: Preset, footprint: Mapping[PoolId, int] | None
) -> dict[PoolId, int] | None:
    """Return what is left of a child that sleeps; None for a preset that never does.

    The process stays, with its driver context on each GPU (docs/design/engine.md, "Answers").
    """
    if preset.sleep is None or footprint is None:
        return None
    return {
        pool: min(size, _ASLEEP_HOST if pool == HOST else _ASLEEP_GPU)
        for pool, size in footprint.items()
    }


def _footprint(preset: Preset, config: Config) -> dict[PoolId, int] | None:
    """Return what the file declares, and the prompt cache where nothing is said of the host."""
    if preset.memory is None:
        return None
    footprint = {PoolId(device): size for device, size in preset.memory.items()}
    if preset.cmd is None:
        footprint.setdefault(PoolId(HOST), config.memory.cache_ram)
    return footprint


def _fingerprint(preset: Preset, ways: Mapping[str, LoadWay]) -> str:
    """Return what tells its child apart from that of another version of the file."""
    lines = [(name, way.args, way.preset.device) for name, way in ways.items()]
    if preset.cmd is not None:
        return _hashed((lines, preset.env, preset.cmd, preset.ready))
    if preset.hf is not None:  # where its files lie does not matter, nor whether they are here
        cache = str(cache_folder())
        said = [
            (name, [one for one in way.preset.args.items() if cache not in str(one[1])])
            for name, way in ways.items()
        ]
        more = (preset.hf, preset.extra, preset.device)
        return _hashed((said, more, preset.env, preset.engine))
    return _hashed((lines, preset.env, preset.engine))


def _hashed(told: object) -> str:
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()[:16]
