"""Parsers of HTTP/1.1: a strict one for requests, and one that finds where an answer ends.

Requests: bytes in, checked heads and body pieces out. llhttp (used by httptools) refuses
Content-Length with Transfer-Encoding, a repeated or invalid Content-Length, obs-fold, bare LF or
CR, NUL and control characters, spaces around names, and bad chunks. This module also checks sizes,
counts, versions, Host, target forms, transfer codings other than `chunked`, and upgrades with a
body.

Answers: `ResponseWatch` follows the framing of a child's answers, without changing their bodies.
"""

from __future__ import annotations

import re
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

import httptools

from llamaswap_py.proxy.messages import (
    HOP_BY_HOP,
    Headers,
    RequestHead,
    WireError,
    WireLimits,
    tokens,
)
from llamaswap_py.units import KIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.proxy.head_cache import KnownAnswer


#: llhttp counts in 64 bits; a larger body is a mistake or an attack.
_LARGEST_BODY: Final = 2**62
_LONGEST_METHOD: Final = 64
# Every registered method is in capitals. Other bytes are the rest of a body, or a mistake.
_METHOD: Final = re.compile(rb"[\r\n]*[A-Z][A-Z0-9_-]*(?= |$)")


class RequestSink(Protocol):
    """Receives the heads and body pieces of a RequestParser, in order."""

    def on_request(self, head: RequestHead) -> None: ...
    def on_piece(self, piece: bytes) -> None: ...
    def on_request_complete(self) -> None: ...


class RequestParser:
    """Parses the requests of one connection; pieces may end anywhere."""

    def __init__(self, sink: RequestSink, limits: WireLimits) -> None:
        self._sink = sink
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        #: whether a head has begun and is not complete
        self.in_head = False
        self._in_body = False
        self._ignored_upgrade = False
        self._url = b""
        self._fields: Headers = []
        self._headers: Headers = []
        self._in_message = False
        #: the first bytes of the request
        self._start = b""
        # Bytes since the last progress, to refuse an endless header, trailer or chunk extension.
        self._fruitless = 0

    def feed(self, data: bytes) -> bytes | None:
        """Parse `data`; after an upgrade return the bytes after it, else None. Raises WireError."""
        while True:
            self._fruitless += len(data)
            if not self._in_message:
                self._start = (self._start + data)[:_LONGEST_METHOD]
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                rest = data[upgrade.args[0] :]
                if not self._ignored_upgrade:
                    return rest
                data = self._head_without_upgrade() + rest
                continue
            except httptools.HttpParserError as error:
                raise self._explain(error) from None
            if self._fruitless > self._limits.header:
                self._refuse_size()
            return None

    def close(self) -> None:
        """Break the reference cycles with the C parser and with the sink."""
        self.__dict__.pop("_parser", None)
        self.__dict__.pop("_sink", None)

    def _explain(self, error: httptools.HttpParserError) -> WireError:
        cause = error.__context__
        if isinstance(cause, WireError):
            return cause
        if isinstance(error, httptools.HttpParserCallbackError) and cause is not None:
            raise cause
        reason = str(error) or "not HTTP"
        invalid = isinstance(error, httptools.HttpParserInvalidMethodError)
        if (invalid or "Invalid method" in reason) and _METHOD.match(self._start):
            return WireError(501, "the method of the request is unknown")
        status = 505 if "HTTP version" in reason or "PRI" in reason else 400
        return WireError(status, f"malformed HTTP request: {reason}")

    def _head_without_upgrade(self) -> bytes:
        """Parse the head again without its upgrade, so that llhttp reads the body."""
        self._ignored_upgrade = False
        version = self._parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b\r\n" % (self._parser.get_method(), self._url, version)]
        for name, value in self._headers:
            if name == b"connection":
                others = (token for token in tokens(value) if token != b"upgrade")
                lines.append(b"connection: %b\r\n" % b", ".join(others))
            elif name != b"upgrade":
                lines.append(b"%b: %b\r\n" % (name, value))
        lines.append(b"\r\n")
        self._parser = httptools.HttpRequestParser(self)
        return b"".join(lines)

    def _refuse_size(self) -> None:
        if self._in_body:
            raise WireError(400, "malformed HTTP request: chunk extension or trailer too large")
        raise WireError(431, f"the request head is larger than {self._limits.header} bytes")

    # --- callbacks of the C parser ------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.in_head = True
        self._url = b""
        self._fields = []

    def on_url(self, url: bytes) -> None:
        self._in_message = True
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # It is also called for trailers, which are not used.
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        self._fruitless = 0
        self._headers = [(name.lower(), value.rstrip(b" \t")) for name, value in self._fields]
        if len(self._headers) > self._limits.header_count:
            raise WireError(431, f"more than {self._limits.header_count} header fields")
        sizes = (len(name) + len(value) + 4 for name, value in self._fields)
        if len(self._url) + sum(sizes) > self._limits.header:
            self._refuse_size()
        parser = self._parser
        upgrading = parser.should_upgrade()
        head = _check_head(
            parser.get_method().decode(), self._url, parser.get_http_version(), self._headers
        )
        if upgrading:
            upgrade = tokens(head.get(b"upgrade") or b"")
            head.upgrade = (
                upgrade == [b"websocket"]
                and head.method == "GET"
                and head.version == "1.1"
                and head.content_length == 0
            )
            if not head.upgrade:
                self._ignored_upgrade = True
                return
        self.in_head = False
        self._in_body = True
        self._sink.on_request(head)

    def on_body(self, piece: bytes) -> None:
        self._fruitless = 0
        self._sink.on_piece(piece)

    def on_message_complete(self) -> None:
        self._fruitless = 0
        if not self._ignored_upgrade:
            self._in_body = self._in_message = False
            self._start = b""
            self._sink.on_request_complete()


