"""The entry point of every request, and the only place where an error becomes an answer."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from llamaswap_py.api import pages, routes
from llamaswap_py.api.auth import Access, Cors, HostRule, own_names
from llamaswap_py.api.counters import Counters
from llamaswap_py.api.errors import draining
from llamaswap_py.api.read_body import refuse_coded_body
from llamaswap_py.api.request import Call, Route, Services
from llamaswap_py.api.route_match import match_route
from llamaswap_py.errors import ApiError, without_frames
from llamaswap_py.proxy.bodies import Bodies
from llamaswap_py.proxy.messages import WireError
from llamaswap_py.proxy.places import Places
from llamaswap_py.proxy.principals import UNIX
from llamaswap_py.tasks.loop_lag import Turns

if TYPE_CHECKING:
    from llamaswap_py.api.capture import Tap
    from llamaswap_py.config.api_keys import KeyRing
    from llamaswap_py.proxy.exchange import Exchange
    from llamaswap_py.proxy.messages import RequestHead
    from llamaswap_py.supervisor.supervisor import Supervisor

_log: Final = logging.getLogger("lswap")
_access: Final = logging.getLogger("lswap.access")
_LATER: Final = (429, 503)
_MAX_ID: Final = 128
_TWICE: Final = ("/v1/v1/", "/v1/api/")
"""Paths begin like this if a client's base URL ends with /v1 and the client adds its own path."""


async def _nothing(call: Call) -> None:
    path = call.exchange.head.path
    remedy = "GET /v1/models lists the models; /upstream/MODEL/PATH reaches any path of a child"
    if path.startswith(_TWICE):
        remedy = "the client adds its own path to the base URL: remove a /v1 from the base URL"
    raise ApiError("not_found", f"there is no {path[:200]}", remedy=remedy)


_NO_ROUTE: Final = Route(_nothing)


class App:
    """Answers requests; the proxy's `serve()` calls its `handle`."""

    def __init__(self, supervisor: Supervisor, keys: KeyRing | None = None) -> None:
        places = Places(keyed=keys is not None)
        self.services = Services(
            supervisor,
            Access(keys, places),
            places,
            Bodies(),
            Counters(),
            Turns(),
            routes.route_of,
        )
        config = supervisor.config
        self._hosts = HostRule(own_names(config), config.cors.origins)
        self._cors = Cors(config.cors.origins)
        self._prefix = secrets.token_hex(4)  # so that two runs of lswap do not make the same id
        self._numbers = count(1)

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request. Raises only cancellation, unless the answer has begun."""
        call = self._open(exchange)
        call.task = exchange.connection.task
        try:
            match = call.match
            if match.plain and match.keys is self.services.access.keys:
                self._let_in_again(call)
                await call.route.handle(call)
            else:
                await self._dispatch(call)
        except ApiError as error:
            self._fail(call, error)
            without_frames(error)
        except WireError as error:  # broken HTTP: the proxy answers and closes the connection
            call.status, call.outcome = error.status, "bad_request"
            raise
        except asyncio.CancelledError:
            if not _was_ended(call):
                call.outcome = "client_gone"
                raise
            assert call.cancelled is not None
            if not exchange.response_started or _goes_on(exchange):
                self._fail(call, call.cancelled)
        except Exception as error:
            _log.exception("request %s failed inside lswap", call.id)
            call.outcome = "internal"
            self._fail(call, _internal(call.id), cause=error)
        finally:
            self._close(call)

    def new_id(self) -> str:
        """Return an id for a request that was sent without one."""
        return f"{self._prefix}-{next(self._numbers)}"

    def busy(self) -> bool:
        """Return whether requests are in flight, except those that only follow events or logs."""
        return any(one.counted for one in self.services.calls.values())

    def _open(self, exchange: Exchange) -> Call:
        head = exchange.head
        if b"x-request-id" in head.first:
            id = self._request_id(head)
        else:
            id = f"{self._prefix}-{next(self._numbers)}"
        match = match_route(exchange, self.services.supervisor.config)
        call = Call(self.services, exchange, id, _NO_ROUTE, match)
        self.services.calls[id] = call
        exchange.response_lines = call.id_line
        return call

    def _close(self, call: Call) -> None:
        """Count a request that has ended."""
        self.services.calls.pop(call.id, None)
        if call.counted:
            self.services.access.leave(call.counted)
        self._count(call)
        if self.services.captures is not None and call.tap is not None:
            self.services.captures.keep(_captured(call, call.tap))
        level = logging.WARNING if call.status >= 500 else logging.INFO
        if _access.isEnabledFor(level):
            _write_access(call, level)
        call.ticket = call.task = None  # both refer to the call, so this breaks a reference cycle

    async def _dispatch(self, call: Call) -> None:
        head = call.exchange.head
        if (self._cors.on or head.method == "OPTIONS") and self._cross_origin(call):
            return
        match = call.match
        call.captured, call.family = match.captured, match.family
        if not match.trusted and call.exchange.peer != UNIX and self.services.access.keys is None:
            self._hosts.check(head)
            match.trusted = True
        if head.path == "*":  # OPTIONS * asks about the whole server (RFC 9110 section 9.3.7)
            call.status = 204
            call.exchange.respond(204, headers=[_allow(None)])
            return
        if match.methods is None:
            if not await pages.serve_file(call):
                await _nothing(call)
            return
        route = match.route
        if route is None:
            methods = match.methods
            message = f"{head.path[:200]} takes {' or '.join(methods)}, not {head.method}"
            call.fail(ApiError("method_not_allowed", message), [_allow(methods)])
            return
        refuse_coded_body(head, route)
        call.route = route
        if not route.public:
            call.key = self.services.access.check(head, admin=route.admin, right=route.right)
            self.services.access.claim(call.key, call.exchange)
            if not route.free:
                call.count()
        if route.starts and self.services.supervisor.scheduler.closing:
            raise draining()
        if match.relayed and not self._cors.on:
            match.let_in(self.services.access.keys, call.key, call.principal)
        await route.handle(call)

    def _let_in_again(self, call: Call) -> None:
        """Admit a request whose head has been admitted before. Raises ApiError."""
        match = call.match
        assert match.route is not None
        call.route, call.family, call.key = match.route, match.family, match.key
        if match.key is not None:
            self.services.access.claim(match.key, call.exchange)
        limit = match.config.limits.max_in_flight
        self.services.access.enter(match.principal, match.key, limit)
        call.counted = match.principal

    def _cross_origin(self, call: Call) -> bool:
        """Answer a preflight, or add the CORS headers to the answer of another request."""
        head = call.exchange.head
        if (allowed := self._cors.preflight(head)) is not None:
            call.status = 204
            call.exchange.respond(204, headers=allowed)
            return True
        if extra := self._cors.headers(head):
            call.extra = extra
            call.stamp()
        return False

    def _count(self, call: Call) -> None:
        total = time.monotonic() - call.began
        route = call.match.template
        counts = self.services.counters.count_request(call.model, route, call.status, total)
        if call.first_byte_at:
            counts.count_answer(call.first_byte_at - call.began, call.tail)
        if call.leased:
            counts.count_wait(call.queue_ms / 1000, call.load_ms / 1000)
        feed = self.services.supervisor.event_log
        if call.model and feed.followed:
            told = {"id": call.id, "model": call.model, "client": call.client, "route": route}
            feed.publish("request", {**told, "status": call.status, "seconds": round(total, 3)})

    def _fail(self, call: Call, error: ApiError, cause: Exception | None = None) -> None:
        """Answer with `error`; if an answer has begun, raise, so that the connection is cut."""
        if error.status in _LATER:
            reason = str(error.details.get("reason", error.code))
            self.services.counters.count_refusal(reason, "" if call.key is None else call.key.name)
        exchange = call.exchange
        if exchange.response_started and not _goes_on(exchange):
            raise cause or error
        call.fail(error)

    def _request_id(self, head: RequestHead) -> str:
        """Return the client's id if it is valid and not in use, else a new one."""
        given = head.get(b"x-request-id")
        if given is not None and 0 < len(given) <= _MAX_ID and given.isascii():
            text = given.decode("ascii")
            if text.isprintable() and " " not in text:
                return text if text not in self.services.calls else f"{text}.{secrets.token_hex(4)}"
        return self.new_id()


