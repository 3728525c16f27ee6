"""Watches the framing of a child's answers, without touching their bodies."""

from __future__ import annotations

from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import httptools

from ..units import KIB
from .messages import HOP_BY_HOP, Headers, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from .repeated import KnownAnswer

_HEAD_LIMIT: Final = 64 * KIB
# The server in front says these itself: a child's would stand there twice.
_SAID_HERE: Final = frozenset(
    (
        b"date",
        b"x-accel-buffering",
        b"x-request-id",
        b"x-lswap-model",
        b"x-lswap-queue-ms",
        b"x-lswap-load-ms",
    )
)
_NO_LENGTH: Final = frozenset((b"content-length",))
_NOT_THE_CHILDS: Final = (
    HOP_BY_HOP
    | _SAID_HERE
    | {
        b"access-control-allow-origin",
        b"access-control-allow-credentials",
        b"access-control-allow-headers",
        b"access-control-allow-methods",
        b"access-control-expose-headers",
    }
)
_HEAD_END: Final = b"\r\n\r\n"


class BadResponse(Exception):
    """Raised when what a child sends is not HTTP as we understand it."""


class Framing(Enum):
    """How the body of an answer ends (RFC 9112 section 6.3)."""

    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


class ResponseWatch:
    """Follows the answers on one connection, one after another.

    It has no `on_body` on purpose: while a stream passes through, a piece costs one call into C
    and one short callback at each edge of a chunk.
    """

    def __init__(self) -> None:
        self._start_parser()
        self.begin()

    def _start_parser(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        #: Feed bytes of a body. Raises httptools.HttpParserError.
        self.feed: Callable[[bytes], None] = self._parser.feed_data
        self._counted = False

    def begin(self) -> None:
        """Forget the last answer; a new one is expected."""
        if self._counted:
            self._start_parser()
        #: something is known of an answer
        self.used = False
        self.status = 0
        self.reason = b""
        self.headers: Headers = []
        self.framing = Framing.CLOSE
        self.content_length: int | None = None
        self.event_stream = False
        self.head_complete = False
        self.in_chunk = False
        #: chunks begun so far; of a stream of llama-server each is an event, about one per token
        self.chunks = 0
        self.complete = False
        #: bytes came after the end of the answer
        self.surplus = False
        #: the upstream keeps the connection open; known once complete
        self.keeps_alive = False
        self.head_size = 0
        #: the head as it came, empty where it came in pieces
        self.raw_head = b""
        self._tail = b""

    def close(self) -> None:
        """Break the reference cycle with the C parser."""
        del self._parser, self.feed

    def recall(self, known: KnownAnswer, length: int) -> None:
        """Take a head that was seen before: it does not go through the parser."""
        self.used = True
        self.status, self.reason = known.status, known.reason
        self.framing, self.content_length = Framing.LENGTH, length
        self.head_complete = self.keeps_alive = True

    def count_out(self) -> None:
        """A body with a length is complete; the parser has seen nothing of it."""
        if not self.complete:
            self.complete = True
            self._counted = bool(self.head_size)

    @property
    def is_over(self) -> bool:
        """Whether the answer has ended so that its connection can have another."""
        return self.complete and self.keeps_alive and not self.surplus and not self.event_stream

    @property
    def is_plain(self) -> bool:
        """Whether the head says nothing of its connection, which is kept, and is no stream's."""
        return (
            not self.event_stream
            and self.keeps_alive
            and all(name.lower() != b"connection" for name, _ in self.headers)
        )

    def feed_head(self, data: bytes) -> bytes | None:
        """Feed bytes of a head; return what follows it, or None while it is incomplete.

        The parser sees no byte of the body here, and so tells garbage before the head's end.
        """
        self.used = True
        window = self._tail + data
        end = window.find(_HEAD_END)
        cut = len(data) if end < 0 else end + len(_HEAD_END) - len(self._tail)
        self.head_size += cut
        try:
            self._parser.feed_data(data[:cut])
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, BadResponse):
                raise error.__context__ from None
            # llhttp pauses after any 101, also where no upgrade header announced it
            if not (self.status == 101 and self.head_complete):
                raise BadResponse(str(error) or "not HTTP") from None
        if end >= 0 and self.head_complete:
            self.raw_head = data[:cut] if self.head_size == cut else b""
            return data[cut:]
        if end >= 0 or self.head_complete:
            raise BadResponse("the head does not end in an empty line")
        if self.head_size > _HEAD_LIMIT:
            raise BadResponse(f"the head is larger than {_HEAD_LIMIT} bytes")
        self._tail = window[-3:]
        return None

    def end_to_end_headers(self) -> Headers:
        """Return the headers a client may see; of those that frame the body only a length.

        What a child says of other origins is not for its clients: the server in front decides.
        """
        unwanted = _NOT_THE_CHILDS
        if self.status == HTTPStatus.NO_CONTENT:  # RFC 9110 section 8.6
            unwanted = unwanted | _NO_LENGTH
        for name, value in self.headers:
            if name.lower() == b"connection":
                unwanted = unwanted.union(tokens(value))
        return [pair for pair in self.headers if pair[0].lower() not in unwanted]

    def _read_framing(self) -> None:
        for name, value in self.headers:
            lower = name.lower()
            if lower == b"content-length":
                self.content_length = int(value)
                self.framing = Framing.LENGTH
            elif lower == b"transfer-encoding":
                if value.strip().lower() != b"chunked":
                    raise BadResponse(f"transfer coding {value!r} is not supported")
                self.framing = Framing.CHUNKED
            elif lower == b"content-type":
                self.event_stream = value.lower().startswith(b"text/event-stream")

    def _closes(self) -> bool:
        return any(
            name.lower() == b"connection" and b"close" in tokens(value)
            for name, value in self.headers
        )

    # --- callbacks of the C parser ------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.complete:
            self.surplus = True

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_complete:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._read_framing()
        self.head_complete = True
        self.keeps_alive = self._parser.get_http_version() == "1.1" and not self._closes()

    def on_chunk_header(self) -> None:
        self.in_chunk = True
        self.chunks += 1

    def on_chunk_complete(self) -> None:
        self.in_chunk = False

    def on_message_complete(self) -> None:
        # Only here does the parser know: one call later it always says no.
        self.keeps_alive = self._parser.should_keep_alive()
        self.complete = True


class DecodingWatch(ResponseWatch):
    """Also hands out the body without its framing, for clients that can't take it as it is."""

    def __init__(self) -> None:
        self._decoded: list[bytes] = []
        super().__init__()

    def on_body(self, piece: bytes) -> None:
        self._decoded.append(piece)

    def take(self) -> list[bytes]:
        """Return the pieces decoded since the last call."""
        pieces, self._decoded = self._decoded, []
        return pieces
