"""`Call`: one request as the handlers see it, with the data for the access log."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from urllib.parse import parse_qsl, quote

import msgspec

from llamaswap_py.api.auth import lacks
from llamaswap_py.api.errors import (
    Family,
    cancelled,
    error_body,
    error_event,
    error_headers,
    model_not_found,
    upstream_failed,
)
from llamaswap_py.api.scheduling_headers import NOT_SUBSTITUTABLE
from llamaswap_py.api.web_ui import WebUi
from llamaswap_py.errors import ApiError
from llamaswap_py.proxy.principals import principal_of
from llamaswap_py.supervisor.leases import SchedulingOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

    from llamaswap_py.api.auth import Access
    from llamaswap_py.api.capture import Captures, Tap
    from llamaswap_py.api.counters import Counters
    from llamaswap_py.children.logs import ChildLog
    from llamaswap_py.config.api_keys import ApiKey, KeyRing, Right
    from llamaswap_py.config.sections import Config
    from llamaswap_py.proxy.bodies import Bodies
    from llamaswap_py.proxy.exchange import Exchange
    from llamaswap_py.proxy.places import Places
    from llamaswap_py.snapshot import Snapshot
    from llamaswap_py.supervisor.leases import Lease, Ticket
    from llamaswap_py.supervisor.reload import Reloader
    from llamaswap_py.supervisor.supervisor import Supervisor
    from llamaswap_py.tasks.loop_lag import Turns

Headers: TypeAlias = "Iterable[tuple[bytes, bytes]]"
_LEASED = b"x-lswap-model: %b\r\nx-lswap-queue-ms: %d\r\nx-lswap-load-ms: %d\r\n"
_GOING_AWAY, _POLICY = 1001, 1008
_TRUE = frozenset({"1", "true", "yes", "on", ""})
_MOST_PARAMETERS = 100
_FALSE = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Route:
    """The handler of a path and method, and the properties of the route.

    For all routes:
    `admin`: it needs an admin key. `right`: it needs a key with this right. `public`: it needs no
    key. `free`: it does not count against `max_in_flight` (nor does a public route), so that
    requests can be listed and ended even if there are too many. `starts`: it is refused while lswap
    stops, because it begins something that would not end. `as_it_is`: its body is passed on unread.
    `relayed`: the request goes to the child of the model that its body names. `without_model`
    answers a request without a model's name, if the path then means lswap itself.

    For relayed routes:
    `slot`: it generates, so it counts against `concurrency`. `retry`: it may be sent again if a
    child died before its first byte. `talk`: another model may answer, if the client asks for that.
    `replay`: the change that it makes in a child is repeated in the children that follow.
    """

    handle: Callable[[Call], Awaitable[None]]
    family: Family = Family.OPENAI
    relayed: bool = False
    slot: bool = False
    retry: bool = False
    talk: bool = False
    admin: bool = False
    right: Right | None = None
    public: bool = False
    free: bool = False
    replay: bool = False
    starts: bool = False
    as_it_is: bool = False
    without_model: Callable[[Call], Awaitable[None]] | None = None


class Way(NamedTuple):
    """A path as the client wrote it, as it is sent to a child, and as the child reads it."""

    asked: str
    sent: str
    read: str


@dataclass(slots=True)
class RouteMatch:
    """The route of one head on one connection under one configuration, with results of checks.

    `methods` is None if the path is unknown, `route` if the path does not have this method.
    """

    config: Config
    methods: dict[str, Route] | None
    route: Route | None
    captured: str
    family: Family
    template: str
    unscheduled: bool
    """The head has no scheduling headers."""
    relayed: bool
    """A JSON body is sent to a child as it is, and again if the child died before it answered."""
    trusted: bool = False
    """The head has passed the Host/Origin rule."""
    plain: bool = False
    """A request with this head was admitted that has no other wish than its model."""
    scheduling: SchedulingOptions = NOT_SUBSTITUTABLE
    """The scheduling options of such a request."""
    keys: KeyRing | None = None
    key: ApiKey | None = None
    """The keys among which its key was found, and that key."""
    principal: str = ""
    """The principal against which it counts."""
    way: Way | None = None
    """The path at a llama-server, if any key may use it."""
    lines: bytes = b""
    """The header lines for a child, once one was needed."""

    def let_in(self, keys: KeyRing | None, key: ApiKey | None, principal: str) -> None:
        """Note that a request was admitted; others like it are, as long as `keys` are the same."""
        self.keys, self.key, self.principal = keys, key, principal
        self.plain = self.relayed and (key is None or (key.models is None and not key.priority))
        weight = 1 if key is None else key.weight
        self.scheduling = SchedulingOptions(substitutable=False, weight=weight)


@dataclass(slots=True, eq=False)
class Services:
    """The shared objects that handlers use: the supervisor, counters, limits, and so on.

    `server/` sets those that not every start of lswap has: the log, the file, the captures.
    """

    supervisor: Supervisor
    access: Access
    places: Places
    """The open connections of all clients and their limit; `serve()` uses the same object."""
    bodies: Bodies
    """The bytes of large bodies in memory and their limit; `serve()` uses the same object."""
    counters: Counters
    turns: Turns
    """The long turns of the event loop, if they are measured."""
    route_of: Callable[[str, str], Route | None]
    """Returns lswap's own route of a method and a path, None if there is none."""
    web_ui: WebUi = field(default_factory=WebUi)
    """The files of the web UI; until `server/` knows a llama-server, only those of a folder."""
    calls: dict[str, Call] = field(default_factory=dict)
    """All open requests, by id."""
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when lswap stops, to end answers without an end (followed logs and events)."""
    captures: Captures | None = None
    """None unless the file says `capture: on`."""
    own_log: ChildLog | None = None
    """The last lines of lswap's own log, if they are kept."""
    reloader: Reloader | None = None
    """None unless the configuration comes from a file."""