def _goes_on(exchange: Exchange) -> bool:
    """Return whether an answer that has begun can still end with an error."""
    return not exchange.finished and (exchange.event_stream or exchange.padded)


def _was_ended(call: Call) -> bool:
    """Return whether a handler was cancelled only because its request was ended."""
    return call.cancelled is not None and call.task is not None and not call.task.uncancel()


def _allow(methods: dict[str, Route] | None) -> tuple[bytes, bytes]:
    return b"allow", ", ".join(routes.allowed(methods)).encode()


def _captured(call: Call, tap: Tap) -> dict[str, Any]:
    """Return the record of a request that `capture` stores."""
    return {
        "at": time.time(),
        "id": call.id,
        "client": call.client,
        "model": call.model,
        "path": call.exchange.head.path,
        "status": call.status,
        "outcome": call.outcome,
        **tap.record(),
    }


def _internal(request_id: str) -> ApiError:
    return ApiError(
        "internal",
        "lswap failed to handle this request; this is a bug",
        remedy=f"lswap's log has the details under request id {request_id}",
    )


def _write_access(call: Call, level: int) -> None:
    """Write one log line for a request."""
    head = call.exchange.head
    total = (time.monotonic() - call.began) * 1000
    instance = f"{call.model}#{call.epoch}" if call.epoch else call.model or "-"
    about = {
        "request": call.id,
        "client": call.client,
        "method": head.method,
        "path": head.path[:200],
        "model": call.model or None,
        "instance": instance if call.epoch else None,
        "status": call.status,
        "queue_ms": round(call.queue_ms),
        "load_ms": round(call.load_ms),
        "total_ms": round(total),
        "bytes": call.exchange.bytes_sent,
        "outcome": call.outcome,
    }
    _access.log(
        level,
        "%s %s %s %s model=%s status=%d queue=%.0fms load=%.0fms total=%.0fms bytes=%d %s",
        call.exchange.peer,
        call.id,
        head.method,
        head.path[:200],
        instance,
        call.status,
        call.queue_ms,
        call.load_ms,
        total,
        call.exchange.bytes_sent,
        call.outcome,
        extra={"about": about},
    )
