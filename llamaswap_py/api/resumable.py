"""Requests whose answers continue when their clients disconnect (the web UI's chats)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from llamaswap_py.api.errors import error_event, refusal_event, stopped

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call
    from llamaswap_py.proxy.messages import UpstreamRequest
    from llamaswap_py.supervisor.resumable_streams import Conversation

_LONGEST_ID: Final = 512


async def begin_conversation(call: Call, preset: str) -> Conversation | None:
    """Return the conversation whose answer may outlive its client, None for any other request."""
    given = call.exchange.head.get(b"x-conversation-id")
    if not given or not call.supervisor.config.models[preset].resume:
        return None
    if len(given) > _LONGEST_ID or not given.isascii():
        return None
    name, cancel = given.decode("ascii"), partial(call.cancel, stopped())
    begin = call.supervisor.conversations.begin
    return await begin(call.owner, name, preset, call.id, cancel)


def outlast(call: Call, conversation: Conversation, request: UpstreamRequest) -> None:
    """Let a request go on whose client has left before it had a lease (a page is reloaded)."""
    ticket = call.ticket
    if ticket is None or conversation.lease is not None or not ticket.waits:
        return
    call.supervisor.conversations.outlast(
        conversation,
        ticket,
        call.hand_over_count(),
        target=request.target,
        body=request.body.join(),
        headers=f"X-Conversation-Id: {conversation.id}\r\nX-Request-Id: {call.id}\r\n",
        failed=lambda error: error_event(error, call.family, call.id),
        refused=lambda body: refusal_event(body, call.family, call.id),
    )
