"""Resumable streams: answers that continue without their client, which can then read them again.

llama.cpp's web UI sends the id of a conversation with its requests. The answer to such a request
continues when the page is closed (`begin_conversation`, `outlast`). The page gets it again by
llama.cpp's routes (server-stream.cpp).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import msgspec

from llamaswap_py.api.body import decode
from llamaswap_py.api.errors import error_event, refusal_event, stopped, upstream_failed
from llamaswap_py.api.llama_cpp import refuse
from llamaswap_py.api.read_body import read_control
from llamaswap_py.api.reads import read
from llamaswap_py.api.sending import build_request, cut, send
from llamaswap_py.errors import ApiError
from llamaswap_py.proxy.messages import RelayOutcome
from llamaswap_py.units import KIB

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call
    from llamaswap_py.proxy.messages import UpstreamRequest
    from llamaswap_py.supervisor.resumable_streams import ResumableStream

_LONGEST_ID: Final = 512
_MOST_IDS = 10_000
_STEP = 256 * KIB


async def begin_conversation(call: Call, preset: str) -> ResumableStream | None:
    """Return the conversation of a request whose answer may outlive its client, else None."""
    given = call.exchange.head.get(b"x-conversation-id")
    if not given or not call.supervisor.config.models[preset].resume:
        return None
    if len(given) > _LONGEST_ID or not given.isascii():
        return None
    name, cancel = given.decode("ascii"), partial(call.cancel, stopped())
    begin = call.supervisor.streams.begin
    return await begin(call.owner, name, preset, call.id, cancel)


def outlast(call: Call, conversation: ResumableStream, request: UpstreamRequest) -> None:
    """Continue a request whose client disconnected before it had a lease (a page was reloaded)."""
    ticket = call.ticket
    if ticket is None or conversation.lease is not None or not ticket.waits:
        return
    call.supervisor.streams.outlast(
        conversation,
        ticket,
        call.hand_over_count(),
        target=request.target,
        body=request.body.join(),
        headers=f"X-Conversation-Id: {conversation.id}\r\nX-Request-Id: {call.id}\r\n",
        failed=lambda error: error_event(error, call.family, call.id),
        refused=lambda body: refusal_event(body, call.family, call.id),
    )


async def look_up(call: Call) -> None:
    """POST /v1/streams/lookup {"conversation_ids"}: those of them that a child still has."""
    text = await read_control(call)
    try:
        asked = decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        asked = {}
    ids = asked.get("conversation_ids") if isinstance(asked, dict) else None
    known = [one for one in ids if isinstance(one, str) and one] if isinstance(ids, list) else []
    conversations = call.supervisor.streams
    owner = None if call.sees_all else call.owner
    call.respond(200, await conversations.look_up(known[:_MOST_IDS], owner, call.may_use))


async def resume(call: Call) -> None:
    """GET /v1/stream?conv_id=&from=: the answer from that byte on, until it ends."""
    conversation = _find(call)
    if conversation is None:
        _not_found(call)
        return
    if not conversation.is_readable:
        message = "Stream owner model is loading, retry later"
        refuse(call, 503, message, "unavailable_error", [(b"retry-after", b"1")])
        return
    call.model = conversation.preset
    if conversation.whole:
        await _send_whole(call, conversation.whole)
        return
    try:
        await _resumed(call, conversation)
    except ApiError as error:
        if error.code != "model_not_loaded":
            raise
        _not_found(call)


async def _send_whole(call: Call, whole: bytes) -> None:
    """Send a complete answer that lswap has, so no child is asked."""
    start = call.number("from", 0, most=len(whole))
    call.status = 200
    call.stamp()
    await call.exchange.start(200, "text/event-stream")
    for at in range(start, len(whole), _STEP):
        await call.exchange.write(whole[at : at + _STEP])
    await call.exchange.finish()


async def _resumed(call: Call, conversation: ResumableStream) -> None:
    """Relay an answer that a child keeps, under the lease of that answer if it still has one."""
    conversations = call.supervisor.streams
    head, lease = call.exchange.head, conversation.lease
    target = conversation.target(call.query.get("from"))  # with the id that the child knows
    request = build_request(call, target, await call.exchange.read_body(0))
    if lease is None or not conversations.attach(conversation, call.id, lambda r: cut(call, r)):
        await read(call, conversation.preset, request)
        return
    call.granted(lease)
    whole = False
    try:
        result = await send(call, lease, request)
        whole = (
            result.outcome is RelayOutcome.COMPLETE
            and result.status == 200
            and head.method == "GET"
        )
    finally:
        conversations.detach(conversation, call.id, whole=whole)
    if not result.status and not call.exchange.finished:
        if call.cancelled is not None:
            raise call.cancelled
        raise upstream_failed(f"{conversation.preset} did not answer: {result.error}")


async def stop(call: Call) -> None:
    """DELETE /v1/stream?conv_id=: ends the generation, and deletes the answer."""
    conversation = _find(call)
    if conversation is not None:
        await call.supervisor.streams.stop(conversation)
    call.status = 204
    call.exchange.respond(204)


def _find(call: Call) -> ResumableStream | None:
    """Return the conversation of the query or path, if it is this client's or an admin asks.

    Web UIs of older builds (b9840) have its id in the path.
    """
    name = call.query.get("conv_id") or unquote(call.captured)
    if not name:
        raise ApiError("bad_request", "the conversation is missing", param="conv_id")
    conversations = call.supervisor.streams
    found: ResumableStream | None = conversations.find(call.owner, name, of_all=call.sees_all)
    return found if found is not None and call.may_use(found.preset) else None


def _not_found(call: Call) -> None:
    refuse(call, 404, "Stream not found or expired", "not_found_error")
