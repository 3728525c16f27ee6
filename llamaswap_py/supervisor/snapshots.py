"""The snapshot: all facts of models, instances and devices, as the API and commands show them."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llamaswap_py import __version__
from llamaswap_py.llamacpp.context_size import context_per_request
from llamaswap_py.redaction import redact_args
from llamaswap_py.scheduler import Scheduler
from llamaswap_py.scheduler.lifecycle import State
from llamaswap_py.scheduler.state import Instance, Preset
from llamaswap_py.scheduler.types import Choice, InstanceKey, PoolId, PresetId
from llamaswap_py.snapshot import (
    AWAITS_FIT,
    AliasView,
    DeviceView,
    EngineView,
    FailureView,
    InstanceView,
    ModelView,
    Snapshot,
)
from llamaswap_py.supervisor.event_log import UnixClock
from llamaswap_py.supervisor.rooms import bytes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llamaswap_py.config.sections import Alias
    from llamaswap_py.supervisor.instances import Running
    from llamaswap_py.supervisor.kv_cache import KvCache
    from llamaswap_py.supervisor.leases import Leases
    from llamaswap_py.supervisor.prefetch import Prefetch
    from llamaswap_py.supervisor.prepare import Prepared, Presets
    from llamaswap_py.supervisor.reservations import Reservations


_STEP: Final = 500
"""Models in one turn of the event loop: some 3 ms."""


@dataclass(slots=True)
class About:
    """What a snapshot says of the supervisor itself; `listen` may be filled in late."""

    name: str
    config_path: str | None
    engine: EngineView
    listen: tuple[str, ...] = ()
    started_at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is said of a preset as long as it is what it is: half of what a snapshot costs."""

    prepared: Prepared
    choice: Choice
    args: tuple[str, ...]
    context_per_request: int | None
    metadata: dict[str, Any]


