"""A request for a child, from its first byte to its last: one linear coroutine."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from llamaswap_py.api.body import NOTHING, Ask, filter_body, read_ask, usual_ask
from llamaswap_py.api.capture import Tap
from llamaswap_py.api.child_routes import reach
from llamaswap_py.api.errors import refusal_event, upstream_failed
from llamaswap_py.api.following import follow_alias
from llamaswap_py.api.large_body import STEP
from llamaswap_py.api.media_urls import may_hold
from llamaswap_py.api.read_body import (
    SKIPPED,
    check_media,
    check_unread_media,
    check_values,
    read_skimmed,
)
from llamaswap_py.api.reads import is_read, may_load, read
from llamaswap_py.api.resumable import begin_conversation, outlast
from llamaswap_py.api.scheduling_headers import (
    NOT_SUBSTITUTABLE,
    WHEN_FULL,
    read_scheduling_headers,
)
from llamaswap_py.api.sending import (
    FINAL,
    FORCE,
    REAPING,
    REAPING_STEP,
    begin_sending,
    build_request,
    cut,
    is_ending,
    may_retry,
    record_result,
    revoked,
    send,
)
from llamaswap_py.config.forms import SUBSTITUTE
from llamaswap_py.config.preset import Defaults
from llamaswap_py.errors import ApiError
from llamaswap_py.proxy.messages import COMPLETE, Body, RelayOutcome, UpstreamRequest
from llamaswap_py.supervisor.leases import Notice

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llamaswap_py.api.request import Call
    from llamaswap_py.proxy.messages import RelayResult, Translator
    from llamaswap_py.supervisor.leases import Lease, SchedulingOptions
    from llamaswap_py.supervisor.resumable_streams import ResumableStream

NO_FILTERS: Final = Defaults().request
_MOST_SEGMENTS: Final = 64
"""Slashes that are looked for in a model's name below /upstream, plus one."""
_NOTICE_EVERY: Final = 10.0


def relay(call: Call) -> Awaitable[None]:
    """Read the body, learn the model, relay to an instance of it."""
    if not (call.match.plain and 0 < (call.exchange.head.content_length or 0) <= STEP):
        return _look_closer(call)
    limit = call.supervisor.config.limits.body
    body = call.exchange.small_body(limit)
    return _await_small(call, limit) if body is None else _relay_small(call, body)


async def _await_small(call: Call, limit: int) -> None:
    await _relay_small(call, await call.exchange.read_body(limit))


def _relay_small(call: Call, body: Body) -> Awaitable[None]:
    """Relay a body with no other wish than its model; look closer at any other body."""
    ask = _plain(call, body)
    if ask is None:
        return _look_closer(call)
    request = build_request(call, call.exchange.head.path, body)
    return _to_instance(call, call.model, request, ask=ask, scheduling=call.match.scheduling)


async def _look_closer(call: Call) -> None:
    """Relay a request after reading all that its head and its body may ask for."""
    head = call.exchange.head
    if call.route.free and (head.query or head.content_length != 0):
        call.count()  # it is a model's, or it sends something
    content_type = head.get(b"content-type") or b""
    limits = call.supervisor.config.limits
    upload = content_type.lower().startswith(b"multipart/form-data")
    body, skim = await read_skimmed(call, content_type, limits.upload if upload else limits.body)
    text = body.join() if skim is None else skim.text
    if skim is not None and not upload:
        check_values(text, SKIPPED)
    ask = read_ask(content_type, text, skim)
    if not call.supervisor.config.allow_media_urls:
        check_media(body, skim)
    name = ask.model or call.query.get("model")
    if not name and call.route.without_model is not None:
        await call.route.without_model(call)
        return

    async def attempt(preset: str) -> None:
        path, sent = reach(call, preset, head.path).sent, body
        filters = call.supervisor.config.models[preset].request
        if filters is not NO_FILTERS and call.route.slot and not upload:
            filtered = filter_body(text, filters, call.asked)
            sent = Body.of(filtered) if skim is None else skim.restore(filtered)
        lasts = ask.stream and call.route.slot and not upload
        await _relay_read(call, preset, path, sent, ask, lasts=lasts)

    await follow_alias(call, name or _default_model(call), attempt)


