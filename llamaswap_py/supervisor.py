"""The only meeting point: requests and children become events, the scheduler's actions are done.

It decides nothing. An `if` on the state of a model belongs into the scheduler.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final

from llamaswap_py.children import (
    Child,
    ChildEvent,
    ChildExited,
    ChildLog,
    ChildLost,
    ChildProgress,
    ChildReady,
    ChildSpawned,
    ChildSpec,
    ChildStalled,
    RuntimeDir,
)
from llamaswap_py.children import Failure as ChildFailure
from llamaswap_py.config.records import Config
from llamaswap_py.devices import Device, placement_env, read_devices
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.engine.locate import Engine
from llamaswap_py.errors import ApiError
from llamaswap_py.leases import NO_WISHES, Lease, Notice, Ticket, Wishes, new_request_id
from llamaswap_py.presets import Engines, Prepared, policy_of, pools_of, prepare
from llamaswap_py.scheduler import InstanceKey, Scheduler
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import (
    Action,
    Grant,
    Kill,
    Note,
    Reject,
    Revoke,
    Spawn,
    Stop,
)
from llamaswap_py.scheduler.records import (
    Choice,
    ClientId,
    Decision,
    Failure,
    PresetId,
    RequestId,
)
from llamaswap_py.snapshot import DecisionView, EngineView, Snapshot
from llamaswap_py.units import format_duration
from llamaswap_py.views import decision_view, make_snapshot
from llamaswap_py.wire.pool import UpstreamPool

_log: Final = logging.getLogger("lswap")


@dataclass(slots=True)
class Running:
    """A child process and what is known of it from outside."""

    child: Child
    prepared: Prepared
    pid: int | None = None
    endpoint: Endpoint | None = None
    n_ctx: int | None = None
    stage: str | None = None
    lost: bool = False


@dataclass(slots=True)
class About:
    """What a snapshot says of the supervisor itself; `listen` may be filled in late."""

    name: str
    config_path: str | None
    engine: EngineView
    listen: tuple[str, ...] = ()
    started_at: float = field(default_factory=time.time)


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
    ) -> None:
        self.config = config
        self.prepared = dict(prepared)
        self.devices = devices
        self.about = about
        self.pool = UpstreamPool()
        self.scheduler = Scheduler(
            [one.plan for one in prepared.values()], pools_of(devices), policy_of(config)
        )
        self.running: dict[InstanceKey, Running] = {}
        self.requests_total = 0
        self._runtime_dir = runtime_dir
        self._logs: dict[str, ChildLog] = {}
        self._names = {name: one for one in config.models for name in _names_of(config, one)}
        self._tickets: dict[RequestId, Ticket] = {}
        self._pending: deque[ev.Event] = deque()
        self._feeding = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._uuids = {one.id: one.uuid for one in devices if one.uuid is not None}
        self._gone = asyncio.Event()
        self._stack = AsyncExitStack()
        self._tasks = asyncio.TaskGroup()

    def __repr__(self) -> str:
        return f"<Supervisor {self.about.name}: {list(self.scheduler.world.instances.values())}>"

    async def __aenter__(self) -> Supervisor:
        await self._stack.enter_async_context(self.pool)
        await self._stack.enter_async_context(self._tasks)
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
            if self.running and error is None:
                self.feed(ev.ShutdownAsked(0.0, force=True))
            return await self._stack.__aexit__(kind, error, trace)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for log in self._logs.values():
                log.close()

    # Names

    def resolve(self, name: str) -> str | None:
        """Return the preset that a model name or alias means."""
        return self._names.get(name)

    def nearest(self, name: str) -> list[str]:
        """Return up to three known names that look like `name`."""
        folded = {known.lower(): known for known in self._names}
        close = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)
        return [folded[one] for one in close]

    # Requests

    def lease(
        self,
        preset: str,
        *,
        client: str,
        request_id: str,
        slot: bool = True,
        autoload: bool = True,
        since: float | None = None,
        wishes: Wishes = NO_WISHES,
        notice: Notice | None = None,
    ) -> Ticket:
        """Return a context manager that waits for a lease and gives it back at its end.

        Entering raises ApiError when the scheduler refuses. `since` (monotonic seconds) keeps the
        place of a request that comes back; `slot` False is for what generates nothing.
        """
        event = ev.RequestArrived(
            request=new_request_id(request_id),
            preset=PresetId(preset),
            client=ClientId(client),
            slot=slot,
            autoload=autoload,
            since=since,
            priority=wishes.priority,
            patience=wishes.patience,
            when_full=wishes.when_full,
            substitutable=wishes.substitutable,
            parent=self._open_under(wishes.parent),
        )
        return Ticket(self, event, notice)

    def _open_under(self, request_id: str | None) -> RequestId | None:
        """Return the open request that a client knows by `request_id`."""
        if request_id is None:
            return None
        leases = self.scheduler.world.leases
        return next((one for one in leases if one.rpartition("/")[0] == request_id), None)

    def outlook(self, preset: str) -> str:
        """Return what to tell somebody who waits: `loading alpha 43% eta 2.1s`."""
        known = self.scheduler.world.presets[PresetId(preset)]
        words = [known.serving.state.value if known.serving else "waiting for memory for", preset]
        if known.serving is not None and known.serving.fraction is not None:
            words.append(f"{known.serving.fraction:.0%}")
        if (eta := self.scheduler.eta(PresetId(preset), len(known.queue))) is not None:
            words.append(f"eta {eta:.1f}s")
        return " ".join(words)

    def arrive(self, ticket: Ticket) -> None:
        """Hand a request to the scheduler; the ticket is settled when it decides."""
        self._tickets[ticket.event.request] = ticket
        self.feed(ticket.event)

    def leave(self, ticket: Ticket) -> None:
        """The client of a waiting request is gone."""
        self._tickets.pop(ticket.event.request, None)
        self.feed(ev.RequestLeft(ticket.event.request))

    def finish(self, ticket: Ticket, outcome: ev.Outcome) -> None:
        """A lease ended."""
        self._tickets.pop(ticket.event.request, None)
        self.feed(ev.RequestFinished(ticket.event.request, outcome))

    # Operators

    def request_load(self, preset: str) -> None:
        """Ask for a preset to be loaded; returns at once."""
        self.feed(ev.LoadAsked(PresetId(preset)))

    async def load(self, preset: str) -> None:
        """Load a preset and wait until it is ready; raises ApiError when it cannot be."""
        self.request_load(preset)
        async with self.lease(preset, client="operator", request_id="load", slot=False):
            pass

    def unload(self, preset: str, *, force: bool) -> bool:
        """Begin to unload a preset; returns False if no instance of it was there."""
        found = self._has_instance(preset)
        self.feed(ev.UnloadAsked(PresetId(preset), force))
        return found

    async def unloaded(self, preset: str) -> None:
        """Wait until no instance of the preset is left."""
        while self._has_instance(preset):
            self._gone.clear()
            await self._gone.wait()

    def _has_instance(self, preset: str) -> bool:
        return any(key.preset == preset for key in self.scheduler.world.instances)

    async def shut_down(self, grace: float) -> None:
        """Refuse new requests, let open ones finish for `grace` seconds, stop every child."""
        self.feed(ev.ShutdownAsked(grace))
        while self.running:
            self._gone.clear()
            await self._gone.wait()

    def stop_now(self) -> None:
        """End every request and kill every child."""
        self.feed(ev.ShutdownAsked(0.0, force=True))

    # What is seen

    def snapshot(self) -> Snapshot:
        """Return everything at this moment."""
        return make_snapshot(self)

    def decisions(self, *, model: str | None = None, limit: int = 100) -> list[DecisionView]:
        """Return the newest decisions, oldest first."""
        found = [one for one in self.scheduler.decisions if model in (None, one.preset)]
        return [decision_view(one) for one in found[-limit:]] if limit else []

    def logs(self, preset: str) -> ChildLog | None:
        """Return the output of a preset's children, None before the first one."""
        return self._logs.get(preset)

    # Events in, actions out

    def feed(self, event: ev.Event) -> None:
        """Give an event to the scheduler and carry out what it says."""
        self._pending.append(event)
        if self._feeding:
            return  # an action caused this event; it is handled after that action's siblings
        self._feeding = True
        try:
            while self._pending:
                actions = self.scheduler.handle(self._pending.popleft(), time.monotonic())
                for action in actions:
                    self._carry_out(action)
        finally:
            self._feeding = False
        self._arm()

    def _arm(self) -> None:
        deadline = self.scheduler.deadline()
        if deadline == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = deadline
        if deadline is not None:
            delay = max(deadline - time.monotonic(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(delay, self._time_passed)

    def _time_passed(self) -> None:
        self._timer = self._timer_at = None
        self.feed(ev.TimePassed())

    def _carry_out(self, action: Action) -> None:
        match action:
            case Grant(request, key):
                self._grant(request, key)
            case Reject():
                if ticket := self._tickets.pop(action.request, None):
                    ticket.refuse(_as_error(action))
            case Revoke(request, _, reason):
                if ticket := self._tickets.get(request):
                    ticket.revoke(reason.value)
            case Spawn(key, choice):
                self._spawn(key, choice)
            case Stop(key):
                self._stop(key)
            case Kill(key):
                if running := self.running.get(key):
                    running.child.kill()
            case Note(decision):
                _write(decision)

    def _grant(self, request: RequestId, key: InstanceKey) -> None:
        ticket, running = self._tickets.get(request), self.running.get(key)
        if ticket is None:
            return
        if running is None or running.endpoint is None:  # it died in this very moment
            self._tickets.pop(request)
            ticket.refuse(ApiError("model_failed", f"{key} ended before it could answer"))
            self.feed(ev.RequestFinished(request, ev.Outcome.UPSTREAM_ERROR))
            return
        self.requests_total += 1
        instance = self.scheduler.world.instances[key]
        ready_at = instance.ready_at or instance.spawned_at
        ticket.grant(Lease(running.endpoint, key, instance.spawned_at, ready_at))

    # Children

    def _spawn(self, key: InstanceKey, choice: Choice) -> None:
        prepared = self.prepared[key.preset]
        assert prepared.engine is not None, "a preset without an engine is never loaded"
        log = self._logs.setdefault(key.preset, ChildLog())
        spec = self._spec(key, prepared, choice)
        child = Child(spec, lambda event: self._child_said(key, event), log)
        self.running[key] = Running(child, prepared)
        self._tasks.create_task(self._run_child(key, child), name=str(key))

    def _spec(self, key: InstanceKey, prepared: Prepared, choice: Choice) -> ChildSpec:
        engine, preset = prepared.engine, prepared.preset
        assert engine is not None
        folder = self.config.log.dir
        can = engine.features
        return ChildSpec(
            name=str(key),
            preset=key.preset,
            epoch=key.epoch,
            binary=str(engine.path),
            args=prepared.args,
            env={
                "XDG_CONFIG_HOME": str(self._runtime_dir.config_home),
                **prepared.env,
                **placement_env(choice.devices, engine.backend, self._uuids),
            },
            socket_path=self._runtime_dir.socket_path(key.epoch) if can.unix_socket else None,
            child_mode=can.child_mode,
            files=prepared.files,
            log_path=Path(folder) / f"{_file_name(key.preset)}.log" if folder else None,
            stop_timeout=preset.stop_timeout,
            load_stall=preset.load_stall,
        )

    async def _run_child(self, key: InstanceKey, child: Child) -> None:
        try:
            ended = await child.run()
            failure = _as_failure(ended.failure, ended)
        except Exception as error:
            _log.exception("%s: lswap failed to run it", key)
            failure = Failure("engine", f"lswap failed to run it: {error}")
        finally:
            running = self.running.pop(key)
            self._runtime_dir.forget(str(key))
        if running.endpoint is not None:
            self.pool.drop(running.endpoint)
        self.feed(ev.InstanceExited(key, failure))
        self._gone.set()

    def _stop(self, key: InstanceKey) -> None:
        running = self.running.get(key)
        if running is None or running.lost:  # a stop would make its exit look asked for
            return
        if running.endpoint is not None:
            self.pool.drop(running.endpoint)  # an open connection keeps llama-server from exiting
        running.child.stop()

    def _child_said(self, key: InstanceKey, event: ChildEvent) -> None:
        running = self.running[key]
        match event:
            case ChildSpawned(pid):
                running.pid = pid
                self._record(key, running)
            case ChildProgress(fraction, stage):
                running.stage = stage
                self.feed(ev.InstanceProgressed(key, fraction))
            case ChildReady():
                running.endpoint, running.n_ctx = event.endpoint, event.n_ctx
                running.stage = None
                self.feed(ev.InstanceReady(key, event.slots))
            case ChildStalled():
                stall = format_duration(running.prepared.preset.load_stall)
                summary = f"no sign of progress for {stall} while loading"
                tail = tuple(str(line) for line in self._logs[key.preset].tail(20))
                self.feed(ev.InstanceStalled(key, Failure("timeout", summary, None, tail)))
            case ChildLost():
                running.lost = True
                self.feed(ev.InstanceLost(key))
            case ChildExited():
                pass  # run() returns it

    def _record(self, key: InstanceKey, running: Running) -> None:
        assert running.pid is not None
        try:
            self._runtime_dir.record(str(key), running.pid, running.child.spec.binary)
        except OSError as error:  # a full disk must not keep a model from serving
            _log.warning("%s: a restart could not find it as an orphan: %s", key, error)


@asynccontextmanager
async def open_supervisor(
    config: Config, engine: Engine, runtime_dir: RuntimeDir
) -> AsyncIterator[Supervisor]:
    """Run a supervisor for `config`; `engine` is the one of the file's top level.

    Preset that cannot work are listed with their reason; they stop nobody.
    """
    engines = Engines(config)
    devices = read_devices(
        config.memory.devices,
        config.memory.margin.of,
        backends=engines.backends,
        environment=os.environ,
    )
    about = About(
        name=runtime_dir.path.name,
        config_path=config.source,
        engine=EngineView(path=str(engine.path), build=engine.build, backend=engine.backend),
        listen=tuple(endpoint.url for endpoint in config.listen),
    )
    prepared = prepare(config, engines, devices)
    async with Supervisor(config, prepared, devices, runtime_dir, about) as supervisor:
        yield supervisor


def _names_of(config: Config, preset: str) -> tuple[str, ...]:
    return (preset, *config.models[preset].aliases)


def _file_name(preset: str) -> str:
    """Model ids may hold slashes and colons."""
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in preset)


def _as_failure(failure: ChildFailure | None, ended: ChildExited) -> Failure | None:
    if failure is None:
        return None
    code = ended.code if ended.code is not None else -(ended.signal or 0)
    return Failure(failure.kind.value, failure.summary, code, ended.tail[-20:])


def _as_error(reject: Reject) -> ApiError:
    return ApiError(
        reject.code,
        reject.message,
        remedy=reject.remedy,
        retry_after=reject.retry_after,
        details=dict(reject.details),
    )


def _write(decision: Decision) -> None:
    level = logging.WARNING if decision.kind in ("failed", "revoked") else logging.INFO
    name = decision.preset if decision.epoch is None else f"{decision.preset}#{decision.epoch}"
    _log.log(level, "%s %s: %s", decision.kind, name, decision.reason)
