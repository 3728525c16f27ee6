"""Stand-ins for what the api asks and uses: a supervisor that obeys, an exchange that records."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec

from llamaswap_py.api import App
from llamaswap_py.config.parse import load_config
from llamaswap_py.devices import Device
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import ApiError
from llamaswap_py.proxy.messages import Body, BodyTooLarge, RelayOutcome, RelayResult, RequestHead
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.types import InstanceKey, PresetId
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
from llamaswap_py.supervisor.event_log import EventLog
from llamaswap_py.supervisor.instances import Replays
from llamaswap_py.supervisor.model_facts import ModelFactsCache
from llamaswap_py.supervisor.names import Names, names_of
from llamaswap_py.supervisor.reservations import Reservations
from llamaswap_py.supervisor.resumable_streams import ResumableStreams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from llamaswap_py.children.logs import ChildLog
    from llamaswap_py.config.sections import Config
    from llamaswap_py.proxy.messages import UpstreamRequest

GIB = 1024**3
CHILD = Endpoint(path="/run/child.sock")
CONFIG = """ui: none
models:
  alpha: {model: /models/alpha.gguf, aliases: [first]}
  org/beta:8b: {model: /models/beta.gguf}
"""


def make_config(text: str = CONFIG) -> Config:
    return load_config(text, path=None, base_dir="/", env={}, home="/home/me")


def model_view(name: str, **changes: Any) -> ModelView:
    fields: dict[str, Any] = {
        "id": name,
        "aliases": (),
        "state": "unloaded",
        "pinned": False,
        "ttl": None,
        "leases": 0,
        "waiting": 0,
        "eta_seconds": None,
        "footprint": {"host": GIB},
        "footprint_source": "declared",
        "context_per_request": 4096,
        "loads": 0,
        "load_seconds": None,
        "reason": "",
        "failure": None,
        "metadata": {},
        "created": 1700000000,
        "args": ("--ctx-size", "4096", "--jinja"),
    }
    return ModelView(**(fields | changes))


def instance_view(name: str, **changes: Any) -> InstanceView:
    fields: dict[str, Any] = {
        "preset": name,
        "epoch": 1,
        "state": "ready",
        "pid": 42,
        "endpoint": None,
        "progress": None,
        "stage": None,
        "spawned_at": 1000.0,
        "ready_at": 1001.0,
        "load_seconds": 1.0,
        "leases": 0,
        "slots": 2,
        "n_ctx": 4096,
        "gate": "open",
        "claimed_by": None,
        "last_used_at": 1010.0,
        "evict_at": None,
        "reason": "a request asked for it",
    }
    return InstanceView(**(fields | changes))


def failure_view(**changes: Any) -> FailureView:
    fields: dict[str, Any] = {"kind": "file_missing", "summary": "there is no such file"}
    return FailureView(**(fields | changes))


def make_snapshot(
    models: Sequence[ModelView], instances: Sequence[InstanceView] = (), **changes: Any
) -> Snapshot:
    fields: dict[str, Any] = {
        "version": "0.2.0",
        "name": "test",
        "pid": 1,
        "started_at": 1000.0,
        "now": 1070.0,
        "listen": ("http://127.0.0.1:8080",),
        "config_path": "/etc/lswap.yaml",
        "state": "serving",
        "engine": EngineView("/usr/bin/llama-server", 11434, "cpu"),
        "devices": (DeviceView("host", 8 * GIB, GIB, 2 * GIB, "declared"),),
        "models": tuple(models),
        "instances": tuple(instances),
        "requests_open": 0,
        "requests_total": 0,
        "loads_total": 0,
        "evictions_total": 0,
    }
    return Snapshot(**(fields | changes))


@dataclass
class FakeLease:
    endpoint: Endpoint = CHILD
    epoch: int = 1
    queue_ms: float = 12.0
    load_ms: float = 34.0
    arrived: float = 5.0
    outcome: str = "ok"
    preset: str = "alpha"
    key: InstanceKey = field(default_factory=lambda: InstanceKey(PresetId("alpha"), 1))
    revoked: str | None = None
    revoke: Callable[[str], None] | None = None
    answer: Any = None
    stream_in_path: bool = False

    def on_revoke(self, callback: Callable[[str], None]) -> None:
        self.revoke = callback

    def watch(self, answer: Any) -> None:
        self.answer = answer


class FakeTicket:
    """Gives the lease of a context manager, as a `Ticket` gives one that need not be waited for."""

    def __init__(self, lease: AbstractContextManager[FakeLease]) -> None:
        self._lease = lease
        self.stays = False

    def take(self) -> FakeLease:
        return self._lease.__enter__()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: Any) -> None:
        self._lease.__exit__(*error)

    async def __aenter__(self) -> FakeLease:
        return self.take()

    async def __aexit__(self, *error: Any) -> None:
        self.__exit__(*error)


@dataclass
class FakeSupervisor:
    """Grants every lease at once, unless `refuse` says no; remembers what it was asked."""

    config: Config = field(default_factory=make_config)
    refuse: ApiError | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    leases: list[FakeLease] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    unloads: list[tuple[str, bool]] = field(default_factory=list)
    unload_problem: str = ""
    log: ChildLog | None = None
    picture: Snapshot | None = None
    pool: Any = None
    endpoint: Endpoint = CHILD
    running: dict[Any, Any] = field(default_factory=dict)
    facts: ModelFactsCache = field(default_factory=lambda: ModelFactsCache({}))

    @cached_property
    def reservations(self) -> Reservations:
        """Real ones, of which a scheduler that has room for all holds each at once."""

        def feed(event: ev.Event) -> None:
            if isinstance(event, ev.ReservationAsked):
                held.record_held(event.name)

        held = Reservations(feed)
        return held

    @cached_property
    def event_log(self) -> EventLog:
        return EventLog()

    @cached_property
    def scheduler(self) -> SimpleNamespace:
        return SimpleNamespace(state=SimpleNamespace(instances={}), closing=False)

    @cached_property
    def instances(self) -> SimpleNamespace:
        return SimpleNamespace(replays=Replays(), refused=lambda *_: None, doubt=lambda _: None)

    @cached_property
    def kv_cache(self) -> SimpleNamespace:
        return SimpleNamespace(counts={}, guards=lambda preset: False)

    @cached_property
    def streams(self) -> ResumableStreams:
        return ResumableStreams(asyncio.TaskGroup(), lambda _: None, lambda _: False)

    def pin(self, preset: str, pinned: bool) -> list[str]:
        self.loaded.append(f"{preset} pinned {pinned}")
        return ["gamma"] if pinned else []

    def keep_alive(self, preset: str, seconds: float | None) -> None:
        self.loaded.append(f"{preset} for {seconds}")

    @property
    def devices(self) -> tuple[Device, ...]:
        return (Device("host", 1 << 30, 0, "declared"),)

    @property
    def names(self) -> Names:
        state = SimpleNamespace(presets={}, ledger=SimpleNamespace(free=dict))
        return names_of(self.config, cast("Any", state))

    def lease(self, preset: str, **asked: Any) -> FakeTicket:
        return FakeTicket(self.leased(preset, **asked))

    @contextmanager
    def leased(self, preset: str, **asked: Any) -> Iterator[FakeLease]:
        self.asked.append({"preset": preset, **asked})
        if self.refuse is not None:
            raise self.refuse
        lease = FakeLease(endpoint=self.endpoint, epoch=len(self.leases) + 1, preset=preset)
        self.leases.append(lease)
        yield lease

    @contextmanager
    def reading(self, preset: str, **asked: Any) -> Iterator[FakeLease]:
        self.asked.append({"preset": preset, "slot": False, "autoload": False, **asked})
        if self.refuse is not None:
            raise self.refuse
        lease = FakeLease(endpoint=self.endpoint, epoch=len(self.leases) + 1, preset=preset)
        self.leases.append(lease)
        yield lease

    async def snapshot_in_steps(self) -> Snapshot:
        return self.snapshot()

    def snapshot(self) -> Snapshot:
        if self.picture is not None:
            return self.picture
        return make_snapshot(
            [
                model_view(
                    preset.id,
                    aliases=preset.aliases,
                    per_name=tuple(preset.request.per_name),
                    unlisted=preset.unlisted,
                )
                for preset in self.config.models.values()
            ],
            aliases=tuple(
                AliasView(name, alias.first or tuple(alias.split or {}))
                for name, alias in self.config.aliases.items()
            ),
        )

    def decisions(self, *, model: str | None, limit: int) -> list[DecisionView]:
        return [DecisionView(1, 1.0, "load", model or "alpha", 1, f"limit {limit}")]

    async def load(self, preset: str) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.loaded.append(preset)

    def request_load(self, preset: str) -> None:
        self.loaded.append(f"{preset}, later")

    def unload(self, preset: str, *, force: bool) -> bool:
        self.unloads.append((preset, force))
        return preset == "alpha"

    async def unloaded(self, preset: str) -> str:
        return self.unload_problem

    def logs(self, preset: str) -> ChildLog | None:
        return self.log


def header_lines(lines: bytes) -> list[tuple[bytes, bytes]]:
    """Return the names and values of rendered header lines."""
    pairs = [line.partition(b": ") for line in lines.splitlines()]
    return [(name, value) for name, _, value in pairs]


def make_head(method: str, target: str, headers: dict[str, str] | None = None) -> RequestHead:
    path, _, query = target.partition("?")
    named = {"host": "localhost:8080"} | (headers or {})
    pairs = [(name.lower().encode(), value.encode()) for name, value in named.items()]
    return RequestHead(
        method=method,
        target=target,
        path=path,
        query=query,
        version="1.1",
        headers=pairs,
        keep_alive=True,
        upgrade=b"upgrade" in dict(pairs),
    )


DONE = RelayResult(RelayOutcome.COMPLETE, started=True, status=200)


class FakeConnection:
    """A connection of a client that may have as many as it wants."""

    def claim(self, owner: str) -> bool:
        return True

    @property
    def task(self) -> asyncio.Task[Any] | None:
        return asyncio.current_task()


class FakeExchange:
    """Records the answer; `results` are what its relays come to, one after another."""

    def __init__(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        results: Sequence[RelayResult] = (DONE,),
        peer: str = "127.0.0.1",
    ) -> None:
        self.padded = False
        self.begun: object = None
        self.head = make_head(method, target, headers)
        self.peer = peer
        self.connection = FakeConnection()
        self.response_lines = b""
        self.response_started = False
        self.finished = False
        self.event_stream = False
        self.bytes_sent = 0
        self.events_relayed = 0
        self.body = body
        self.limit: int | None = None
        self.results = list(results)
        self.relayed: list[UpstreamRequest] = []
        self.relay_headers: list[dict[str, str]] = []
        self.tunnelled = False
        self.cuts: list[tuple[bytes, str]] = []
        self.cut_event: bytes | None = None
        self.error_event: Callable[[str], bytes] | None = None
        self.during_relay: Callable[[], None] | None = None
        self.status = 0
        self.headers: dict[str, str] = {}
        self.answer = b""
        self.written = asyncio.Event()

    def small_body(self, limit: int) -> Body | None:
        return None

    async def read_body(self, limit: int, scan: Callable[[bytes], int] | None = None) -> Body:
        self.limit = limit
        if len(self.body) > limit:
            raise BodyTooLarge(limit)
        if scan is not None:
            scan(self.body)
        return Body.of(self.body)

    def respond(
        self,
        status: int,
        body: bytes = b"",
        content_type: str = "application/json",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        assert not self.response_started, "answered twice"
        self.response_started = True
        self.status, self.answer = status, body
        self._keep([(b"content-type", content_type.encode()), *headers])

    async def start(self, status: int, content_type: str) -> None:
        self.respond(status, b"", content_type)

    async def write(self, data: bytes) -> None:
        self.answer += data
        self.written.set()

    async def finish(self) -> None:
        pass

    async def relay(
        self,
        endpoint: Endpoint,
        request: UpstreamRequest,
        *,
        pool: Any,
        error_event: Callable[[str], bytes] | None = None,
        translate: Callable[[], Any] | None = None,
        collect: bool = False,
    ) -> RelayResult:
        self.relayed.append(request)
        self.relay_headers.append({k.decode(): v.decode() for k, v in self._own()})
        self.error_event = error_event
        if self.during_relay is not None:
            self.during_relay()
        result = self.results.pop(0)
        if result.started:
            self.response_started = True
            self.status = result.status
            self._keep([])
        return result

    async def tunnel(
        self, endpoint: Endpoint, request: UpstreamRequest, *, pool: Any
    ) -> RelayResult:
        self.tunnelled = True
        return await self.relay(endpoint, request, pool=pool)

    def cut(self, event: bytes, reason: str, *, close: int = 1001) -> None:
        self.cuts.append((event, reason))

    def _own(self) -> list[tuple[bytes, bytes]]:
        return header_lines(self.response_lines)

    def _keep(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        pairs = [*headers, *self._own()]
        self.headers = {name.decode(): value.decode() for name, value in pairs}

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.answer)

    @property
    def error(self) -> Any:
        return self.json["error"]


async def answer(exchange: FakeExchange, supervisor: FakeSupervisor | None = None) -> FakeExchange:
    """Let an App over `supervisor` handle the exchange."""
    app = App(cast("Any", supervisor or FakeSupervisor()))
    await app.handle(cast("Any", exchange))
    return exchange


async def ask(
    method: str,
    target: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    supervisor: FakeSupervisor | None = None,
    peer: str = "127.0.0.1",
) -> FakeExchange:
    """Answer one request."""
    return await answer(FakeExchange(method, target, body, headers, peer=peer), supervisor)
