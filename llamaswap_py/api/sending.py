"""Sending a request to a child and its answer to the client: the part that all routes share.

What a child refuses gets one line in the log, without a word of the prompt. llama-server quotes
requests in some of its messages (JSON that it cannot read, messages that its template does not
take). So only what comes before the first quotation is shown, and of another program's answer the
kind of error alone.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llamaswap_py.api.errors import error_event, upstream_failed
from llamaswap_py.errors import ApiError
from llamaswap_py.proxy.dial import is_refusal, note_refusal
from llamaswap_py.proxy.messages import (
    COMPLETE,
    Body,
    RelayOutcome,
    UpstreamRequest,
    forward_lines,
    varied_lines,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llamaswap_py.api.request import Call
    from llamaswap_py.proxy.messages import RelayResult, Translator
    from llamaswap_py.supervisor.leases import Lease

_log: Final = logging.getLogger("lswap")
# Keys and origins are judged here, not by the child.
# With a conversation id it goes on generating for a client that left:
# see supervisor/resumable_streams.py.
DROPPED: Final = frozenset(
    {b"authorization", b"x-api-key", b"origin", b"x-request-id", b"x-conversation-id"}
)
# A child's sockets close a moment before its exit is known; until then leases of it are granted.
REAPING: Final = 2.0
REAPING_STEP: Final = 0.02
# The scheduler's reasons (StopReason), for those who read an answer and no log.
_REVOKED: Final = {
    "force": "it was unloaded by command, without waiting for its requests",
    "drain deadline": "others waited for its memory",
    "shutdown deadline": "lswap is stopping, and its shutdown_timeout is over",
    "shutdown at once": "lswap is stopping at once, after a second signal",
    "nobody came back for it": "nobody had read it for too long",
}
FORCE: Final = "force"
_HUNG: Final = "found hung"
_REFUSED: Final = "serves no more"
# Nobody knows whether the request itself is what the child hangs on: it is not sent to another.
FINAL: Final = (FORCE, _HUNG)
_LONGEST: Final = 200
_KIND: Final = re.compile(rb'"type"\s*:\s*"([A-Za-z0-9_.-]{1,60})"')
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,60}")
_QUOTES: Final = re.compile(r"(?<![A-Za-z0-9])'|[\n\"`{\[<]|[:;] |\. |[\x00-\x1f]")
"""What may introduce a piece of the request, or another sentence."""
_IN_STREAM: Final = b'data: {"error"'


def build_request(call: Call, target: str, body: Body) -> UpstreamRequest:
    """Return what a child gets of a request: its method, its headers but for DROPPED, a body."""
    head, match = call.exchange.head, call.match
    lines = match.lines
    if not lines:
        lines = match.lines = forward_lines(head, drop=DROPPED, peer=call.exchange.peer)
    if head.varied:
        lines += varied_lines(head, drop=DROPPED)
    return UpstreamRequest(head.method, target, [], body, lines)


def revoked(call: Call, reason: str) -> ApiError:
    """Return the error of an answer whose lease was taken back."""
    if reason == _HUNG:
        what = f"{call.model} hung: it gave no sign of life any more, and was stopped"
        return upstream_failed(what, remedy="the next request starts it again")
    if reason == _REFUSED:
        return upstream_failed(f"{call.model} ended in the middle of its answer, unasked")
    why = _REVOKED.get(reason, reason)
    return ApiError("unloaded", f"the answer was cut short: {call.model} had to stop ({why})")


def cut(call: Call, reason: str) -> None:
    """End the answer: its lease was taken back."""
    event = error_event(revoked(call, reason), call.family, call.id)
    call.exchange.cut(event, reason)


async def send(
    call: Call, lease: Lease, request: UpstreamRequest, *, collect: bool = False
) -> RelayResult:
    """Send a request to the child of a lease, and its answer to the client."""
    result = await begin_sending(call, lease, request, collect=collect)
    record_result(call, lease, result)
    return result


def begin_sending(
    call: Call,
    lease: Lease,
    request: UpstreamRequest,
    tunnel: bool = False,
    translate: Callable[[], Translator] | None = None,
    *,
    collect: bool = False,
) -> Awaitable[RelayResult]:
    """Do what `send` does without `record_result`, which the caller has to call under the lease."""
    exchange, pool = call.exchange, call.supervisor.pool
    request.id_line = call.id_line
    if tunnel:
        return exchange.tunnel(lease.endpoint, request, pool=pool)
    lease.watch(exchange)
    return exchange.relay(
        lease.endpoint,
        request,
        pool=pool,
        error_event=call.failure_event,
        translate=translate,
        collect=collect,
    )


def record_result(call: Call, lease: Lease, result: RelayResult) -> None:
    """Record the result of a relay. A request that the child refused gets a line in the log."""
    call.status = status = result.status
    call.first_byte_at, call.tail = result.first_byte_at, result.tail
    if result.outcome is not COMPLETE:
        if result.outcome is RelayOutcome.UNREACHABLE:
            # before its lease is given back, and granted to somebody else
            note_refusal(lease.endpoint, result.errno)
        elif result.outcome is RelayOutcome.DIED_BEFORE_HEAD:
            call.supervisor.instances.doubt(lease.key)
        return
    call.outcome = "ok"
    streams = call.exchange.event_stream
    if (streams or status >= 400) and is_failure(status, call.tail, streams=streams):
        call.outcome = "refused" if 400 <= status < 500 else "error"
        if call.exchange.head.method == "POST":
            _log_refusal(call)


def _log_refusal(call: Call) -> None:
    head, preset = call.exchange.head, call.supervisor.config.models.get(call.model)
    reason = reason_of(call.tail, quotes=preset is not None and preset.cmd is None)
    instance = f"{call.model}#{call.epoch}"
    _log.info(
        "%s %s: %d%s (%s %s, request %s)",
        call.outcome,
        instance,
        call.status,
        f" {reason}" if reason else "",
        head.method,
        head.path[:200],
        call.id,
        extra={
            "about": {
                "request": call.id,
                "model": call.model,
                "instance": instance,
                "status": call.status,
                "outcome": call.outcome,
                "reason": reason,
            }
        },
    )


def may_retry(call: Call, result: RelayResult) -> bool:
    """A child that was never reached did nothing; one that died while it answered may have."""
    if nothing_sent(result):
        return True
    return call.route.retry and result.outcome is RelayOutcome.DIED_BEFORE_HEAD


def nothing_sent(result: RelayResult) -> bool:
    """Return whether the child was never reached."""
    return result.outcome is RelayOutcome.UNREACHABLE


def is_ending(call: Call, lease: Lease, result: RelayResult) -> bool:
    """Return whether a child has only not answered because it ends: the next one is waited for.

    It refused the connection, or closed it without a byte after it had said that it ends.
    """
    if nothing_sent(result) and is_refusal(result.errno):
        return True
    running = call.supervisor.running.get(lease.key)
    ending = running is not None and running.ending
    return ending and result.outcome is RelayOutcome.DIED_BEFORE_HEAD


def is_failure(status: int, tail: bytes, *, streams: bool) -> bool:
    """Tell whether an answer that is whole says that there is none."""
    return status >= 400 or (streams and _IN_STREAM in tail)


def reason_of(tail: bytes, *, quotes: bool) -> str:
    """Return the kind of error at the end of an answer's body; with `quotes` what it says besides.

    An empty text where it has nothing of that.
    """
    kind, message = _read(tail[tail.rfind(_IN_STREAM) + 6 :] if _IN_STREAM in tail else tail)
    said = _QUOTES.split(message, maxsplit=1)[0].strip(" ,.")[:_LONGEST] if quotes else ""
    return ": ".join(part for part in (kind, said) if part)


def _read(body: bytes) -> tuple[str, str]:
    body = body.partition(b"\n")[0] if body.startswith(b'{"error"') else body
    try:
        whole = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = _KIND.findall(body)
        return (found[-1].decode() if found else ""), ""
    error: Any = whole.get("error") if isinstance(whole, dict) else None
    if isinstance(error, str):
        return "", error
    if not isinstance(error, dict):
        return "", ""
    kind, message = error.get("type"), error.get("message")
    named = isinstance(kind, str) and _NAME.fullmatch(kind)
    return (str(kind) if named else ""), (message if isinstance(message, str) else "")