def _check_head(method: str, target: bytes, version: str, headers: Headers) -> RequestHead:
    if version not in ("1.1", "1.0"):
        raise WireError(505, f"HTTP/{version} is not supported, use HTTP/1.1")
    authority, text = _split_authority(method, target)
    path, _, query = text.partition("?")
    seen = _framing_headers(headers, version)
    if authority is not None:  # then Host does not count (RFC 9112 section 3.2.2)
        headers = [(b"host", authority), *(pair for pair in headers if pair[0] != b"host")]
    connection = tokens(seen.get(b"connection", b""))
    keep_alive = b"close" not in connection and (version == "1.1" or b"keep-alive" in connection)
    return RequestHead(
        method=method,
        target=target.decode(),
        path=path,
        query=query,
        version=version,
        headers=headers,
        keep_alive=keep_alive,
        content_length=_content_length(seen, version),
        expects_continue=_expects_continue(seen, version),
    )


def _framing_headers(headers: Headers, version: str) -> dict[bytes, bytes]:
    """Return the headers that control the connection; those of one name are joined by commas."""
    seen: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _STEERING:
            if name in _ONCE and name in seen:
                raise WireError(400, f"more than one {_ONCE[name]} header")
            seen[name] = seen[name] + b", " + value if name in seen else value
    if b"host" not in seen and version == "1.1":
        raise WireError(400, "an HTTP/1.1 request needs a Host header")
    return seen


_STEERING: Final = frozenset(
    (b"host", b"origin", b"connection", b"content-length", b"transfer-encoding", b"expect")
)
# These decide which clients are allowed. Given two of them, two parsers could pick different ones.
_ONCE: Final = {b"host": "Host", b"origin": "Origin"}


def _content_length(seen: dict[bytes, bytes], version: str) -> int | None:
    coding = seen.get(b"transfer-encoding")
    if coding is not None:
        if version == "1.0":
            raise WireError(400, "Transfer-Encoding in an HTTP/1.0 request")
        codings = tokens(coding)
        if codings[-1:] != [b"chunked"]:
            raise WireError(400, "the body has no end: the last transfer coding must be chunked")
        if len(codings) > 1:
            raise WireError(501, "the only transfer coding supported is chunked")
        return None
    length = int(seen.get(b"content-length", b"0"))
    if length > _LARGEST_BODY:
        raise WireError(413, f"a body of {length} bytes is too large")
    return length


def _expects_continue(seen: dict[bytes, bytes], version: str) -> bool:
    expect = seen.get(b"expect")
    if expect is None or version == "1.0":
        return False
    if expect.lower() != b"100-continue":
        raise WireError(417, f"cannot meet the expectation {expect.decode('latin-1')!r}")
    return True