class Call:
    """One request: what its client asked for, and how it went.

    One is made for every request. To save time, attributes that few requests change have their
    first value in the class.
    """

    captured = ""
    """The part of the path that `{id}` stands for."""
    family = Family.OPENAI
    key: ApiKey | None = None
    extra: Headers = ()
    """Headers to add to the answer."""
    ticket: Ticket | None = None
    tap: Tap | None = None
    """Collects request and answer for `capture`."""
    cancelled: ApiError | None = None
    """The error with which another request, or lswap, ended this one."""
    task: asyncio.Task[None] | None = None
    """The task of its handler, while one runs."""
    counted = ""
    """The principal whose `max_in_flight` this request counts against; "": it does not count."""
    # Its result, for the access log.
    model = ""
    asked = ""
    """The name by which it asked for its model, as the file spells it."""
    epoch = 0
    """The epoch of the instance that answers; 0 before there is one."""
    status = 0
    leased = False
    queue_ms = 0.0
    load_ms = 0.0
    first_byte_at = 0.0
    """The `time.monotonic()` of the first byte of the child's answer; 0.0 before it."""
    tail = b""
    outcome = "ok"
    _query: dict[str, str] | None = None

    def __init__(
        self, services: Services, exchange: Exchange, id: str, route: Route, match: RouteMatch
    ) -> None:
        self.services = services
        self.supervisor = services.supervisor
        self.exchange = exchange
        self.id = id
        self.id_line = b"x-request-id: %b\r\n" % id.encode("ascii")
        """The header line with its id, for the answer and for the child."""
        self.route = route
        self.match = match
        self.began = time.monotonic()
        if services.turns.asleep:
            services.turns.wake()

    @property
    def client(self) -> str:
        """The client, as shown to people: the key's name, else the client's address."""
        return self.exchange.peer if self.key is None else f"key {self.key.name}"

    @property
    def principal(self) -> str:
        """The principal whose turns, limits and shares apply to it."""
        if self.counted:
            return self.counted
        return principal_of(None if self.key is None else self.key.name, self.exchange.peer)

    @property
    def owner(self) -> str:
        """The owner of the conversations that it begins and finds; "" without keys."""
        return "" if self.key is None else self.principal

    @property
    def sees_all(self) -> bool:
        """Whether it also finds the conversations of other owners."""
        return self.key is not None and self.key.is_admin

    def is_own(self, request_id: str) -> bool:
        """Return whether an open request belongs to this client, or this client sees all."""
        if self.key is None or self.sees_all:
            return True
        if (one := self.services.calls.get(request_id)) is not None:
            return one.owner == self.owner
        detached = self.supervisor.streams.detached
        return any((one.request_id, one.owner) == (request_id, self.owner) for one in detached)

    @property
    def replaces_its_own(self) -> bool:
        """Whether it replaces an older answer that has continued without its client."""
        given = self.exchange.head.get(b"x-conversation-id")
        if given is None:
            return False
        older = self.supervisor.streams.find(self.owner, given.decode("latin-1"))
        return older is not None and older.goes_on

    def count(self) -> None:
        """Count this request against its principal; raises ApiError `too_many_requests`."""
        principal, limit = self.principal, self.match.config.limits.max_in_flight
        self.services.access.enter(principal, self.key, limit, replaces=self.replaces_its_own)
        self.counted = principal

    def hand_over_count(self) -> Callable[[], None]:
        """Keep counting it after its client has disconnected; return a call that ends this."""
        counted, self.counted = self.counted, ""
        access = self.services.access
        return lambda: access.leave(counted) if counted else None

    def may(self, right: Right) -> bool:
        """Return whether this request's key has a right; without keys everybody has all."""
        return self.key is None or self.key.may(right)

    def need(self, right: Right) -> None:
        """Raise ApiError `forbidden` unless this request's key has a right."""
        if self.key is not None and not self.key.may(right):
            raise lacks(self.key, right)

    def may_use(self, preset: str) -> bool:
        """Return whether this request's key may use a preset."""
        return self.key is None or self.key.may_use(preset)

    async def snapshot(self) -> Snapshot:
        """Return the present state, without the models that this request's key may not use."""
        whole = await self.supervisor.snapshot_in_steps()
        if self.key is None or self.key.models is None:
            return whole
        models = tuple(one for one in whole.models if self.may_use(one.id))
        instances = tuple(one for one in whole.instances if self.may_use(one.preset))
        aliases = tuple(one for one in whole.aliases if all(map(self.may_use, one.presets)))
        return msgspec.structs.replace(whole, models=models, instances=instances, aliases=aliases)

    @property
    def query(self) -> dict[str, str]:
        """The decoded query parameters; the first of duplicates. Raises ApiError `bad_request`."""
        if self._query is None:
            self._query = _first_of_each(self.exchange.head.query)
        return self._query

    def flag(self, name: str) -> bool | None:
        """Return a boolean query parameter (`?wait=false`), None if it is not given.

        Raises ApiError `bad_request`.
        """
        value = self.query.get(name)
        if value is None:
            return None
        if value.lower() in _TRUE:
            return True
        if value.lower() in _FALSE:
            return False
        raise ApiError("bad_request", f"?{name}= must be true or false", param=name)

    def number(self, name: str, default: int, *, most: int) -> int:
        """Return a whole-number query parameter; raises ApiError `bad_request`."""
        text = self.query.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit()):
            raise ApiError("bad_request", f"?{name}= must be a whole number", param=name)
        return min(int(text[:9]), most)

    def find_preset(self, name: str) -> str:
        """Return the preset that `name` (a model or an alias) means; raises `model_not_found`."""
        preset: str | None = self.supervisor.names.resolve(name, self.id)
        if preset is None:
            raise model_not_found(name, self.supervisor.names.nearest(name))
        if not self.may_use(preset):
            assert self.key is not None
            raise ApiError(
                "forbidden",
                f"the key {self.key.name!r} may not use model {preset!r}",
                remedy="GET /v1/models lists the models that it may use",
            )
        self.model = preset
        self.asked = self.supervisor.names.known(name) or preset
        return preset

    def failure_event(self, reason: str) -> bytes:
        """Return the event that ends a stream whose child has failed."""
        return error_event(upstream_failed(reason), self.family, self.id)

    def cancel(self, error: ApiError | None = None) -> None:
        """End this request from another task, with an error or an event of its stream."""
        self.cancelled = error = error or cancelled()
        if self.ticket is not None:
            self.ticket.give_up(error)
        event = error_event(error, self.family, self.id)
        self.exchange.cut(event, "cancelled", close=_closing_code(error))

    def end(self, error: ApiError) -> None:
        """End this request with an error, even if no model is answering it."""
        if self.exchange.finished:
            return
        self.cancel(error)
        relays = self.ticket is not None or self.exchange.running is not None
        if not relays and self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()

    def respond(self, status: int, body: Any) -> None:
        """Answer with `body` as JSON."""
        self.status = status
        self.exchange.respond(status, msgspec.json.encode(body))

    def respond_text(self, status: int, text: str) -> None:
        """Answer with plain text."""
        self.status = status
        self.exchange.respond(status, text.encode(), "text/plain; charset=utf-8")

    async def follow(self, writing: Coroutine[Any, Any, None]) -> None:
        """Run the coroutine that writes an answer without an end, until it ends or lswap stops."""
        self.exchange.stays = True
        async with asyncio.TaskGroup() as group:
            tasks = {group.create_task(writing), group.create_task(self.services.closing.wait())}
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()

    def granted(self, lease: Lease) -> None:
        """Store the data of a lease, and put them into the headers of the answer."""
        self.leased = True
        self.model, self.epoch = lease.preset, lease.epoch
        self.queue_ms, self.load_ms = lease.queue_ms, lease.load_ms
        self.stamp()

    def stamp(self) -> None:
        """Set the headers that every answer has; a later call replaces them."""
        lines = self.id_line
        if self.model:
            lines += _leased_lines(self.model, int(self.queue_ms), int(self.load_ms))
        for pair in self.extra:
            lines += b"%b: %b\r\n" % pair
        self.exchange.response_lines = lines

    def fail(self, error: ApiError, headers: Headers = ()) -> None:
        """Answer with `error` in the form of the route's family."""
        self.status = error.status
        if self.outcome == "ok":
            self.outcome = error.code
        if not self.leased:
            self.queue_ms = (time.monotonic() - self.began) * 1000
        if self.exchange.padded:
            self.exchange.end_stream(error_body(error, self.family, self.id))
            return
        if self.exchange.response_started:  # a stream that was kept alive while it waited
            self.exchange.end_stream(error_event(error, self.family, self.id))
            return
        self.stamp()
        body = error_body(error, self.family, self.id)
        self.exchange.respond(error.status, body, headers=[*error_headers(error), *headers])


def _closing_code(error: ApiError) -> int:
    """Return the code with which a WebSocket is closed (RFC 6455 section 7.4.1)."""
    return _POLICY if error.status in (401, 403) else _GOING_AWAY


def _first_of_each(query: str) -> dict[str, str]:
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        message = f"the query has more than {_MOST_PARAMETERS} parameters"
        raise ApiError(
            "bad_request", message, remedy="send fewer, or put them in the body"
        ) from None
    return dict(reversed(pairs))


@lru_cache(maxsize=256)
def _leased_lines(model: str, queue_ms: int, load_ms: int) -> bytes:
    return _LEASED % (_header_text(model), queue_ms, load_ms)


def _header_text(preset: str) -> bytes:
    """Return a model id for a header, percent-encoded if it is not plain ASCII."""
    plain = preset.isascii() and preset.isprintable()
    return (preset if plain else quote(preset, safe="/:")).encode("ascii")
