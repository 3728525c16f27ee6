"""The running children: starts them, turns what they report into events, and notes their end.

Changes that an administrator has made inside a child are repeated in the children after it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final, TypeAlias

from llamaswap_py.children import (
    Child,
    ChildEnding,
    ChildEvent,
    ChildExited,
    ChildHung,
    ChildLog,
    ChildLost,
    ChildOutlived,
    ChildProgress,
    ChildReady,
    ChildSlept,
    ChildSpawned,
    ChildSpec,
    ChildStalled,
    ChildStopFailed,
    ChildWoke,
    RuntimeDir,
)
from llamaswap_py.children import Failure as ChildFailure
from llamaswap_py.children.ask import HttpAnswer, ask, get
from llamaswap_py.children.containment import limits_of
from llamaswap_py.children.liveness import ChildRequests
from llamaswap_py.children.logs import log_name
from llamaswap_py.config.sections import Config
from llamaswap_py.devices import Device
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.llamacpp.context_size import context_per_request
from llamaswap_py.proxy.upstream import UpstreamPool
from llamaswap_py.scheduler import InstanceKey
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Stop, StopReason
from llamaswap_py.scheduler.types import FILES_CHANGED, Choice, Failure
from llamaswap_py.supervisor.kv_cache import KvCache, KvUse
from llamaswap_py.supervisor.leases import OpenLeases
from llamaswap_py.supervisor.prepare import LoadWay, Prepared
from llamaswap_py.supervisor.preset_programs import find_program, program_env, program_of
from llamaswap_py.tasks import guard
from llamaswap_py.units import format_duration

_log: Final = logging.getLogger("lswap")
_PATIENCE: Final = 5.0
_OTHER_FILES: Final = "its files have changed; lswap chooses anew before it loads them"
_BETWEEN_LOOKS: Final = 2.0
"""Seconds between looks for a container that is not there yet."""


class Replays:
    """The last accepted body of each such request (`POST /lora-adapters`, `/props`), by preset."""

    def __init__(self) -> None:
        self._bodies: dict[str, dict[str, bytes]] = {}

    def __contains__(self, preset: str) -> bool:
        return preset in self._bodies

    def add(self, preset: str, path: str, body: bytes) -> None:
        """Keep what a child of the preset accepted."""
        self._bodies.setdefault(preset, {})[path] = body

    def discard(self, presets: Iterable[str]) -> None:
        """These have changed: what was set in their children may mean nothing any more."""
        for preset in presets:
            self._bodies.pop(preset, None)

    async def replay(self, preset: str, endpoint: Endpoint) -> None:
        """Send it to a fresh child; one that refuses is used as it is, and the log says so."""
        for path, body in self._bodies.get(preset, {}).items():
            try:
                answer = await ask(endpoint, "POST", path, timeout=_PATIENCE, body=body)
            except OSError as error:
                _log.warning("%s: POST %s could not be done again: %s", preset, path, error)
                continue
            if answer.status != HTTPStatus.OK:
                _log.warning("%s: POST %s was refused this time: %s", preset, path, answer.status)


_ASKING: Final = 5.0
_MOST_ANSWERS: Final = 16


@dataclass(slots=True)
class Running:
    """A child process and what is known of it from outside."""

    child: Child
    prepared: Prepared
    way: LoadWay
    open_leases: OpenLeases
    pid: int | None = None
    endpoint: Endpoint | None = None
    n_ctx: int | None = None
    inputs: tuple[str, ...] = ()
    stage: str | None = None
    lost: bool = False
    ending: bool = False
    """Whether it said that it ends, unasked."""
    refused: int | None = None
    """The error number of a connection that it refused."""
    doubted: bool = False
    """Whether it is being asked if it answers at all."""
    asleep: bool = False
    answers: dict[str, tuple[int, HttpAnswer]] = field(default_factory=dict)
    """What it said to reads that keep it from sleeping, each with its `OpenLeases.idle_since`."""
    kv: KvUse | None = None
    """Set where its conversations can be kept."""
    outlived: bool = False
    """Whether its process is gone, but what it started still runs."""
    stop_failed: tuple[str, ...] = ()
    """What did not go as it should when it was stopped."""

    @property
    def stream_in_path(self) -> bool:
        """As `EngineFeatures.stream_in_path` of its engine."""
        engine = self.prepared.engine
        return engine is not None and engine.features.stream_in_path

    @property
    def may_be_outside(self) -> bool:
        """Whether it is a program that something else may serve for."""
        return self.child.search is not None

    @property
    def is_unseen(self) -> bool:
        """Whether a process that was not found serves for it. Its memory seems other programs'."""
        return self.child.search is not None and self.child.search.unseen

    def roots_outside(self) -> tuple[int, ...]:
        """Return the processes that hold memory of it, but are not below its own process.

        Processes below these are not named. They have detached themselves, or are its container's.
        """
        search, process = self.child.search, self.child.process
        found = search.found.roots() if search is not None and search.found is not None else []
        if process is not None and self.child.spec.program is not None and not self.outlived:
            own = process.roots()[1:]
            found += [pid for pid in own if pid not in found]
        return tuple(found)