def _split_authority(method: str, target: bytes) -> tuple[bytes | None, str]:
    """Return the host of an absolute-form target, and the target without it.

    The latter is in origin-form, or `*`.
    """
    if method == "CONNECT":
        raise WireError(501, "CONNECT is not supported")
    if b"#" in target:
        raise WireError(400, "a request target must not have a fragment")
    text = target.decode("ascii")
    if text.startswith("/") or (text == "*" and method == "OPTIONS"):
        return None, text
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        raise WireError(400, f"bad request target {text[:80]!r}")
    authority = rest.partition("?")[0].partition("/")[0]
    if not authority or "@" in authority:  # RFC 9110 sections 4.2.1 and 4.2.4
        raise WireError(400, f"the request target {text[:80]!r} must name a host and no user")
    text = rest[len(authority) :]
    if not text and method == "OPTIONS":
        text = "*"
    elif not text.startswith("/"):
        text = "/" + text
    return authority.encode(), text


_HEAD_LIMIT: Final = 64 * KIB
# lswap writes these headers itself, so a child's would come twice.
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
    """Raised if a child's answer is not valid HTTP."""


class Framing(Enum):
    """How the body of an answer ends (RFC 9112 section 6.3)."""

    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


class ResponseWatch:
    """Follows the answers on one connection, one after another.

    It has no `on_body`, to save time: a piece of a stream costs one call into C, and one short
    callback at each begin and end of a chunk.
    """

    def __init__(self) -> None:
        self._start_parser()
        self.begin()

    def _start_parser(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        #: Feeds bytes of a body. Raises httptools.HttpParserError.
        self.feed: Callable[[bytes], None] = self._parser.feed_data
        self._counted = False

    def begin(self) -> None:
        """Reset the state for the next answer."""
        if self._counted:
            self._start_parser()
        #: whether any bytes of an answer have been seen
        self.used = False
        self.status = 0
        self.reason = b""
        self.headers: Headers = []
        self.framing = Framing.CLOSE
        self.content_length: int | None = None
        self.event_stream = False
        self.head_complete = False
        self.in_chunk = False
        #: number of chunks so far; in a stream of llama-server each is an event, about a token
        self.chunks = 0
        self.complete = False
        #: whether bytes came after the end of the answer
        self.surplus = False
        #: whether the child keeps the connection open; known when the answer is complete
        self.keeps_alive = False
        self.head_size = 0
        #: the bytes of the head, empty if it came in several pieces
        self.raw_head = b""
        self._tail = b""

    def close(self) -> None:
        """Break the reference cycle with the C parser."""
        del self._parser, self.feed

    def recall(self, known: KnownAnswer, length: int) -> None:
        """Use a head from the cache; the parser does not see it."""
        self.used = True
        self.status, self.reason = known.status, known.reason
        self.framing, self.content_length = Framing.LENGTH, length
        self.head_complete = self.keeps_alive = True

    def count_out(self) -> None:
        """Note that a body with a length is complete, which the parser has not seen."""
        if not self.complete:
            self.complete = True
            self._counted = bool(self.head_size)

    @property
    def is_over(self) -> bool:
        """Whether the answer has ended, and its connection can be used again."""
        return self.complete and self.keeps_alive and not self.surplus and not self.event_stream

    @property
    def is_plain(self) -> bool:
        """Whether the head can be cached: its connection is kept open, and it is not a stream's."""
        return (
            not self.event_stream
            and self.keeps_alive
            and all(name.lower() != b"connection" for name, _ in self.headers)
        )

    def feed_head(self, data: bytes) -> bytes | None:
        """Feed bytes of a head; return the bytes after it, or None while it is incomplete.

        The parser gets no byte of the body here. So any error is one of the head.
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
            # llhttp pauses after any 101, even without an upgrade header
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
        """Return the headers for the client; of those that frame the body only the length.

        CORS headers of a child are dropped, because lswap decides about other origins.
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
        # The parser knows this only here; later it always returns False.
        self.keeps_alive = self._parser.should_keep_alive()
        self.complete = True


class DecodingWatch(ResponseWatch):
    """Also returns the body without its framing, for clients that need another framing."""

    def __init__(self) -> None:
        self._decoded: list[bytes] = []
        super().__init__()

    def on_body(self, piece: bytes) -> None:
        self._decoded.append(piece)

    def take(self) -> list[bytes]:
        """Return the pieces decoded since the last call."""
        pieces, self._decoded = self._decoded, []
        return pieces
