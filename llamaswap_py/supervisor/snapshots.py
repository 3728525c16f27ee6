"""How what is known looks from outside: the snapshot, errors, log lines. Changes nothing."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from llamaswap_py import __version__
from llamaswap_py.config.context import context_per_request
from llamaswap_py.errors import ApiError
from llamaswap_py.redaction import redact_args
from llamaswap_py.scheduler import Scheduler
from llamaswap_py.scheduler.actions import Reject
from llamaswap_py.scheduler.lifecycle import State
from llamaswap_py.scheduler.state import Instance, Preset
from llamaswap_py.scheduler.types import Decision, PoolId, PresetId
from llamaswap_py.snapshot import (
    AliasView,
    DecisionView,
    DeviceView,
    EngineView,
    FailureView,
    InstanceView,
    ModelView,
    Snapshot,
)

if TYPE_CHECKING:
    from llamaswap_py.config.records import Alias
    from llamaswap_py.supervisor.prepare import Prepared
    from llamaswap_py.supervisor.supervisor import Supervisor

_log: Final = logging.getLogger("lswap")


@dataclass(slots=True)
class About:
    """What a snapshot says of the supervisor itself; `listen` may be filled in late."""

    name: str
    config_path: str | None
    engine: EngineView
    listen: tuple[str, ...] = ()
    started_at: float = field(default_factory=time.time)
    shown: dict[str, _Shown] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is said of a preset as long as it is what it is: half of what a snapshot costs."""

    prepared: Prepared
    args: tuple[str, ...]
    context_per_request: int | None
    metadata: dict[str, Any]


def make_snapshot(supervisor: Supervisor, most: int | None = None) -> Snapshot:
    """Return everything at this moment, in Unix time; with `most`, only so many of the models."""
    scheduler, about = supervisor.scheduler, supervisor.about
    clock = _Clock()
    instances = tuple(
        _instance(supervisor, one, clock) for one in scheduler.world.instances.values()
    )
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
        devices=_devices(supervisor),
        models=tuple(_model(supervisor, name, clock) for name in islice(supervisor.prepared, most)),
        instances=instances,
        requests_open=len(scheduler.world.leases) + len(scheduler.world.waiters),
        requests_total=supervisor.desk.granted,
        loads_total=scheduler.loads,
        evictions_total=scheduler.evictions,
        reservations=supervisor.reservations.views(),
        read_ahead_bytes_total=supervisor.ahead.bytes_read,
        kept_kv=supervisor.keeping.folder.size,
        aliases=tuple(_alias(name, one) for name, one in supervisor.config.aliases.items()),
    )


def _alias(name: str, alias: Alias) -> AliasView:
    if alias.first:
        return AliasView(name, alias.first)
    shares = alias.split or {}
    return AliasView(name, tuple(shares), tuple(shares.values()))


def decision_view(decision: Decision) -> DecisionView:
    """Return a decision in Unix time."""
    return DecisionView(
        seq=decision.seq,
        at=_Clock().unix(decision.at),
        kind=decision.kind,
        preset=decision.preset,
        epoch=decision.epoch,
        reason=decision.reason,
    )


def newest_decisions(scheduler: Scheduler, model: str | None, limit: int) -> list[DecisionView]:
    """Return the newest decisions (of one model), oldest first."""
    found = [one for one in scheduler.decisions if model in (None, one.preset)]
    return [decision_view(one) for one in found[-limit:]] if limit else []


