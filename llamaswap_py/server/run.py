"""Serves the models of a file until a signal: joins the supervisor, the API and the sockets.

The order matters: first the settings that children must not inherit, then the sockets, then the
event loop.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from llamaswap_py.api import App
from llamaswap_py.api.errors import render_wire_error
from llamaswap_py.api.revoking import take_keys
from llamaswap_py.api.web_ui import WebUi
from llamaswap_py.children.containment import unenforced
from llamaswap_py.children.orphans import SweptHow
from llamaswap_py.children.process import prepare_to_spawn
from llamaswap_py.children.running_lswaps import Served, find_running
from llamaswap_py.children.runtime_dir import RuntimeDir
from llamaswap_py.config.load import keys_of
from llamaswap_py.config.sections import Config
from llamaswap_py.config.warnings import skipped_files
from llamaswap_py.errors import StateError
from llamaswap_py.llamacpp.binaries import Engine
from llamaswap_py.proxy import WireLimits, bind, serve
from llamaswap_py.scheduler.types import PresetId
from llamaswap_py.server import Notifier, inherited_sockets
from llamaswap_py.server.addresses import asked_listeners, listen_elsewhere, typeable
from llamaswap_py.server.background import (
    capturing,
    notifying,
    telling_choices,
    watching,
)
from llamaswap_py.server.budgets import (
    give_memory_back,
    most_bodies,
    most_connections,
    raise_file_limit,
)
from llamaswap_py.server.logging import OwnLog, logging_aside, set_up_logging
from llamaswap_py.server.systemd import endpoint_of
from llamaswap_py.snapshot import EngineView, Snapshot
from llamaswap_py.supervisor.device_lists import DeviceLists, unlisted
from llamaswap_py.supervisor.located_engines import Engines
from llamaswap_py.supervisor.prepare import prepare
from llamaswap_py.supervisor.recorder import RunRecord
from llamaswap_py.supervisor.reload import Reloader
from llamaswap_py.supervisor.snapshots import About
from llamaswap_py.supervisor.supervisor import Supervisor
from llamaswap_py.tasks import guard
from llamaswap_py.tasks.threads import Workers
from llamaswap_py.units import format_duration

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from llamaswap_py.config.api_keys import KeyRing
    from llamaswap_py.config.load import Origin
    from llamaswap_py.endpoint import Endpoint
    from llamaswap_py.proxy import Server


@asynccontextmanager
async def open_supervisor(
    config: Config,
    engine: Engine | None,
    runtime_dir: RuntimeDir,
    record: RunRecord | None = None,
    lists: DeviceLists | None = None,
) -> AsyncIterator[Supervisor]:
    """Run a supervisor for `config`; `engine` is that of the file's top level, if it needs one.

    `record` records the scheduler's events and decisions. `lists` asks for the devices. Presets
    that cannot work are listed with the reason; the others are served.
    """
    engines = await asyncio.to_thread(Engines, config)
    devices, _ = await asyncio.gather(
        # A driver that does not work may take long.
        asyncio.to_thread((lists or DeviceLists()).of, config, engines),
        asyncio.to_thread(prepare_to_spawn),
    )
    for line in unlisted(config, devices):
        _log.warning("%s", line)
    about = About(
        name=runtime_dir.path.name,
        config_path=config.source,
        engine=_view(engine),
        listen=tuple(endpoint.url for endpoint in config.listen),
    )
    prepared = await asyncio.to_thread(prepare, config, engines, devices)  # it looks at files
    supervisor = Supervisor(config, prepared, devices, runtime_dir, about, record)
    async with supervisor:
        yield supervisor


def _view(engine: Engine | None) -> EngineView:
    if engine is None:
        return EngineView(path="", build=None, backend="none")
    return EngineView(path=str(engine.path), build=engine.build, backend=engine.backend)


Greeting: TypeAlias = Callable[[Snapshot, int, Sequence[str], Sequence[str]], str]
"""Makes the first lines on the screen. Its arguments: a snapshot, the number of models, the URLs,
and the models whose memory is still being estimated."""
_log: Final = logging.getLogger("lswap")
_LAST_WRITES: Final = 1.0
"""Seconds a client may take to read the end of its answer once all children are gone."""
SHOWN: Final = 20
"""Models listed at the start; a file may have thousands."""
_ESTIMATES: Final = 1.0
"""Seconds that the first lines wait for estimates; lswap already serves meanwhile."""
_COLLECT: Final = (10_000, 10, 10)
"""Thresholds of the garbage collector. Python's 700 new objects are about two dozen requests, whose
objects it would look through each time."""
_DIGITS: Final = 640
"""The most digits of a whole number in JSON: the least limit that Python allows. The time to read a
number grows with the square of its digits."""
_WORKERS: Final = 32
"""Threads for calls that block; each may have to wait for a disk that hangs."""


def run(
    origin: Origin,
    *,
    greeting: Greeting,
    served_as: str,
    name: str | None,
    listen: tuple[str, ...] = (),
    host: str | None = None,
    port: int | None = None,
    record: Callable[[OwnLog], RunRecord] | None = None,
    verbose: bool,
) -> None:
    """Serve until a signal. Raises LswapError if it cannot start.

    `greeting` makes the first lines on the screen. `served_as` names the configuration in lists of
    running lswaps. `record` makes the record of the scheduler's events.
    """
    with ExitStack() as stack:  # first the settings that children must not inherit
        stack.callback(gc.enable)
        stack.callback(sys.set_int_max_str_digits, sys.get_int_max_str_digits())
        sys.set_int_max_str_digits(_DIGITS)
        gc.disable()  # until it serves: starting makes many objects, and few of them are garbage
        notifier = stack.enter_context(Notifier.take(os.environ))
        handed = [stack.enter_context(each) for each in inherited_sockets(os.environ)]
        config = origin.read()
        if handed:
            config = listen_elsewhere(config, tuple(map(endpoint_of, handed)))
        elif asked := asked_listeners(config.listen, listen, host, port):
            config = listen_elsewhere(config, asked)
        own_log = set_up_logging(config.log, verbose=verbose, written=config.secrets)
        stack.enter_context(logging_aside())
        for line in skipped_files(config):
            _log.warning("%s", line)
        keys = keys_of(config)
        engine = Engines(config).default
        raise_file_limit()
        give_memory_back()
        serves = origin.beside if origin.path else (*origin.beside, *map(str, config.listen))
        runtime = RuntimeDir.choose(config_path=origin.path, name=name, serves=serves)
        stack.enter_context(runtime)
        sockets = handed or [stack.enter_context(_bind(endpoint)) for endpoint in config.listen]
        runner = stack.enter_context(asyncio.Runner(loop_factory=_loop_factory()))
        _sweep(runtime)
        runtime.contain()
        for line in unenforced(config, runtime.home):
            _log.warning("%s", line)
        recorded = stack.enter_context(record(own_log)) if record is not None else None
        outside = _Outside(
            sockets, bool(handed), notifier, origin, own_log, greeting, served_as, recorded
        )
        runner.run(_serve(config, engine, runtime, keys, outside))


def _bind(endpoint: Endpoint) -> socket.socket:
    """Return a listening socket; raises StateError naming the lswap that has the address."""
    try:
        return bind(endpoint)
    except StateError as error:
        for one in find_running(os.environ):
            ports = [url.rpartition(":")[2] for url in one.served.urls] if one.served else []
            if str(endpoint.path or endpoint.port) in ports:
                raise StateError(
                    f"{error.message}: another lswap is there, {one}",
                    remedy="`lswap stop` ends it, or use another --port",
                ) from None
        raise


@dataclass(frozen=True, slots=True)
class _Outside:
    """What connects this process with others: listening sockets, and the service manager."""

    sockets: list[socket.socket]
    inherited: bool
    notifier: Notifier
    origin: Origin
    own_log: OwnLog
    greeting: Greeting
    served_as: str
    record: RunRecord | None


def _sweep(runtime: RuntimeDir) -> None:
    """End processes that a killed supervisor has left behind."""
    for swept in runtime.sweep_orphans():
        name, pid = swept.record.name, swept.record.pid
        if swept.how is SweptHow.KILLED:
            _log.warning("killed %s (pid %d), left behind by an earlier lswap", name, pid)
        elif swept.how is SweptHow.KEPT:
            _log.warning("%s (pid %d) of an earlier lswap does not end: look at it", name, pid)


def _bound(sock: socket.socket, endpoint: Endpoint) -> Endpoint:
    """Return the address that a socket listens on; port 0 becomes the one that the system chose."""
    return endpoint if endpoint.path is not None else endpoint._replace(port=sock.getsockname()[1])


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # no wheels for this platform; asyncio's own loop is slower, not worse
        return None
    return uvloop.new_event_loop


async def _serve(
    config: Config,
    engine: Engine | None,
    runtime: RuntimeDir,
    keys: KeyRing | None,
    outside: _Outside,
) -> None:
    sockets, notifier = outside.sockets, outside.notifier
    asyncio.get_running_loop().set_default_executor(Workers(_WORKERS, "lswap-worker"))
    guard.heed(asyncio.get_running_loop())
    lists = DeviceLists()
    async with open_supervisor(config, engine, runtime, outside.record, lists) as supervisor:
        with (
            _signals() as stops
        ):  # not before: a driver that hangs must not keep signals from ending us
            bound = tuple(map(_bound, sockets, config.listen))
            supervisor.about.listen = tuple(endpoint.url for endpoint in bound)
            served = Served(typeable(bound), outside.served_as, time.time())
            app = App(supervisor, keys)
            ui_socket = runtime.socket_path(0)  # no instance has that number
            app.services.web_ui = WebUi(engine.path if engine is not None else None, ui_socket)
            app.services.places.most = most_connections(config.limits.connections)
            app.services.bodies.most = most_bodies(config.limits)
            app.services.own_log = outside.own_log.lines
            outside.own_log.serve(asyncio.get_running_loop())
            app.services.reloader = await asyncio.to_thread(
                Reloader,
                supervisor,
                outside.origin,
                also=lambda new: _take_over(app, outside.own_log, new),
                during=notifier.reloading,
                find=lists.of,
            )
            async with (
                app.services.web_ui,
                capturing(app.services, config, supervisor.about.name),
                watching(app.services.reloader),
                app.services.turns.watched(app.busy),
                serve(
                    sockets,
                    app.handle,
                    _wire_limits(config),
                    on_wire_error=render_wire_error,
                    inherited=outside.inherited,
                    places=app.services.places,
                    bodies=app.services.bodies,
                ) as server,
                notifying(notifier, supervisor),
            ):
                runtime.tell(served)
                waiting = await _greet(outside, supervisor, served.urls, stops)
                gc.freeze()  # else a collection looks at all modules: streams wait 15 ms
                gc.set_threshold(*_COLLECT)
                gc.enable()
                state, estimated = supervisor.scheduler.state, supervisor.estimation.next
                async with telling_choices(state, estimated, waiting):
                    await stops.get()
                notifier.stopping()
                runtime.tell(msgspec.structs.replace(served, stopping=True))
                await _stop(app, server, supervisor, stops)


async def _greet(
    outside: _Outside,
    supervisor: Supervisor,
    urls: Sequence[str],
    stops: asyncio.Queue[None],
) -> list[str]:
    """Print the first lines; return the models that they call `estimating …`."""
    await _first_estimates(supervisor, stops)
    shown, models = supervisor.snapshot(SHOWN), len(supervisor.prepared)
    waiting = _estimated_now(supervisor)
    lines = outside.greeting(shown, models, urls, waiting)
    outside.own_log.lines.extend(lines.splitlines())
    with suppress(OSError):  # a full disk, or a closed pipe
        sys.stdout.write(f"{lines}\n")
        sys.stdout.flush()
    return waiting


def _wire_limits(config: Config) -> WireLimits:
    limits = config.limits
    return WireLimits(
        header=limits.header, head_read=limits.head_read, idle=limits.idle, stall=limits.stall
    )


async def _take_over(app: App, own_log: OwnLog, config: Config) -> Callable[[], None]:
    """Read the keys again; return a function that applies them. Raises ConfigError."""
    keys = await asyncio.to_thread(keys_of, config)

    def take_over() -> None:
        own_log.redact.learn(config.secrets)
        take_keys(app.services, keys)

    return take_over


@contextmanager
def _signals() -> Iterator[asyncio.Queue[None]]:
    """Queue SIGINT and SIGTERM, because the first and the second mean different things."""
    loop = asyncio.get_running_loop()
    stops: asyncio.Queue[None] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stops.put_nowait, None)
    try:
        yield stops
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            # The rest takes little time; another signal must not turn it into a failure.
            signal.signal(number, signal.SIG_IGN)


async def _stop(
    app: App, server: Server, supervisor: Supervisor, stops: asyncio.Queue[None]
) -> None:
    """Take no new requests; let the running ones end until the deadline or another signal."""
    patience = supervisor.config.policy.shutdown_timeout
    running = supervisor.snapshot(0).requests_open
    if running:
        _log.info(
            "stopping: %s may take up to %s; a second signal stops at once",
            "1 request" if running == 1 else f"{running} requests",
            format_duration(patience),
        )
    app.services.closing.set()
    async with asyncio.TaskGroup() as group:
        hurry = group.create_task(_hurry(supervisor, stops))
        await supervisor.shut_down(patience)  # new requests are refused with a message
        await server.stop_accepting()
        await server.drain(_LAST_WRITES)
        hurry.cancel()
    _log.info("stopped")


async def _hurry(supervisor: Supervisor, stops: asyncio.Queue[None]) -> None:
    await stops.get()
    _log.warning("stopping at once")
    supervisor.stop_now()


def _estimated_now(supervisor: Supervisor) -> list[str]:
    """Return the models shown at the start whose memory is still being estimated."""
    presets = supervisor.scheduler.state.presets
    shown = list(supervisor.prepared)[:SHOWN]
    return [name for name in shown if presets[PresetId(name)].plan.estimating]


async def _first_estimates(supervisor: Supervisor, stops: asyncio.Queue[None]) -> None:
    """Wait for the estimates of the models shown at the start, but not for long."""
    async with asyncio.TaskGroup() as tasks:
        estimates = tasks.create_task(
            guard.contained("first estimates", _all_estimated(supervisor)), name="first estimates"
        )
        stop = tasks.create_task(
            guard.contained("first stop", stops.get()), name="stop before the first lines"
        )
        await asyncio.wait(
            (estimates, stop), timeout=_ESTIMATES, return_when=asyncio.FIRST_COMPLETED
        )
        estimates.cancel()
        if stop.done():
            stops.put_nowait(stop.result())  # for the next reader, which then ends
        stop.cancel()


async def _all_estimated(supervisor: Supervisor) -> None:
    while _estimated_now(supervisor):
        await supervisor.estimation.next()
