"""The only meeting point: requests and children become events, the scheduler's actions are done.

It decides nothing. An `if` on the state of a model belongs into the scheduler.

One timer for the moment at which the scheduler wants to be asked again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Final

from llamaswap_py.children import ChildLog, RuntimeDir
from llamaswap_py.config.records import Config
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
    Refuse,
    Reject,
    Reserve,
    Revoke,
    Spawn,
    Stop,
    Wake,
)
from llamaswap_py.scheduler.types import Choice, Failure, PresetId
from llamaswap_py.snapshot import DecisionView, Snapshot
from llamaswap_py.supervisor.downloads import Downloads
from llamaswap_py.supervisor.estimation import Estimating, Life, describe, lives_of
from llamaswap_py.supervisor.event_log import Feed
from llamaswap_py.supervisor.instances import Instances, Running
from llamaswap_py.supervisor.kv_cache import Keeping
from llamaswap_py.supervisor.leases import Desk, Lease, Ticket
from llamaswap_py.supervisor.library import heads_asked
from llamaswap_py.supervisor.memory_pools import WatchedPools
from llamaswap_py.supervisor.model_facts import FactsBook
from llamaswap_py.supervisor.names import names_of
from llamaswap_py.supervisor.overrides import Overrides
from llamaswap_py.supervisor.prefetch import ReadingAhead
from llamaswap_py.supervisor.prepare import Prepared, policy_of, pools_of
from llamaswap_py.supervisor.recorder import Decider, Record, Recorder
from llamaswap_py.supervisor.recovery import look_again, recover
from llamaswap_py.supervisor.reload import files_arrived
from llamaswap_py.supervisor.request_history import Remembering
from llamaswap_py.supervisor.reservations import Reservations
from llamaswap_py.supervisor.resumable_streams import Conversations
from llamaswap_py.supervisor.snapshots import About, make_snapshot, newest_decisions, outlook
from llamaswap_py.tasks import guard
from llamaswap_py.tasks.threads import PatientDisk


class Alarm:
    """Calls `ring` once at the time it was last set to (monotonic seconds)."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._at: float | None = None

    def set(self, at: float | None) -> None:
        """Ring at `at` instead; None: not at all."""
        if at == self._at:
            return
        self.cancel()
        self._at = at
        if at is not None:
            delay = max(at - time.monotonic(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(delay, self._due)

    def cancel(self) -> None:
        """Do not ring."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._at = None

    def _due(self) -> None:
        self._timer = self._at = None
        self._ring()


_log: Final = logging.getLogger("lswap")
_LOOK: Final = 1.0
"""Seconds between looks, while it stops, at children that do not end."""


class Supervisor:
    """Owns the children of one configuration. Use as an async context manager.

    Leaving the context kills every child that is left; await `shut_down()` before to be polite.
    """

    def __init__(
        self,
        config: Config,
        prepared: Mapping[str, Prepared],
        devices: tuple[Device, ...],
        runtime_dir: RuntimeDir,
        about: About,
        record: Record | None = None,
    ) -> None:
        self.config = config
        self.prepared = dict(prepared)
        self.devices = devices
        self.about = about
        self.pool = UpstreamPool()
        plans, pools = [one.plan for one in prepared.values()], pools_of(devices)
        self.scheduler = Scheduler(plans, pools, policy_of(config))
        self.decider: Decider = self.scheduler
        if record is not None:
            self.decider = Recorder(record, self.scheduler, plans, pools)
        self.happenings = Feed()
        self.facts = FactsBook(self.prepared)
        self.names = names_of(config, self.scheduler.world)
        self.remembering = Remembering(about.name, self.scheduler.traffic)
        self.desk = Desk(self)
        self.lease, self.lease_at_once = self.desk.lease, self.desk.lease_at_once
        self.reading = self.desk.reading
        self._pending: deque[ev.Event] = deque()
        self._feeding = False
        self._alarm = Alarm(lambda: self.feed(ev.TimePassed()))
        self._background: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()
        self._tasks = asyncio.TaskGroup()
        self._watched = WatchedPools(devices)
        self.reservations = Reservations(self.feed)
        self.estimating = Estimating(
            self.prepared,
            devices,
            config.memory.cache_ram,
            self._estimated,
            self._lives,
            reservations=self.reservations,
        )
        self.telemetry = Telemetry(
            devices,
            children=self._pids,
            on_measured=self._measured,
            busy=lambda: bool(self.desk.tickets or self.scheduler.world.changing()),
            resting=lambda: bool(self.running),
            settling=lambda: bool(self.scheduler.world.ledger.settling),
        )
        self.ahead = ReadingAhead(self.prepared, self.scheduler.world, config.memory, self.feed)
        self.downloads = Downloads(self._tasks, self.feed, lambda name: files_arrived(self, name))
        self.overrides = Overrides(self)
        self.conversations = Conversations(self._tasks, self.feed, self._is_alive)
        self.keeping = Keeping(config, runtime_dir.path, self.scheduler, self._tasks, self.feed)
        owners = (self.pool, self._tasks, self.feed, self._child_gone, self.keeping)
        self.instances = Instances(config, devices, runtime_dir, *owners)

    async def __aenter__(self) -> Supervisor:
        await self._stack.enter_async_context(self.pool)
        await self._stack.enter_async_context(self._tasks)
        await self._stack.enter_async_context(self.telemetry)
        await self.telemetry.measure_now()
        if recalled := await self.remembering.recall():
            self.feed(recalled)
        for work in (self.estimating, self.remembering, self.ahead):
            name = type(work).__name__
            life = guard.keep_going(name, work.run)
            self._background.append(self._tasks.create_task(life, name=name))
        for name, one in self.prepared.items():
            if one.preset.preload:
                self.feed(ev.LoadAsked(PresetId(name), evict=False))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        try:
            self.downloads.cancel()
            self.conversations.cancel()
            for task in self._background:
                task.cancel()
            if self.running and error is None:
                self.feed(ev.ShutdownAsked(0.0, force=True))
            return await self._stack.__aexit__(kind, error, trace)
        finally:
            self._alarm.cancel()
            self.instances.close()
            with suppress(OSError):  # a disk that hangs keeps nobody from ending
                PatientDisk("lswap-traffic")(self.remembering.keep)

    @property
    def running(self) -> dict[InstanceKey, Running]:
        """The children that are not reaped."""
        return self.instances.running

    def _estimated(
        self, preset: str, choices: tuple[Choice, ...], load_seconds: float | None, seeded: bool
    ) -> None:
        _log.debug("%s takes %s", preset, "; or ".join(map(describe, choices)))
        self.feed(ev.ChoicesEstimated(PresetId(preset), choices, load_seconds, seeded))

    def _lives(self) -> list[Life]:
        """Return the children that are ready, for those who measure them."""
        return lives_of(self.running, self.scheduler.world.instances)

    def _child_ready(self, key: InstanceKey) -> None:
        for life in self._lives():
            if life.pid == self.running[key].pid:
                self.estimating.note_ready(life)

    def _child_gone(self, running: Running) -> None:
        if running.pid is not None:
            self.telemetry.forget(running.pid)
        self.telemetry.measure_soon()
        self.ahead.recheck()

    def _is_alive(self, lease: Lease) -> bool:
        return InstanceKey(PresetId(lease.preset), lease.epoch) in self.running

    def _pids(self) -> list[int]:
        """Return the roots of all process trees whose memory is accounted for."""
        children = [one.pid for one in self.running.values() if one.pid is not None]
        return children + self.reservations.pids

    def _measured(self, measurement: Measurement) -> None:
        ledger, changing = self.scheduler.world.ledger, self.scheduler.world.changing()
        reserved, held, kept = self.reservations.held, self.telemetry.held, self.keeping.in_memory
        pools = self._watched.update(measurement, ledger.charges, changing, reserved, held, kept)
        self.feed(ev.PoolsMeasured(pools))
        self.keeping.give_way()

    # Requests

    def outlook(self, preset: str) -> str:
        """Return what to tell somebody who waits: `loading alpha 43% eta 2.1s`."""
        return outlook(self.scheduler, PresetId(preset))

    # Operators

    def request_load(self, preset: str) -> None:
        """Ask for a preset to be loaded; returns at once."""
        self.estimating.hurry(preset)
        self.feed(ev.LoadAsked(PresetId(preset)))

    async def begin_load(self, ticket: Ticket) -> None:
        """Let a request for a preset wait without its client; one that waits already is enough.

        Raises ApiError if it is refused at once.
        """
        asked = (ticket.event.preset, ticket.event.client)
        waiting = (one.event for one in self.desk.tickets.values())
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

        A load that somebody waits for goes on without `force`.
        """
        self.feed(ev.UnloadAsked(PresetId(preset), force))
        self.overrides.forget(preset)
        return bool(self.scheduler.world.leaving(preset))

    def pin(self, preset: str, pinned: bool) -> None:
        """Pin a preset against eviction, or let it go."""
        self.feed(ev.PinChanged(PresetId(preset), pinned))

    def keep_alive(self, preset: str, seconds: float | None) -> None:
        """Let the instance of a preset go after so long without a request; None: never."""
        self.feed(ev.TtlChanged(PresetId(preset), seconds))

    async def unloaded(self, preset: str) -> None:
        """Wait until the instances of the preset that leave now are gone."""
        leaving = self.scheduler.world.leaving(preset)
        while any(key in self.scheduler.world.instances for key in leaving):
            await self.instances.wait_gone()

    async def shut_down(self, grace: float) -> None:
        """Refuse new requests, let open ones finish for `grace` seconds, stop every child."""
        self.feed(ev.ShutdownAsked(grace))
        while self.running:
            try:
                async with asyncio.timeout(_LOOK):
                    await self.instances.wait_gone()
            except TimeoutError:
                self.instances.leave_stuck()

    def stop_now(self) -> None:
        """End every request and kill every child."""
        self.feed(ev.ShutdownAsked(0.0, force=True))

    # What is seen

    def snapshot(self) -> Snapshot:
        """Return everything at this moment."""
        return make_snapshot(self)

    def decisions(self, *, model: str | None = None, limit: int = 100) -> list[DecisionView]:
        """Return the newest decisions, oldest first."""
        return newest_decisions(self.scheduler, model, limit)

    def logs(self, preset: str) -> ChildLog | None:
        """Return the output of a preset's children, None before the first one."""
        return self.instances.logs.get(preset)

    # Events in, actions out

    def feed(self, event: ev.Event) -> None:
        """Give an event to the scheduler and carry out what it says."""
        if self._feeding:
            # An action caused this event; it is handled after that action's siblings.
            self._pending.append(event)
            return
        try:
            actions = self.decider.handle(event, time.monotonic())
        except Exception as error:
            actions = recover(self.decider, event, error)
        if actions or type(event) is not ev.RequestFinished:
            self._settle(event, actions)
        try:
            at = self.scheduler.deadline()
        except Exception as error:
            at = look_again(error)
        self._alarm.set(at)

    def _settle(self, event: ev.Event, actions: Sequence[Action]) -> None:
        """Carry out what followed from an event, and from those that this causes."""
        self._feeding = True
        try:
            while True:
                try:
                    self.happenings.note(event, actions)
                except Exception as error:
                    guard.report("feed", error)
                for action in actions:
                    try:
                        self._carry_out(action)
                    except Exception as error:
                        self._failed(action, error)
                if not self._pending:
                    return
                event = self._pending.popleft()
                try:
                    actions = self.decider.handle(event, time.monotonic())
                except Exception as error:
                    actions = recover(self.decider, event, error)
        finally:
            self._feeding = False

    def _failed(self, action: Action, error: Exception) -> None:
        """A bug, or no more files: the others must not suffer from it."""
        _log.error("lswap failed to %s", action)
        guard.report(type(action).__name__, error)
        if isinstance(action, Grant | Reject):
            self.desk.fail(action.request)
        elif isinstance(action, Stop):
            self.instances.kill(action.instance)
        elif isinstance(action, Spawn):
            if action.instance in self.instances.running:  # its task runs, and tells its exit
                self.instances.kill(action.instance)
                return
            failure = Failure("engine", "lswap failed to start it")
            self.feed(ev.InstanceExited(action.instance, failure))

    def _carry_out(self, action: Action) -> None:
        match action:
            case Grant(request, key):
                self.desk.grant(request, key)
            case Reject():
                self.desk.refuse(action)
            case Revoke(request, _, reason):
                self.desk.revoke(request, reason.value)
            case Spawn(key, choice):
                self.instances.spawn(key, self.prepared[key.preset], choice)
                self.telemetry.measure_soon()
            case Download(preset):
                said = self.prepared[preset].preset
                self.downloads.start(preset, said.hf or "", heads_asked(said))
            case ReadAhead(presets):
                self.ahead.aim(presets)
            case Reserve(name):
                self.reservations.note_held(name)
            case Refuse(name, message):
                self.reservations.note_refused(name, message)
            case Wake(key):
                self.instances.wake(key)
            case Stop():
                self.instances.stop(action)
            case Kill(key):
                self.instances.kill(key)
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
