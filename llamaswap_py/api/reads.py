"""Requests that only read from a child: they do not load, wake or evict a model, nor count as use.

To poll the state of a model must not change that state. So a read is answered by a loaded instance,
or it is refused. With `?autoload=true` it is treated like any other request.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from llamaswap_py.api.errors import upstream_failed
from llamaswap_py.api.sending import REAPING, REAPING_STEP, cut, send
from llamaswap_py.proxy.messages import RelayOutcome

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call
    from llamaswap_py.proxy.messages import RelayResult, UpstreamRequest
    from llamaswap_py.supervisor.leases import Lease

_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_ASLEEP: Final = frozenset(
    {"/props", "/metrics", "/health", "/v1/health", "/models", "/v1/models", "/v1/stream"}
)
"""Paths that llama-server answers without waking up (server-context.cpp, create_response(true))."""
_HOLDS_UP: Final = frozenset({"/slots", "/lora-adapters"})
"""Paths that keep llama-server from falling asleep (server-queue.cpp, task_resets_idle_timer)."""


def is_read(call: Call) -> bool:
    """Return whether a request only reads: a GET without `autoload=true`."""
    head = call.exchange.head
    return head.method in _READS and not head.upgrade and not may_load(call)


def may_load(call: Call) -> bool:
    """Return whether a request may load its model; a GET may only with `autoload=true`."""
    head = call.exchange.head
    asked = call.flag("autoload") if head.query else None
    if head.method not in _READS:
        return call.supervisor.config.autoload if asked is None else asked
    # A browser sends no Origin for an image or a frame in another site's page, but this header
    # (Fetch Metadata).
    return bool(asked) and head.get(b"sec-fetch-site") != b"cross-site"


async def read(call: Call, preset: str, request: UpstreamRequest) -> None:
    """Answer from a loaded instance of a preset. Raises ApiError if no instance can answer."""
    path = request.target.partition("?")[0]
    wakes = path not in _ASLEEP and "." not in path.rpartition("/")[2]  # nor do the UI's files
    patience: float | None = None
    while True:
        with call.supervisor.reading(preset, wakes=wakes) as lease:
            call.granted(lease)
            if path in _HOLDS_UP and await _answered_once(call, lease, request):
                return
            lease.on_revoke(lambda reason: cut(call, reason))
            result = await send(call, lease, request)
        if result.status or call.exchange.finished or result.outcome is RelayOutcome.COMPLETE:
            return
        if call.cancelled is not None:
            raise call.cancelled
        if result.outcome is RelayOutcome.CUT:
            call.exchange.cut_event = None  # that instance is gone; look again
        elif not _may_come(result):
            raise upstream_failed(f"{preset} did not answer: {result.error}")
        patience = patience or time.monotonic() + REAPING
        if time.monotonic() > patience:
            raise upstream_failed(f"{preset} did not answer: {result.error}")
        await asyncio.sleep(REAPING_STEP)


def _may_come(result: RelayResult) -> bool:
    return result.outcome in (RelayOutcome.UNREACHABLE, RelayOutcome.DIED_BEFORE_HEAD)


async def _answered_once(call: Call, lease: Lease, request: UpstreamRequest) -> bool:
    """Answer for a child that may fall asleep: it is asked once, and not again while it is idle."""
    if call.supervisor.config.models[lease.preset].sleep is None or not request.target.isascii():
        return False
    try:
        answer = await call.supervisor.instances.ask_once(lease.key, request.target)
    except OSError:
        return False
    if answer is None:
        return False
    kind = dict(answer.headers).get(b"content-type", b"application/json").decode("latin-1")
    call.status = answer.status
    call.exchange.respond(answer.status, answer.body, kind)
    return True
