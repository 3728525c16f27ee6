"""One answer that may outlive its client: whose it is, and which child has it.

A client names it by an id of its own choice, and may read it again, or end it. So it belongs to
whoever began it: two clients that choose one id have two conversations, in the child too.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import msgspec

from llamaswap_py.children.probe import ask
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import ApiError
from llamaswap_py.leases import Lease, Ticket

ASKING: Final = 2.0
"""Seconds for one question to a child, which answers in microseconds."""
EVERYBODY: Final = ""
"""The owner of all conversations where there are no keys."""
_MARK: Final = 16


def id_in_child(owner: str, name: str) -> str:
    """Return what a child knows a conversation by: the client's name for it, marked as its owner's.

    Marks have one length, so that no name of one owner is the id of another's.
    """
    if owner == EVERYBODY:
        return name
    return f"{hashlib.sha256(owner.encode()).hexdigest()[:_MARK]}.{name}"


@dataclass(slots=True, eq=False)
class Conversation:
    """The newest answer of one conversation, and the child that has it."""

    owner: str
    """The principal that began it (principals.py); EVERYBODY where there are no keys."""
    name: str
    """What its clients call it."""
    preset: str
    cancel: Callable[[], None]
    """Ends its request while it waits."""
    request_id: str = ""
    lease: Lease | None = None
    ticket: Ticket | None = None
    """While its lease is kept for it."""
    waiting: Ticket | None = None
    """While its request waits for a lease, and its client has left."""
    begun: bool = True
    """Whether its child has begun to answer, as far as anybody knows."""
    began: float = field(default_factory=time.monotonic)
    readers: dict[str, Callable[[str], None]] = field(default_factory=dict)
    """Who reads it instead of its client, each with what ends that, given a reason."""
    whole: bytes = b""
    """The answer, once it has ended without a reader."""
    whole_at: float = -math.inf
    """When that was, in monotonic seconds as `began`: a clock that is set must lose no answer."""
    unread: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while there are none."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it was stopped."""

    def __post_init__(self) -> None:
        self.unread.set()

    def keep(self, whole: bytes) -> None:
        """Keep an answer, or the error that stands for it, for who comes back."""
        self.whole, self.whole_at = whole, time.monotonic()

    @property
    def id(self) -> str:
        """What children call it."""
        return id_in_child(self.owner, self.name)

    @property
    def goes_on(self) -> bool:
        """Whether its request has no client any more, and has not ended."""
        return self.ticket is not None or self.waiting is not None

    @property
    def is_readable(self) -> bool:
        """Whether a child has something of it, or it was kept."""
        return bool(self.whole) or (self.lease is not None and self.begun)

    @property
    def path(self) -> str:
        """The child's route for it."""
        return f"/v1/stream?conv_id={quote(self.id, safe='')}"


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask a child in the place of a client that has left.

    `failed` and `refused` render lswap's error, and a child's, as the event of a stream.
    """

    target: str
    body: bytes
    headers: str
    failed: Callable[[ApiError], bytes]
    refused: Callable[[bytes], bytes]


def entry_of(conversation: Conversation) -> dict[str, Any]:
    """Return what llama-server's lookup says of an ended answer (server-stream.cpp)."""
    unix = time.time() - time.monotonic()
    return {
        "conversation_id": conversation.name,
        "is_done": True,
        "total_bytes": len(conversation.whole),
        "started_at": int(conversation.began + unix),
        "completed_at": int(conversation.whole_at + unix),
    }


async def look_up(endpoint: Endpoint, ids: list[str]) -> list[dict[str, Any]]:
    """Return what a child says of these conversations, by its ids; nothing where it fails."""
    body = msgspec.json.encode({"conversation_ids": ids})
    try:
        answer = await ask(endpoint, "POST", "/v1/streams/lookup", timeout=ASKING, body=body)
        found = msgspec.json.decode(answer.body)
    except (OSError, msgspec.DecodeError):
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