MakeChild: TypeAlias = Callable[
    [ChildSpec, Callable[[ChildEvent], None], ChildLog, Callable[[], ChildRequests]], Child
]


class Instances:
    """Runs one child per instance in the supervisor's task group, and turns its words into events.

    `running` holds every instance that is not reaped; `gone` is set whenever one was.
    `are_outdated` tells whether the choices of a preset were made for other files than there are.
    """

    def __init__(
        self,
        config: Config,
        devices: tuple[Device, ...],
        runtime_dir: RuntimeDir,
        pool: UpstreamPool,
        tasks: asyncio.TaskGroup,
        dispatch: Callable[[ev.Event], None],
        on_gone: Callable[[Running], None],
        kv_cache: KvCache,
        are_outdated: Callable[[str], Awaitable[bool]],
        child: MakeChild = Child,
    ) -> None:
        self.running: dict[InstanceKey, Running] = {}
        self.logs: dict[str, ChildLog] = {}
        self.gone = asyncio.Event()
        self.replays = Replays()
        self._config = config
        self._devices = devices
        self._runtime_dir = runtime_dir
        self._pool = pool
        self._tasks = tasks
        self._dispatch = dispatch
        self._on_gone = on_gone
        self._kv_cache = kv_cache
        self._are_outdated = are_outdated
        self._child = child

    def use(self, config: Config) -> None:
        """Take another configuration for the children to come."""
        self._config = config
        self._kv_cache.use(config)

    def use_devices(self, devices: tuple[Device, ...]) -> None:
        """Take other devices for the children to come."""
        self._devices = devices

    def close(self) -> None:
        """Give back what outlives the children: their log files, their kept conversations."""
        for log in self.logs.values():
            log.close()
        self._kv_cache.close()

    def spawn(self, key: InstanceKey, prepared: Prepared, choice: Choice) -> None:
        """Start the child of an instance; its events follow."""
        log = self.logs.setdefault(key.preset, ChildLog())
        self._kv_cache.give_way(key.preset)
        way = prepared.ways[choice.variant].chosen(choice.words)
        spec = self._spec(key, prepared, way, choice)
        spec, kv = self._kv_cache.prepare(key.preset, prepared, way, spec)
        open_leases = OpenLeases()
        child = self._child(
            spec, lambda event: self._child_said(key, event), log, open_leases.requests
        )
        self._tasks.create_task(self._run_child(key, child), name=str(key))
        self.running[key] = Running(child, prepared, way, open_leases, kv=kv)

    def _spec(
        self, key: InstanceKey, prepared: Prepared, way: LoadWay, choice: Choice
    ) -> ChildSpec:
        preset = way.preset
        folder = self._config.log.dir
        spec = ChildSpec(
            name=str(key),
            preset=key.preset,
            epoch=key.epoch,
            binary="",
            args=way.args,
            env=preset.env,
            socket_path=self._runtime_dir.socket_path(key.epoch),
            child_mode=False,
            files=way.files,
            log_path=Path(folder) / f"{log_name(key.preset)}.log" if folder else None,
            stop_timeout=preset.stop_timeout,
            load_stall=preset.load_stall,
            log_rotate=self._config.log.rotate,
            liveness=preset.liveness,
            written=self._config.secrets,
            group=self._runtime_dir.group(str(key), limits_of(preset)),
            mark=secrets.token_hex(8),
        )
        if preset.cmd is not None:
            return replace(
                spec,
                binary=find_program(preset) or preset.cmd.words[0],
                args=preset.cmd.words[1:],
                env={**preset.env, **program_env(choice.devices, self._devices)},
                socket_path=spec.socket_path if preset.cmd.takes_socket else None,
                program=program_of(preset),
            )
        engine = prepared.engine
        assert engine is not None, "a preset without an engine is never loaded"
        placement = way.place(choice.devices, self._devices, engine)
        return replace(
            spec,
            binary=str(engine.path),
            args=(*prepared.ways[choice.variant].args, *placement.args, *choice.words),
            env={
                "XDG_CONFIG_HOME": str(self._runtime_dir.config_home),
                **preset.env,
                **placement.env,
            },
            socket_path=spec.socket_path if engine.features.unix_socket else None,
            child_mode=engine.features.child_mode,
        )

    def kill(self, key: InstanceKey) -> None:
        """Kill a child's process group."""
        if running := self.running.get(key):
            running.child.kill()

    async def ask_once(self, key: InstanceKey, target: str) -> HttpAnswer | None:
        """GET `target` of a child, once in each time that it has nothing to do.

        Every question of this kind would begin its time to fall asleep anew. None where it was busy
        meanwhile, or cannot answer. Raises OSError.
        """
        running = self.running.get(key)
        if running is None or running.endpoint is None or running.open_leases.idle_since is None:
            return None
        since = running.open_leases.idle_since
        at, answer = running.answers.get(target, (None, None))
        if at != since:
            answer = await get(running.endpoint, target, _ASKING)
            if len(running.answers) >= _MOST_ANSWERS:
                running.answers.clear()
            running.answers[target] = since, answer
        return answer if running.open_leases.idle_since == since else None

    def wake(self, key: InstanceKey) -> None:
        """Wake a sleeping child."""
        self._kv_cache.give_way()
        if running := self.running.get(key):
            running.child.wake()

    def refused(self, key: InstanceKey, number: int) -> None:
        """A child refused a connection with that error number: it does not listen any more.

        llama-server closes its socket only when it ends, and then its open answers never finish.
        Another program may finish them; so may any child with a removed socket (ENOENT).
        """
        if running := self.running.get(key):
            running.refused = number
            self._drop(running)
            self._dispatch_refusal(key, running)

    def doubt(self, key: InstanceKey) -> None:
        """A child closed a connection without an answer: ask whether it answers at all.

        The request may be the reason, and must not end the child for others. So the question is
        lswap's own.
        """
        running = self.running.get(key)
        if running is not None and running.endpoint is not None and not running.doubted:
            running.doubted = True
            work = self._ask_in_doubt(key, running, running.endpoint)
            self._tasks.create_task(guard.contained("doubt", work), name=f"{key} in doubt")

    async def _ask_in_doubt(self, key: InstanceKey, running: Running, endpoint: Endpoint) -> None:
        try:
            await get(endpoint, "/health", _ASKING)
        except TimeoutError:
            pass  # the watchdog finds out whether it hangs
        except OSError:
            if key in self.running and running.refused is None:
                self.refused(key, errno.ECONNRESET)
        finally:
            running.doubted = False

    def _dispatch_refusal(self, key: InstanceKey, running: Running) -> None:
        own = running.child.spec.program is None
        ends = running.ending or (own and running.refused == errno.ECONNREFUSED)
        self._dispatch(ev.InstanceRefused(key, ends=ends))

    def _drop(self, running: Running) -> None:
        """Close what is open to a child: that keeps llama-server from exiting."""
        if running.endpoint is not None:
            self._pool.drop(running.endpoint)

    def leave_stuck(self) -> None:
        """Leave children that the kernel does not end, though they were killed: lswap stops."""
        for key, running in self.running.items():
            process = running.child.process
            if running.outlived and running.child.leave():
                continue  # that was logged when its process had ended
            if process is not None and process.leave_if_stuck():
                text = "%s (pid %d) was killed and does not end: it hangs in the kernel"
                _log.warning(text, key, process.pid)

    async def wait_gone(self) -> None:
        """Wait until the next child is reaped, or outlived by what it started."""
        self.gone.clear()
        await self.gone.wait()

    async def _run_child(self, key: InstanceKey, child: Child) -> None:
        try:
            if await self._are_outdated(key.preset):
                failure: Failure | None = Failure(FILES_CHANGED, _OTHER_FILES)
            else:
                ended = await child.run()
                failure = _as_failure(ended.failure, ended)
        except Exception as error:
            _log.error("%s: lswap failed to run it", key)
            guard.report("child", error)
            failure = Failure("engine", f"lswap failed to run it: {error}")
        finally:
            running = self.running.pop(key)
            with guard.reporting("child"):
                if child.process is None or not child.process.left:  # else the next start looks
                    self._runtime_dir.remove_record(str(key))
        with guard.reporting("child"):
            self._drop(running)
            if running.kv is not None:
                self._kv_cache.gone(running.kv)
        with guard.reporting("child"):
            self._dispatch(ev.InstanceExited(key, failure))
            self._on_gone(running)
        self.gone.set()

    def stop(self, action: Stop) -> None:
        """Begin the stop recipe of a child, after what it holds was kept, if that is wanted."""
        key = action.instance
        running = self.running.get(key)
        if action.reason is StopReason.UNLOADED:
            self._kv_cache.discard((key.preset,))
        if running is None or running.lost:  # a stop would make its exit look asked for
            return
        running.open_leases.revoke_readers(action.reason.value)
        self._drop(running)
        if action.may_keep and running.kv is not None and running.endpoint is not None:
            work = self._keep_and_stop(key, running, running.kv, running.endpoint)
            self._tasks.create_task(work, name=f"{key} keeps")
        else:
            running.child.stop(unasked=action.reason is StopReason.REFUSED)

    async def _keep_and_stop(
        self, key: InstanceKey, running: Running, use: KvUse, endpoint: Endpoint
    ) -> None:
        in_time = False
        try:
            in_time = running.asleep or await self._kv_cache.save(key, use, endpoint)
        except Exception as error:
            _log.error("%s: lswap failed to keep its conversations", key)
            guard.report("keeping", error)
        finally:
            if in_time:
                running.child.stop()
            else:
                running.child.kill()

    def _child_said(self, key: InstanceKey, event: ChildEvent) -> None:
        running = self.running[key]
        match event:
            case ChildSpawned(pid):
                running.pid = pid
                self._record(key, running)
                if running.may_be_outside:
                    look = self._look_for_container(key, running)
                    name = f"{key} container"
                    self._tasks.create_task(guard.contained("container", look), name=name)
            case ChildProgress(fraction, stage):
                running.stage = stage
                self._dispatch(ev.InstanceProgressed(key, fraction))
            case ChildReady():
                heed = partial(self.refused, key)
                running.endpoint = event.endpoint._replace(on_refused=heed)
                running.n_ctx, running.inputs, running.stage = event.n_ctx, event.inputs, None
                _say_what_it_gives(key, running)
                if key.preset in self.replays or running.kv is not None or running.may_be_outside:
                    life = self._bring_back(key, running, event.slots)
                    self._tasks.create_task(guard.contained("replay", life))
                else:
                    self._dispatch(ev.InstanceReady(key, event.slots))
            case ChildSlept():
                running.asleep = True
                self._dispatch(ev.InstanceSlept(key))
            case ChildWoke():
                running.asleep = False
                self._dispatch(ev.InstanceWoke(key))
            case ChildHung(summary):
                self._dispatch(
                    ev.InstanceHung(key, Failure("timeout", summary, None, self._tail(key)))
                )
            case ChildStalled():
                stall = format_duration(running.prepared.preset.load_stall)
                summary = f"no sign of progress for {stall} while loading"
                failure = Failure("timeout", summary, None, self._tail(key))
                self._dispatch(ev.InstanceStalled(key, failure))
            case ChildEnding():
                running.ending = True
                self._drop(running)
                self._dispatch_refusal(key, running)
            case ChildLost():
                running.lost = True
                self._dispatch(ev.InstanceLost(key))
            case ChildStopFailed(text):
                running.stop_failed += (text,)
                _log.warning("%s: %s", key, text)
                self._dispatch(ev.InstanceNoted(key, "stop failed", text))
            case ChildOutlived(text):
                running.outlived = True
                running.stop_failed += (text,)
                _log.warning("%s: %s", key, text)
                self._dispatch(ev.InstanceOutlived(key, text))
                self.gone.set()
            case ChildExited():
                pass  # run() returns it

    async def _bring_back(self, key: InstanceKey, running: Running, slots: int) -> None:
        """Make a fresh child what those before it were, and only then let requests come."""
        endpoint = running.endpoint
        assert endpoint is not None
        with guard.reporting("container"):
            await self._find_outside(running, endpoint)
        await guard.contained("replay", self.replays.replay(key.preset, endpoint))
        with guard.reporting("keeping"):
            use = running.kv
            await self._kv_cache.restore(key, use, running.way, endpoint)
            if use is not None and use.restored:
                check = partial(self._kv_cache.check_use, key, endpoint, use)
                running.open_leases.on_first_answer = check
        if key in self.running:
            self._dispatch(ev.InstanceReady(key, slots))
            if running.ending or running.refused is not None:  # that was not heard while it loaded
                self._dispatch_refusal(key, running)

    async def _look_for_container(self, key: InstanceKey, running: Running) -> None:
        """Look for the container of a program until it is found, or the program is ready."""
        while running.is_unseen and running.endpoint is None and key in self.running:
            assert running.child.search is not None
            await running.child.search.look()
            await asyncio.sleep(_BETWEEN_LOOKS)

    async def _find_outside(self, running: Running, endpoint: Endpoint) -> None:
        """Find the container of a program that is ready, or else what holds its port."""
        if running.child.search is None:
            return
        await running.child.search.look(endpoint)
        if running.is_unseen:
            _log.info(
                "%s: lswap did not find the process that serves it. What that takes beyond cmd's "
                "own processes, and beyond the memory in the file, counts as other programs'",
                running.prepared.preset.id,
            )

    def _tail(self, key: InstanceKey) -> tuple[str, ...]:
        return tuple(str(line) for line in self.logs[key.preset].tail(20))

    def _record(self, key: InstanceKey, running: Running) -> None:
        assert running.pid is not None
        try:
            spec = running.child.spec
            self._runtime_dir.record(str(key), running.pid, spec.binary, spec.group, spec.mark)
        except OSError as error:  # a full disk must not keep a model from serving
            _log.warning("%s: a restart could not find it as an orphan: %s", key, error)


def _as_failure(failure: ChildFailure | None, ended: ChildExited) -> Failure | None:
    if failure is None:
        return None
    code = ended.code if ended.code is not None else -(ended.signal or 0)
    return Failure(failure.kind.value, failure.summary, code, ended.tail[-20:])


def _say_what_it_gives(key: InstanceKey, running: Running) -> None:
    """Say what the engine made of the context that was asked for, where it is less."""
    got, asked = running.n_ctx, context_per_request(running.way.preset)
    if got is None or asked is None or got >= asked:
        return
    text = "%s: llama-server gives %d tokens of context per request, of %d asked for"
    _log.warning(text, key, got, asked)