async def _relay_read(
    call: Call, preset: str, path: str, body: Body, ask: Ask, *, lasts: bool
) -> None:
    """Relay a request that was read and filtered; `lasts`: its client may come back for it."""
    head = call.exchange.head
    target = f"{path}?{head.query}" if head.query else path
    conversation = await begin_conversation(call, preset) if lasts else None
    request = build_request(call, target, body)
    if conversation is not None:
        request.headers.append((b"x-conversation-id", conversation.id.encode("ascii")))
    if is_read(call):
        await read(call, preset, request)
        return
    try:
        await _to_instance(call, preset, request, ask=ask, conversation=conversation)
    except asyncio.CancelledError:
        if conversation is not None:
            outlast(call, conversation, request)
        raise
    finally:
        if conversation is not None and conversation.lease is None and not conversation.goes_on:
            call.supervisor.streams.remove(conversation)
    if call.route.replay and call.status == HTTPStatus.OK and head.method == "POST":
        call.supervisor.instances.replays.add(call.model, head.path, body.join())


def _plain(call: Call, body: Body) -> Ask | None:
    """Return what a body asks for if it goes to its model as it is; None: look closer."""
    text = body.join()
    if not call.supervisor.config.allow_media_urls and may_hold(text):
        return None
    ask = usual_ask(text)
    if ask is None or not ask.model:
        return None
    preset = call.supervisor.names.fixed(ask.model)
    if preset is None:
        return None
    about = call.supervisor.config.models[preset]
    if about.request is not NO_FILTERS or about.when_full.startswith(SUBSTITUTE):
        return None
    call.model = call.asked = preset
    return ask


async def pass_through(call: Call) -> None:
    """Relay `/upstream/{model}/PATH` as PATH, a WebSocket too."""
    head = call.exchange.head
    preset, path = _split_upstream(call)
    way = reach(call, preset, path)
    inner, path = call.services.route_of(head.method, way.read), way.sent
    if inner is not None and inner.relayed:
        call.route, call.family = inner, inner.family
    body = await call.exchange.read_body(call.supervisor.config.limits.upload)
    if not call.supervisor.config.allow_media_urls:
        await check_unread_media(body)
    target = f"{path}?{head.query}" if head.query else path
    request = build_request(call, target, body)
    if is_read(call):
        await read(call, preset, request)
    else:
        await _to_instance(call, preset, request, tunnel=head.upgrade)


async def translated(
    call: Call,
    preset: str,
    request: UpstreamRequest,
    *,
    translate: Callable[[], Translator] | None,
    answer: Callable[[int, bytes], None],
) -> None:
    """Send a request of our own making, and give the client a translation of what comes.

    A stream goes through `translate`, one for each attempt; `answer(status, body)` answers with
    what is not a stream.
    """
    await _to_instance(call, preset, request, translate=translate, answer=answer)


async def _to_instance(
    call: Call,
    preset: str,
    request: UpstreamRequest,
    *,
    ask: Ask = NOTHING,
    scheduling: SchedulingOptions | None = None,
    tunnel: bool = False,
    translate: Callable[[], Translator] | None = None,
    answer: Callable[[int, bytes], None] | None = None,
    conversation: ResumableStream | None = None,
) -> None:
    """Relay under a lease. Nothing has reached the client when a lease was revoked early (back
    into the queue, at the old place) or a child died unseen (once more, on a fresh instance)."""
    since: float | None = None
    died, patience = 0, 0.0  # the epoch of the child that did, until when its exit is awaited
    scheduling = scheduling or _scheduling(call, ask, preset)
    if call.services.captures is not None and call.route.slot:
        _capture(call, request.body)
    while True:
        if call.cancelled is not None:
            raise call.cancelled
        call.ticket = ticket = call.supervisor.lease(
            preset,
            client=call.counted or call.principal,
            request_id=call.id,
            slot=call.route.slot,
            # what is plain is a POST without a query
            autoload=call.supervisor.config.autoload if call.match.plain else may_load(call),
            since=since,
            scheduling=scheduling,
        )
        if conversation is not None:
            conversation.lease, ticket.stays = None, True
        lease = ticket.take() or await ticket.granted(partial(_notice, call, preset, ask))
        with ticket:
            since = lease.arrived
            call.granted(lease)
            lease.on_revoke(partial(cut, call))
            collect = answer is not None or call.exchange.padded
            if conversation is None:
                sending = begin_sending(call, lease, request, tunnel, translate, collect=collect)
                record_result(call, lease, result := await sending)
            else:
                result = await _send_lasting(call, lease, request, conversation, collect=collect)
            if result.outcome is not COMPLETE:
                was_cut = result.outcome is RelayOutcome.CUT
                lease.outcome = call.outcome = "cut" if was_cut else "upstream_error"
        if result.refusal is not None:
            _pass_on(call, result.status, result.refusal, answer)
            return
        if result.status or call.exchange.finished or result.outcome is COMPLETE:
            return
        if result.outcome is RelayOutcome.CUT and lease.revoked not in FINAL:
            call.exchange.cut_event = None  # the next lease is not revoked
        elif result.outcome is RelayOutcome.CUT:
            raise revoked(call, lease.revoked or FORCE)
        elif is_ending(call, lease, result):
            continue  # no lease on it is granted any more: the next one is another instance's
        elif not died and may_retry(call, result):
            died, patience = lease.epoch, time.monotonic() + REAPING
        elif died == lease.epoch and time.monotonic() < patience and may_retry(call, result):
            await asyncio.sleep(REAPING_STEP)
        else:
            raise upstream_failed(f"{preset} did not answer: {result.error}")


