"""The supervisor: turns requests and children into events, and carries out the scheduler's actions.

It decides nothing: an `if` on the state of a model belongs into the scheduler. The parts that it
owns do not know it: each gets the few calls and records that it uses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from llamaswap_py.children import Child, ChildLog, RuntimeDir
from llamaswap_py.config.sections import Config
from llamaswap_py.devices import Device, Measurement, Telemetry
from llamaswap_py.errors import ApiError
from llamaswap_py.proxy.upstream import UpstreamPool
from llamaswap_py.scheduler import InstanceKey, Scheduler
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import (
    Action,
    Download,
    Grant,
    Kill,
    Note,
    ReadAhead,
    Rechoose,
    Reduce,
    Refit,
    Refuse,
    Reject,
    Reserve,
    Revoke,
    Spawn,
    Stop,
    TryServer,
    Wake,
)
from llamaswap_py.scheduler.types import (
    Choice,
    Failure,
    Pool,
    PoolId,
    PresetId,
    PresetPlan,
)
from llamaswap_py.snapshot import DecisionView, Snapshot
from llamaswap_py.supervisor.dispatcher import Dispatcher
from llamaswap_py.supervisor.downloads import Downloads
from llamaswap_py.supervisor.estimation import Estimation, ReadyChild, describe
from llamaswap_py.supervisor.event_log import EventLog, newest_decisions
from llamaswap_py.supervisor.hub_models import heads_asked
from llamaswap_py.supervisor.instances import Instances, MakeChild, Running
from llamaswap_py.supervisor.kv_cache import KvCache
from llamaswap_py.supervisor.leases import Lease, Leases, Ticket
from llamaswap_py.supervisor.memory_pools import MemoryPools
from llamaswap_py.supervisor.model_facts import ModelFactsCache
from llamaswap_py.supervisor.names import names_of
from llamaswap_py.supervisor.overrides import Overrides
from llamaswap_py.supervisor.prefetch import Prefetch
from llamaswap_py.supervisor.prepare import Prepared, Presets, policy_of, pools_of
from llamaswap_py.supervisor.recorder import Decider, Recorder, RunRecord
from llamaswap_py.supervisor.request_history import RequestHistory
from llamaswap_py.supervisor.reservations import Reservations
from llamaswap_py.supervisor.resumable_streams import ResumableStreams
from llamaswap_py.supervisor.rpc_tries import begin_try
from llamaswap_py.supervisor.snapshots import About, Snapshots
from llamaswap_py.supervisor.strangers import SteadyStrangers
from llamaswap_py.tasks import guard
from llamaswap_py.tasks.threads import PatientDisk
from llamaswap_py.units import format_size

_log: Final = logging.getLogger("lswap")
DAY: Final = 86400.0
_LOOK: Final = 1.0
"""Seconds between looks at children that do not end while it stops."""


class Supervisor:
    """Owns the children of one configuration. Use as an async context manager.

    Leaving the context kills every child that is left; to let requests finish, await `shut_down()`
    first. `child` makes the object that runs an instance.
    """

    def __init__(
        self,
        config: Config,
        prepared: Mapping[str, Prepared],
        devices: tuple[Device, ...],
        runtime_dir: RuntimeDir,
        about: About,
        record: RunRecord | None = None,
        child: MakeChild = Child,
    ) -> None:
        self.presets = Presets(config, dict(prepared), devices)
        # Read with every request, so they are attributes of its own; `adopt` keeps them the same.
        self.config, self.prepared, self.devices = config, self.presets.prepared, devices
        self.about, self.pool = about, UpstreamPool()
        plans, pools = self.presets.plans(), pools_of(devices)
        self.scheduler = Scheduler(plans, pools, policy_of(config))
        decider = _decider_of(self.scheduler, record, plans, pools)
        self.event_log, self.facts = EventLog(), ModelFactsCache(self.prepared)
        self._dispatcher = Dispatcher(
            self.scheduler, decider, self.event_log.record, self._carry_out, self._failed
        )
        self.dispatch = self._dispatcher.dispatch
        state = self.scheduler.state
        self.names = names_of(config, state)
        self.request_history = RequestHistory(about.name, self.scheduler.traffic)
        self._background: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()
        self._tasks = tasks = asyncio.TaskGroup()
        self._memory_pools = MemoryPools(devices)
        self.strangers = SteadyStrangers(devices=devices)
        self.reservations = Reservations(self.dispatch)
        self.estimation = Estimation(
            self.prepared,
            devices,
            config.memory.cache_ram,
            self._estimated,
            self._ready_children,
            reservations=self.reservations,
            strangers=self.strangers.least,
            config=lambda: self.config,
            used=lambda: self.scheduler.neighbours(DAY),
        )
        self.telemetry = self._telemetry()
        self.prefetch = Prefetch(self.prepared, state, config.memory, self.dispatch)
        self.downloads = Downloads(tasks, self.dispatch, self._files_arrived)
        self.overrides = Overrides(self.presets, self.load, self._arguments_changed)
        self.streams = ResumableStreams(tasks, self.dispatch, self._is_alive)
        self.kv_cache = KvCache(config, runtime_dir.path, state, tasks, self.dispatch)
        owners = (self.pool, tasks, self.dispatch, self._child_gone, self.kv_cache)
        outdated = self.estimation.are_outdated
        self.instances = Instances(config, devices, runtime_dir, *owners, outdated, child)
        self.leases = Leases(
            self.scheduler,
            decider,
            self.instances.running,
            self.dispatch,
            self._dispatcher.finish,
            self.estimation.hurry,
            lambda when_full: self.names.resolve_substitute(when_full),  # noqa: PLW0108 (replaced)
        )
        self.lease = self.leases.lease
        self.reading = self.leases.reading
        told = (self.leases, self.reservations, self.prefetch, self.kv_cache, self.estimation.stage)
        self._snapshots = Snapshots(about, self.presets, self.scheduler, self.running, *told)

    def _telemetry(self) -> Telemetry:
        state = self.scheduler.state
        return Telemetry(
            self.devices,
            children=self._pids,
            on_measured=self._measured,
            busy=lambda: bool(self.leases.tickets or state.changing()),
            resting=lambda: bool(self.running),
            settling=lambda: bool(state.ledger.settling),
        )

    async def __aenter__(self) -> Supervisor:
        await self._stack.enter_async_context(self.pool)
        await self._stack.enter_async_context(self._tasks)
        await self._stack.enter_async_context(self.telemetry)
        await self.strangers.recall()
        await self.telemetry.measure_now()
        if recalled := await self.request_history.recall():
            self.dispatch(recalled)
        for name, run in (
            ("Estimating", self.estimation.run),
            ("Remembering", self.request_history.run),
            ("RememberingStrangers", self.strangers.run),
            ("ReadingAhead", self.prefetch.run),
        ):  # names of `lswap_task_failures_total`
            work = guard.keep_going(name, run)
            self._background.append(self._tasks.create_task(work, name=name))
        self._preload(self.prepared)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        try:
            self.downloads.cancel_all()
            self.streams.cancel()
            for task in self._background:
                task.cancel()
            if self.running and error is None:
                self.dispatch(ev.ShutdownAsked(0.0, force=True))
            return await self._stack.__aexit__(kind, error, trace)
        finally:
            self._dispatcher.close()
            self.instances.close()
            with suppress(OSError):  # a disk that hangs must not delay the end
                disk = PatientDisk("lswap-traffic")
                disk(self.request_history.save)
                disk(self.strangers.save)

    @property
    def running(self) -> dict[InstanceKey, Running]:
        """The children that are not reaped."""
        return self.instances.running

    def _estimated(
        self, preset: str, choices: tuple[Choice, ...], load_seconds: float | None, seeded: bool
    ) -> None:
        _log.debug("%s takes %s", preset, "; or ".join(map(describe, choices)))
        self.dispatch(ev.ChoicesEstimated(PresetId(preset), choices, load_seconds, seeded))

    def _ready_children(self) -> list[ReadyChild]:
        """Return the children that are ready, for measuring them."""
        known = self.scheduler.state.instances
        return [
            ReadyChild(
                key.preset,
                known[key].choice,
                one.pid,
                known[key].load_seconds,
                one.roots_outside(),
            )
            for key, one in self.running.items()
            if one.pid is not None and key in known and known[key].ready_at is not None
        ]

    def _child_ready(self, key: InstanceKey) -> None:
        for life in self._ready_children():
            if life.pid == self.running[key].pid:
                self.estimation.record_ready(life)

    def _child_gone(self, running: Running) -> None:
        if running.pid is not None:
            self.telemetry.discard(running.pid)
        self.telemetry.measure_soon()
        self.prefetch.recheck()

    def _is_alive(self, lease: Lease) -> bool:
        return InstanceKey(PresetId(lease.preset), lease.epoch) in self.running

    def _pids(self) -> list[int]:
        """Return the roots of all process trees whose memory is accounted for."""
        running = self.running.values()
        children = [one.pid for one in running if one.pid is not None and not one.outlived]
        outside = [pid for one in running for pid in one.roots_outside()]
        return children + outside + self.reservations.pids

    def _measured(self, measurement: Measurement) -> None:
        ledger, changing = self.scheduler.state.ledger, self.scheduler.state.changing()
        reserved, held, kept = self.reservations.held, self.telemetry.held, self.kv_cache.in_memory
        unseen = {
            key: (one.pid or 0, *one.roots_outside())
            for key, one in self.running.items()
            if one.is_unseen
        }
        pools = self._memory_pools.update(
            measurement, ledger.charges, changing, reserved, held, kept, unseen
        )
        self.strangers.record({str(pool): one.strangers for pool, one in pools.items()})
        self.dispatch(ev.PoolsMeasured(pools))
        self.kv_cache.give_way()

    # Requests

    def outlook(self, preset: str) -> str:
        """Return the notice for a client that waits: `loading alpha 43% eta 2.1s`."""
        known = self.scheduler.state.presets[PresetId(preset)]
        doing = "estimating the memory of" if known.plan.estimating else "waiting for memory for"
        doing = known.serving.state.value if known.serving else doing
        if known.downloading_since is not None:
            doing = f"downloading {known.downloaded:.0%} of"
        words = [doing, preset]
        if known.serving is not None and known.serving.fraction is not None:
            words.append(f"{known.serving.fraction:.0%}")
        if (eta := self.scheduler.eta(PresetId(preset), len(known.queue))) is not None:
            words.append(f"eta {eta:.1f}s")
        return " ".join(words)

    # Operators

    def request_load(self, preset: str) -> None:
        """Ask for a preset to be loaded; returns at once."""
        self.estimation.hurry(preset)
        self.dispatch(ev.LoadAsked(PresetId(preset)))

    def request_files(self, preset: str) -> None:
        """Have the files of a preset fetched, without loading it; returns at once."""
        self.dispatch(ev.DownloadAsked(PresetId(preset)))

    async def begin_load(self, ticket: Ticket) -> None:
        """Let a request for a preset wait without its client; one that waits already is enough.

        Raises ApiError if it is refused at once.
        """
        asked = (ticket.event.preset, ticket.event.client)
        waiting = (one.event for one in self.leases.tickets.values())
        if asked in ((event.preset, event.client) for event in waiting if not event.slot):
            return
        work = guard.contained("load", _passed(ticket))
        task = self._tasks.create_task(work, name=f"load {ticket.event.preset}")
        await asyncio.wait({task}, timeout=0)
        if task.done() and (error := task.result()) is not None:
            raise error

    async def load(self, preset: str) -> None:
        """Load a preset and wait until it is ready; raises ApiError when it cannot be."""
        self.request_load(preset)
        async with self.lease(preset, client="operator", request_id="load", slot=False):
            pass

    def unload(self, preset: str, *, force: bool) -> bool:
        """Begin to unload a preset; returns False if no instance of it leaves now.

        Without `force`, a load that a request waits for goes on.
        """
        self.dispatch(ev.UnloadAsked(PresetId(preset), force))
        self.overrides.reset(preset)
        return bool(self.scheduler.state.leaving(preset))

    def pin(self, preset: str, pinned: bool) -> list[str]:
        """Pin a preset against eviction, or let it go; return what can not be loaded beside it."""
        self.dispatch(ev.PinChanged(PresetId(preset), pinned))
        return list(self.scheduler.shut_out_by(PresetId(preset))) if pinned else []

    def keep_alive(self, preset: str, seconds: float | None) -> None:
        """Let the instance of a preset go after so long without a request; None: never."""
        self.dispatch(ev.TtlChanged(PresetId(preset), seconds))

    async def unloaded(self, preset: str) -> str:
        """Wait until the instances of the preset that leave now are gone.

        Returns what did not go as it should, in words. It does not wait for what a program leaves
        running: only a person can end that.
        """
        leaving = self.scheduler.state.leaving(preset)
        running = {key: self.running[key] for key in leaving if key in self.running}
        outlived = {key for key, one in running.items() if one.outlived}
        while any(key in self.scheduler.state.instances for key in set(leaving) - outlived):
            await self.instances.wait_gone()
            outlived = {key for key, one in running.items() if one.outlived}
        return "; ".join(text for one in running.values() for text in one.stop_failed)

    async def shut_down(self, grace: float) -> None:
        """Refuse new requests, let open ones finish for `grace` seconds, stop every child."""
        self.dispatch(ev.ShutdownAsked(grace))
        while self.running:
            try:
                async with asyncio.timeout(_LOOK):
                    await self.instances.wait_gone()
            except TimeoutError:
                self.instances.leave_stuck()

    def stop_now(self) -> None:
        """End every request and kill every child."""
        self.dispatch(ev.ShutdownAsked(0.0, force=True))

    # A changed file, or machine

    def use_devices(self, devices: tuple[Device, ...]) -> None:
        """Take the devices that there are now; idle models leave those that are gone."""
        known = {one.id: one for one in self.devices}
        for one in devices:
            if one.id not in known or known[one.id].total != one.total:
                size = format_size(one.total) if one.total else "it is not there any more"
                _log.info("device %s: %s", one.id, size)
        self.devices = self.presets.devices = devices
        self.telemetry.use(devices)
        self.instances.use_devices(devices)
        self.dispatch(ev.PoolsMeasured(self._memory_pools.use(devices)))
        self.estimation.use(devices)

    def adopt(self, config: Config, prepared: Mapping[str, Prepared]) -> Changes:
        """Put another configuration in place, all in one step of the loop."""
        presets, new = self.presets, dict(prepared)
        old = dict(presets.prepared)
        self.overrides.carry_over(new, config)
        changes = _changes(old, new)
        self.config = presets.config = config
        presets.prepared.clear()
        presets.prepared.update(new)
        self.names = names_of(config, self.scheduler.state)
        self.instances.use(config)
        gone = (*changes.changed, *changes.removed)
        self.estimation.redo((*changes.added, *gone))
        self.downloads.cancel(changes.removed)
        self.prefetch.presets_changed()
        self.instances.replays.discard(gone)
        self.kv_cache.discard(gone)
        self.dispatch(ev.PresetsChanged(presets.plans()))
        self._preload((*changes.added, *changes.changed))
        return changes

    def _preload(self, names: Iterable[str]) -> None:
        for name in names:
            if self.prepared[name].preset.preload:
                self.dispatch(ev.LoadAsked(PresetId(name), evict=False))

    async def _files_arrived(self, preset: str) -> Prepared | None:
        """Make a preset ready to run whose files have come; None if it is not there any more."""
        if (said := self.config.models.get(preset)) is None:
            return None
        prepared = await self.presets.prepare(said)
        if self.config.models.get(preset) == said:  # else a reload has seen to it meanwhile
            self.prepared[preset] = prepared
            self.estimation.redo((preset,))
            self.prefetch.presets_changed()
        return self.prepared.get(preset)

    def _arguments_changed(self, preset: str) -> None:
        self.estimation.redo((preset,))
        self.dispatch(ev.PresetsChanged(self.presets.plans()))

    # What is seen

    def snapshot(self, most: int | None = None) -> Snapshot:
        """Return everything at this moment; with `most`, only so many of the models."""
        return self._snapshots.take(most)

    async def snapshot_in_steps(self) -> Snapshot:
        """Return everything within a few turns of the event loop."""
        return await self._snapshots.take_in_steps()

    def decisions(self, *, model: str | None = None, limit: int = 100) -> list[DecisionView]:
        """Return the newest decisions, oldest first."""
        return newest_decisions(self.scheduler, model, limit)

    def logs(self, preset: str) -> ChildLog | None:
        """Return the output of a preset's children, None before the first one."""
        return self.instances.logs.get(preset)

    # Actions

    def _failed(self, action: Action, error: Exception) -> None:
        """Handle a bug, or too few file descriptors, without harm to other actions."""
        _log.error("lswap failed to %s", action)
        guard.report(type(action).__name__, error)
        if isinstance(action, Grant | Reject):
            self.leases.fail(action.request)
        elif isinstance(action, Stop):
            self.instances.kill(action.instance)
        elif isinstance(action, Spawn):
            if action.instance in self.instances.running:  # its task runs, and tells its exit
                self.instances.kill(action.instance)
                return
            failure = Failure("engine", "lswap failed to start it")
            self.dispatch(ev.InstanceExited(action.instance, failure))

    def _carry_out(self, action: Action) -> None:
        match action:
            case Grant(request, key):
                self.leases.grant(request, key)
            case Reject():
                self.leases.refuse(action)
            case Revoke(request, _, reason):
                self.leases.revoke(request, reason.value)
            case Spawn(key, choice):
                self.instances.spawn(key, self.prepared[key.preset], choice)
                self.telemetry.measure_soon()
            case Download(preset):
                said = self.prepared[preset].preset
                self.downloads.start(preset, said.hf or "", heads_asked(said))
            case ReadAhead(presets):
                self.prefetch.aim(presets)
            case TryServer(endpoint):
                begin_try(endpoint, self._tasks, self.dispatch)
            case Reserve(name):
                self.reservations.record_held(name)
            case Refuse(name, message):
                self.reservations.record_refused(name, message)
            case Wake(key):
                self.instances.wake(key)
            case Stop():
                self.instances.stop(action)
            case Kill(key):
                self.instances.kill(key)
            case Reduce(preset, choice, failure):
                self.estimation.reduce(preset, choice, failure)
            case Refit(preset, room):
                self.estimation.refit(preset, room)
            case Rechoose(preset):
                self.estimation.rechoose(preset)
            case Note(decision):
                if decision.kind == "ready" and decision.epoch is not None:
                    self._child_ready(InstanceKey(decision.preset, decision.epoch))


async def _passed(ticket: Ticket) -> ApiError | None:
    """Wait for a lease and give it back at once; return what it was refused with."""
    try:
        async with ticket:
            return None
    except ApiError as error:
        return error


@dataclass(frozen=True, slots=True)
class Changes:
    """The names of the presets that a changed configuration has added, removed and changed."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


def _decider_of(
    scheduler: Scheduler,
    record: RunRecord | None,
    plans: tuple[PresetPlan, ...],
    pools: Mapping[PoolId, Pool],
) -> Decider:
    """Return what decides: the scheduler, recorded if there is a `record`."""
    return scheduler if record is None else Recorder(record, scheduler, plans, pools)


def _changes(old: Mapping[str, Prepared], new: Mapping[str, Prepared]) -> Changes:
    return Changes(
        tuple(name for name in new if name not in old),
        tuple(name for name in old if name not in new),
        tuple(
            name
            for name, one in new.items()
            if name in old and not one.plan.same_as(old[name].plan)
        ),
    )