class Snapshots:
    """Makes snapshots: everything at one moment, in Unix time. Changes nothing.

    `fitting` says of a preset without an estimate how far that is.
    """

    def __init__(
        self,
        about: About,
        presets: Presets,
        scheduler: Scheduler,
        running: Mapping[InstanceKey, Running],
        leases: Leases,
        reservations: Reservations,
        prefetch: Prefetch,
        kv_cache: KvCache,
        fitting: Callable[[str], str],
    ) -> None:
        self._about = about
        self._presets = presets
        self._scheduler = scheduler
        self._running = running
        self._leases = leases
        self._reservations = reservations
        self._prefetch = prefetch
        self._kv_cache = kv_cache
        self._fitting = fitting
        self._shown: dict[str, _Shown] = {}

    def take(self, most: int | None = None) -> Snapshot:
        """Return everything at this moment; with `most`, only so many of the models."""
        scheduler, about, clock = self._scheduler, self._about, UnixClock()
        config, prepared = self._presets.config, self._presets.prepared
        instances = scheduler.state.instances.values()
        return Snapshot(
            version=__version__,
            name=about.name,
            pid=os.getpid(),
            started_at=about.started_at,
            now=clock.unix(time.monotonic()),
            listen=about.listen,
            config_path=about.config_path,
            state="draining" if scheduler.closing else "serving",
            engine=about.engine,
            devices=self._devices(),
            models=tuple(self._model(name, clock) for name in islice(prepared, most)),
            instances=tuple(self._instance(one, clock) for one in instances),
            requests_open=len(scheduler.state.leases) + len(scheduler.state.waiters),
            requests_total=self._leases.granted,
            loads_total=scheduler.loads,
            evictions_total=scheduler.evictions,
            reservations=self._reservations.views(),
            read_ahead_bytes_total=self._prefetch.bytes_read,
            kept_kv=self._kv_cache.folder.size,
            aliases=tuple(_alias(name, one) for name, one in config.aliases.items()),
        )

    async def take_in_steps(self) -> Snapshot:
        """Return the same as `take`, but give other tasks a turn after each `_STEP` models."""
        clock, models = UnixClock(), []
        for at, name in enumerate(tuple(self._presets.prepared), 1):
            if name in self._presets.prepared:  # else a reload has removed it meanwhile
                models.append(self._model(name, clock))
            if not at % _STEP:
                await asyncio.sleep(0)
        return msgspec.structs.replace(self.take(0), models=tuple(models))

    def _devices(self) -> tuple[DeviceView, ...]:
        used: dict[str, int] = {}
        for charge in self._scheduler.state.ledger.charges.values():
            for pool, size in charge.items():
                used[pool] = used.get(pool, 0) + size
        ledger = self._scheduler.state.ledger
        free, lowered = ledger.free(), self._scheduler.state.lowered()
        views = []
        for one in self._presets.devices:
            pool = PoolId(one.id)
            taken = min(lowered.get(pool, 0), max(-free[pool], 0))
            reserved = sum(charge.get(pool, 0) for charge in ledger.reserved.values())
            views.append(
                DeviceView(
                    one.id,
                    one.total,
                    one.margin - taken,
                    used.get(one.id, 0),
                    one.source,
                    strangers=None if one.source == "engine" else ledger.pools[pool].strangers,
                    reserved=reserved,
                    free=min(free[each] for each in ledger.chain(pool)) + taken,
                    within=one.within,
                    description=one.description,
                )
            )
        return tuple(views)

    def _instance(self, one: Instance, clock: UnixClock) -> InstanceView:
        running = self._running.get(one.key)
        ttl = one.ttl
        idle = one.state is State.READY and not one.leases
        return InstanceView(
            preset=one.key.preset,
            epoch=one.key.epoch,
            state=one.state.value,
            pid=running.pid if running else None,
            endpoint=str(running.endpoint) if running and running.endpoint else None,
            progress=one.fraction if one.state is State.LOADING else None,
            stage=running.stage if running else None,
            spawned_at=clock.unix(one.spawned_at),
            ready_at=clock.maybe(one.ready_at),
            load_seconds=None if one.ready_at is None else one.load_seconds,
            leases=len(one.leases),
            detached=sum(lease.detached_at is not None for lease in one.leases.values()),
            slots=None if one.ready_at is None else one.slots,
            n_ctx=running.n_ctx if running else None,
            gate="open" if one.gate_for is None and one.state is State.READY else "closed",
            claimed_by=one.claimed_by,
            last_used_at=None if one.ready_at is None else clock.unix(one.last_used),
            ttl=ttl,
            evict_at=clock.unix(one.last_used + ttl) if idle and ttl is not None else None,
            reason=one.reason,
            memory=self._charged(one),
            inputs=running.inputs if running else (),
        )

    def _charged(self, one: Instance) -> dict[str, int]:
        charge = self._scheduler.state.ledger.charges.get(one.key, {})
        return {
            each.id: size for each in self._presets.devices if (size := charge.get(PoolId(each.id)))
        }

    def _model(self, name: str, clock: UnixClock) -> ModelView:
        prepared = self._presets.prepared[name]
        preset = self._scheduler.state.presets[PresetId(name)]
        choice = preset.serving.choice if preset.serving else preset.plan.choices[0]
        known = choice.footprint is not None
        shown = self._settings(name, prepared, choice)
        return ModelView(
            id=name,
            aliases=prepared.preset.aliases,
            per_name=tuple(prepared.preset.request.per_name),
            unlisted=prepared.preset.unlisted,
            state=self._state(preset),
            pinned=preset.pin,
            ttl=preset.plan.ttl,
            leases=self._lease_count(preset),
            waiting=len(preset.queue),
            eta_seconds=self._scheduler.eta(PresetId(name)),
            footprint=bytes_of(choice.footprint) or None,
            made_of=dict(choice.made_of),
            footprint_source=choice.source if known else "unknown",
            context_per_request=self._context(preset) or shown.context_per_request,
            loads=preset.loads,
            load_seconds=preset.load_seconds,
            reason=self._fit_text(preset) or self._scheduler.waits(PresetId(name)) or preset.reason,
            failure=_failure(preset, clock),
            metadata=shown.metadata,
            created=int(self._about.started_at),
            args=shown.args,
            chosen=choice.chosen if preset.serving else _chosen(preset.plan.choices),
            downloaded=None if preset.downloading_since is None else preset.downloaded,
            repository=prepared.preset.hf,
            read_ahead=self._prefetch.view(name),
        )

    def _fit_text(self, preset: Preset) -> str:
        """Say how far the estimate of a preset is, and what comes next; "" if it is there."""
        if not preset.plan.estimating or not (stage := self._fitting(preset.plan.preset)):
            return ""
        if preset.since is not None:
            return f"{AWAITS_FIT}: {stage}; then it is loaded"
        return f"its memory is not known yet: {stage}; it is loaded when a request comes"

    def _context(self, preset: Preset) -> int | None:
        """Return the context that the child of a preset says it gives a request."""
        running = self._running.get(preset.serving.key) if preset.serving is not None else None
        return None if running is None else running.n_ctx

    def _settings(self, name: str, prepared: Prepared, choice: Choice) -> _Shown:
        shown = self._shown.get(name)
        # A reload makes all presets anew, and an estimate their choices.
        if shown is None or shown.prepared is not prepared or shown.choice is not choice:
            way = prepared.ways.get(choice.variant) or next(iter(prepared.ways.values()))
            way = way.chosen(choice.words)
            shown = self._shown[name] = _Shown(
                prepared,
                choice,
                redact_args(way.args, self._presets.config.secrets),
                context_per_request(way.preset),
                dict(prepared.preset.metadata),
            )
        return shown

    def _state(self, preset: Preset) -> str:
        """Return the state of the serving instance, else of one that is about to leave."""
        if preset.plan.problem is not None:
            return "failed"
        serving = preset.serving
        if serving is not None:
            return "draining" if serving.gate_for is not None else serving.state.value
        for one in self._scheduler.state.instances.values():
            if one.key.preset == preset.plan.preset:
                return one.state.value
        if preset.downloading_since is not None:
            return "downloading"
        return "failed" if preset.failure is not None else "unloaded"

    def _lease_count(self, preset: Preset) -> int:
        instances = self._scheduler.state.instances.values()
        return sum(len(one.leases) for one in instances if one.key.preset == preset.plan.preset)


def _chosen(choices: Sequence[Choice]) -> str:
    """Return what a preset would run as: the first choice, and the one beside other models."""
    lower = next((one.chosen for one in choices if one.beside), "")
    return "; or ".join(filter(None, (choices[0].chosen, lower)))


def _alias(name: str, alias: Alias) -> AliasView:
    if alias.first:
        return AliasView(name, alias.first)
    shares = alias.split or {}
    return AliasView(name, tuple(shares), tuple(shares.values()))


def _failure(preset: Preset, clock: UnixClock) -> FailureView | None:
    failure = preset.plan.problem or preset.failure
    if failure is None:
        return None
    retry_at = clock.unix(preset.retry_at) if preset.plan.problem is None else None
    return FailureView(failure.kind, failure.summary, failure.exit_code, failure.tail, retry_at)