class _Clock:
    """Turns the scheduler's monotonic seconds into Unix seconds."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def unix(self, monotonic: float) -> float:
        return monotonic + self._offset

    def maybe(self, monotonic: float | None) -> float | None:
        return None if monotonic is None else monotonic + self._offset


def _devices(supervisor: Supervisor) -> tuple[DeviceView, ...]:
    used: dict[str, int] = {}
    for charge in supervisor.scheduler.world.ledger.charges.values():
        for pool, size in charge.items():
            used[pool] = used.get(pool, 0) + size
    ledger = supervisor.scheduler.world.ledger
    free = ledger.free()
    views = []
    for one in supervisor.devices:
        pool = PoolId(one.id)
        reserved = sum(charge.get(pool, 0) for charge in ledger.reserved.values())
        views.append(
            DeviceView(
                one.id,
                one.total,
                one.margin,
                used.get(one.id, 0),
                one.source,
                strangers=ledger.pools[pool].strangers,
                reserved=reserved,
                free=free[pool],
            )
        )
    return tuple(views)


def _instance(supervisor: Supervisor, one: Instance, clock: _Clock) -> InstanceView:
    running = supervisor.running.get(one.key)
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
        memory=_charged(supervisor, one),
        inputs=running.inputs if running else (),
    )


def _charged(supervisor: Supervisor, one: Instance) -> dict[str, int]:
    charge = supervisor.scheduler.world.ledger.charges.get(one.key, {})
    return {each.id: size for each in supervisor.devices if (size := charge.get(PoolId(each.id)))}


def _model(supervisor: Supervisor, name: str, clock: _Clock) -> ModelView:
    prepared = supervisor.prepared[name]
    preset = supervisor.scheduler.world.presets[PresetId(name)]
    choice = preset.serving.choice if preset.serving else preset.plan.choices[0]
    known = choice.footprint is not None
    shown = _shown(supervisor, name, prepared)
    return ModelView(
        id=name,
        aliases=prepared.preset.aliases,
        per_name=tuple(prepared.preset.request.per_name),
        unlisted=prepared.preset.unlisted,
        state=_state(supervisor, preset),
        pinned=preset.pin,
        ttl=preset.plan.ttl,
        leases=_leases(supervisor, preset),
        waiting=len(preset.queue),
        eta_seconds=supervisor.scheduler.eta(PresetId(name)),
        footprint={str(pool): size for pool, size in (choice.footprint or {}).items()} or None,
        made_of=dict(choice.made_of),
        footprint_source=choice.source if known else "unknown",
        context_per_request=_context(supervisor, preset) or shown.context_per_request,
        loads=preset.loads,
        load_seconds=preset.load_seconds,
        reason=preset.reason,
        failure=_failure(preset, clock),
        metadata=shown.metadata,
        created=int(supervisor.about.started_at),
        args=shown.args,
        downloaded=None if preset.downloading_since is None else preset.downloaded,
        repository=prepared.preset.hf,
        read_ahead=supervisor.ahead.view(name),
    )


def _context(supervisor: Supervisor, preset: Preset) -> int | None:
    """Return the context that the child of a preset says it gives a request."""
    running = supervisor.running.get(preset.serving.key) if preset.serving is not None else None
    return None if running is None else running.n_ctx


def _shown(supervisor: Supervisor, name: str, prepared: Prepared) -> _Shown:
    shown = supervisor.about.shown.get(name)
    if shown is None or shown.prepared is not prepared:  # a reload makes all of them anew
        shown = supervisor.about.shown[name] = _Shown(
            prepared,
            redact_args(prepared.args, supervisor.config.secrets),
            context_per_request(prepared.preset),
            dict(prepared.preset.metadata),
        )
    return shown


def _state(supervisor: Supervisor, preset: Preset) -> str:
    """Return the state people care about: of the serving instance, else of one on its way out."""
    if preset.plan.problem is not None:
        return "failed"
    serving = preset.serving
    if serving is not None:
        return "draining" if serving.gate_for is not None else serving.state.value
    for one in supervisor.scheduler.world.instances.values():
        if one.key.preset == preset.plan.preset:
            return one.state.value
    if preset.downloading_since is not None:
        return "downloading"
    return "failed" if preset.failure is not None else "unloaded"


def _leases(supervisor: Supervisor, preset: Preset) -> int:
    instances = supervisor.scheduler.world.instances.values()
    return sum(len(one.leases) for one in instances if one.key.preset == preset.plan.preset)


def _failure(preset: Preset, clock: _Clock) -> FailureView | None:
    failure = preset.plan.problem or preset.failure
    if failure is None:
        return None
    retry_at = clock.unix(preset.retry_at) if preset.plan.problem is None else None
    return FailureView(failure.kind, failure.summary, failure.exit_code, failure.tail, retry_at)


def as_error(reject: Reject) -> ApiError:
    """Return a refusal as the error a client sees."""
    return ApiError(
        reject.code,
        reject.message,
        remedy=reject.remedy,
        retry_after=reject.retry_after,
        details=dict(reject.details),
    )


def outlook(scheduler: Scheduler, preset: PresetId) -> str:
    """Return what to tell somebody who waits: `loading alpha 43% eta 2.1s`."""
    known = scheduler.world.presets[preset]
    doing = known.serving.state.value if known.serving else "waiting for memory for"
    if known.downloading_since is not None:
        doing = f"downloading {known.downloaded:.0%} of"
    words = [doing, preset]
    if known.serving is not None and known.serving.fraction is not None:
        words.append(f"{known.serving.fraction:.0%}")
    if (eta := scheduler.eta(preset, len(known.queue))) is not None:
        words.append(f"eta {eta:.1f}s")
    return " ".join(words)


def log_decision(decision: Decision, request: str | None = None) -> None:
    """Write a decision to the log; `request` is the one that brought it about as it came."""
    level = logging.WARNING if decision.kind in ("failed", "revoked") else logging.INFO
    name = decision.preset if decision.epoch is None else f"{decision.preset}#{decision.epoch}"
    about = {"decision": decision.kind, "model": decision.preset, "instance": name}
    tail = ""
    if request is not None:
        about["request"], tail = request, f" (request {request})"
    _log.log(
        level, "%s %s: %s%s", decision.kind, name, decision.reason, tail, extra={"about": about}
    )
