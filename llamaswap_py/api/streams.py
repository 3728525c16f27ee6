"""Answers that can be read again: llama.cpp's routes for conversations (server-stream.cpp)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from llamaswap_py.api.bounds import read_control
from llamaswap_py.api.extract import decode
from llamaswap_py.api.inference import resumed
from llamaswap_py.api.router import refuse
from llamaswap_py.errors import ApiError
from llamaswap_py.units import KIB

if TYPE_CHECKING:
    from llamaswap_py.api.call import Call
    from llamaswap_py.conversation import Conversation

_MOST_IDS = 10_000
_STEP = 256 * KIB


async def look_up(call: Call) -> None:
    """POST /v1/streams/lookup {"conversation_ids"}: those that a child has, as it tells."""
    text = await read_control(call)
    try:
        asked = decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        asked = {}
    ids = asked.get("conversation_ids") if isinstance(asked, dict) else None
    known = [one for one in ids if isinstance(one, str) and one] if isinstance(ids, list) else []
    conversations = call.supervisor.conversations
    owner = None if call.sees_all else call.owner
    call.respond(200, await conversations.look_up(known[:_MOST_IDS], owner, call.may_use))


async def resume(call: Call) -> None:
    """GET /v1/stream?conv_id=&from=: the answer from that byte on, and what follows."""
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
        await resumed(call, conversation)
    except ApiError as error:
        if error.code != "model_not_loaded":
            raise
        _not_found(call)


async def _send_whole(call: Call, whole: bytes) -> None:
    """Send an answer that its child need not have any more."""
    start = call.number("from", 0, most=len(whole))
    call.status = 200
    call.stamp()
    await call.exchange.start(200, "text/event-stream")
    for at in range(start, len(whole), _STEP):
        await call.exchange.write(whole[at : at + _STEP])
    await call.exchange.finish()


async def stop(call: Call) -> None:
    """DELETE /v1/stream?conv_id=: the generation ends, and nothing is kept of it."""
    conversation = _find(call)
    if conversation is not None:
        await call.supervisor.conversations.stop(conversation)
    call.status = 204
    call.exchange.respond(204)


def _find(call: Call) -> Conversation | None:
    """Return the conversation that is named, if it is this client's, or an admin asks."""
    name = call.query.get("conv_id")
    if not name:
        raise ApiError("bad_request", "the conversation is missing", param="conv_id")
    conversations = call.supervisor.conversations
    found: Conversation | None = conversations.find(call.owner, name, of_all=call.sees_all)
    return found if found is not None and call.may_use(found.preset) else None


def _not_found(call: Call) -> None:
    refuse(call, 404, "Stream not found or expired", "not_found_error")