def _pass_on(
    call: Call, status: int, collected: bytes, answer: Callable[[int, bytes], None] | None
) -> None:
    """Give the client what was collected of a child's answer."""
    if answer is not None:
        answer(status, collected)
    elif call.exchange.padded:
        call.exchange.end_stream(collected)
    else:
        call.exchange.end_stream(refusal_event(collected, call.family, call.id))


def _capture(call: Call, asked: Body) -> None:
    call.tap = call.exchange.tap = Tap()
    call.tap.ask(asked.pieces)


def _scheduling(call: Call, ask: Ask, preset: str) -> SchedulingOptions:
    key, head = call.key, call.exchange.head
    substitutes = call.supervisor.config.models[preset].when_full.startswith(SUBSTITUTE)
    if key is None and not substitutes and call.match.unscheduled:
        return NOT_SUBSTITUTABLE
    may_be_another = call.route.talk and (substitutes or WHEN_FULL in head.first) and ask.plain
    return read_scheduling_headers(
        head,
        substitutable=may_be_another,
        highest=0 if key is None else key.priority,
        allowed=None if key is None else key.models,
        is_own=call.is_own,
        weight=1 if key is None else key.weight,
    )


def _notice(call: Call, preset: str, ask: Ask) -> Notice | None:
    """Keep a waiting stream alive with comment lines, where wanted another answer with blanks."""
    waiting = call.supervisor.config.waiting
    json = call.route.slot and ask is not NOTHING and "/audio/" not in call.exchange.head.path
    if not ask.stream and (waiting.json == "none" or not json):
        return None

    async def pad() -> None:
        call.status = 200
        if not call.exchange.response_started:
            call.stamp()
        await call.exchange.pad()

    async def send() -> None:
        if not call.exchange.response_started:
            call.status = 200
            call.stamp()
            await call.exchange.start(200, "text/event-stream")
        await call.exchange.write(f": lswap {call.supervisor.outlook(preset)}\n\n".encode())

    return Notice(waiting.notice, _NOTICE_EVERY, send if ask.stream else pad)


async def _send_lasting(
    call: Call,
    lease: Lease,
    request: UpstreamRequest,
    conversation: ResumableStream,
    *,
    collect: bool,
) -> RelayResult:
    """Send a request whose answer may outlive its client."""
    conversation.lease, conversation.preset = lease, lease.preset
    ticket = call.ticket
    assert ticket is not None
    try:
        result = await send(call, lease, request, collect=collect)
    except asyncio.CancelledError:  # the client has left
        # It goes on using a slot, so it goes on counting against its key's `max_in_flight`.
        call.supervisor.streams.hold(conversation, ticket, lease, call.hand_over_count())
        raise
    if result.outcome is RelayOutcome.CUT:
        call.supervisor.streams.hold_until_stopped(conversation, ticket, lease)
        conversation.lease = None  # it waits once more, or has ended
    return result


def _default_model(call: Call) -> str:
    default: str | None = call.supervisor.config.default_model
    if default is None:
        raise ApiError(
            "model_missing",
            "the request names no model",
            remedy='add "model": "NAME" to the body, or set default_model in the file',
            param="model",
        )
    return default


def _split_upstream(call: Call) -> tuple[str, str]:
    """Split `model/with/slashes/PATH`: the longest leading part that is a known name."""
    segments = call.captured.split("/")
    for count in range(min(len(segments), _MOST_SEGMENTS), 0, -1):
        preset = call.supervisor.names.resolve(unquote("/".join(segments[:count])), call.id)
        if preset is not None and call.may_use(preset):
            call.model = preset
            return preset, "/" + "/".join(segments[count:])
    return call.find_preset(unquote(segments[0])), "/"
