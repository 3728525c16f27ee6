"""Records of HTTP messages, and the rules for rewriting heads (RFC 9110, 9112)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import msgspec

from llamaswap_py.errors import ApiError, LswapError
from llamaswap_py.units import KIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Headers: TypeAlias = list[tuple[bytes, bytes]]

#: Renders an error that the proxy itself answers: from status, message, and the head if it was
#: parsed, to headers and body.
WireErrorRenderer: TypeAlias = "Callable[[int, str, RequestHead | None], tuple[Headers, bytes]]"

#: Headers of one connection, which are never passed on (RFC 9110 section 7.6.1, proxy headers).
HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-authentication-info",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    )
)
_REQUEST_ONLY: Final = frozenset((b"host", b"expect", b"content-length", b"http2-settings"))
_FORWARDED: Final = frozenset((b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"))
_NOT_FORWARDED: Final = HOP_BY_HOP | _REQUEST_ONLY | _FORWARDED
_LENGTH_EXPECTED: Final = frozenset(("POST", "PUT", "PATCH"))
_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}

LAST_CHUNK: Final = b"0\r\n\r\n"


class WireError(LswapError):
    """Raised if a request violates HTTP itself, so that its connection cannot continue.

    A handler must not catch it. The connection answers with `status` (400, 408, 413, 431, 501, 505)
    in the form of the server's `on_wire_error`, and closes.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class BodyTooLarge(ApiError):
    """Raised if a request body is larger than the limit of its reader."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            "body_too_large",
            f"the request body is larger than the limit of {limit} bytes",
            remedy="send less, or raise the limit in the configuration",
        )
        self.limit = limit


@dataclass(frozen=True, slots=True)
class WireLimits:
    """The limits of clients: sizes in bytes, times in seconds."""

    header: int = 64 * KIB
    header_count: int = 200
    #: time from the first byte of a head to its last
    head_read: float = 30.0
    #: time of a connection without a request
    idle: float = 75.0
    #: time without a byte of a request body
    body_idle: float = 60.0
    #: time in which a client reads nothing of its answer
    stall: float = 300.0


class Memo:
    """Stores an object with a head, for all requests that repeat the head."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: object = None


@dataclass(slots=True)
class RequestHead:
    """The checked head of a request; header names are in lower case, in their original order."""

    method: str
    #: raw, as received
    target: str
    #: raw path: no query, not percent-decoded, absolute-form reduced to origin-form
    path: str
    #: raw, without `?`
    query: str
    #: "1.0" or "1.1"
    version: str
    headers: Headers
    keep_alive: bool
    #: whether it asks for WebSocket; other upgrades are ignored, as RFC 9110 section 7.8 allows
    upgrade: bool = False
    #: None when chunked; 0 when there is no body
    content_length: int | None = 0
    expects_continue: bool = False
    #: the first value of each header, by its lower-case name
    first: dict[bytes, bytes] = field(default_factory=dict, repr=False, compare=False)
    #: the headers that have another value in each request; in `headers` they come last
    varied: Headers = field(default_factory=list, repr=False, compare=False)
    #: for the handler, which finds it again if the same head is repeated
    memo: Memo = field(default_factory=Memo, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.first:
            self.first = dict(reversed(self.headers))

    def get(self, name: bytes) -> bytes | None:
        """Return the first value of a header, by its lower-case name."""
        return self.first.get(name)

    @property
    def steady(self) -> Headers:
        """The headers that are the same in each request, except the length."""
        return self.headers[: len(self.headers) - len(self.varied)] if self.varied else self.headers

    def vary(self, varied: Headers) -> None:
        """Set which headers have another value in each request."""
        names = {name for name, _ in varied}
        self.headers = [*(pair for pair in self.headers if pair[0] not in names), *varied]
        self.varied = varied

    def again(self, digits: bytes, varied: Headers) -> RequestHead:
        """Return the same head with another Content-Length and other varying headers."""
        headers = self.steady
        if digits:
            new = (b"content-length", digits)
            headers = [new if pair[0] == b"content-length" else pair for pair in headers]
        return RequestHead(
            self.method,
            self.target,
            self.path,
            self.query,
            self.version,
            headers + varied,
            self.keep_alive,
            content_length=int(digits) if digits else 0,
            varied=varied,
            memo=self.memo,
        )


class Body(msgspec.Struct):
    """A request body in the pieces in which it arrived; `size` is their sum in bytes."""

    pieces: list[bytes | memoryview] = []
    size: int = 0

    @classmethod
    def of(cls, data: bytes) -> Body:
        """Return a body of one piece."""
        return cls([data], len(data)) if data else cls()

    def join(self) -> bytes:
        """Return the whole body; it is joined once, and then stored as one piece."""
        pieces = self.pieces
        if len(pieces) == 1 and isinstance(whole := pieces[0], bytes):
            return whole
        whole = b"".join(pieces)
        self.pieces = [whole]
        return whole


class Translator(Protocol):
    """Turns the body of a child's event stream into another one, piece by piece."""

    @property
    def content_type(self) -> bytes:
        """The content type of the client's stream."""

    def feed(self, piece: bytes) -> bytes:
        """Return the client's bytes for this piece; raises ValueError if it has no translation."""

    def end(self) -> bytes:
        """Return the bytes that end the client's stream."""


class UpstreamRequest(msgspec.Struct):
    """A request to a child: `lines` are rendered header lines (`forward_lines`), `headers` are
    more headers."""

    method: str
    target: str
    headers: Headers
    body: Body = msgspec.field(default_factory=Body)
    lines: bytes = b""
    #: the rendered line of its X-Request-Id
    id_line: bytes = b""


class RelayOutcome(Enum):
    """How one relay ended."""

    COMPLETE = "complete"
    #: the connection failed
    UNREACHABLE = "unreachable"
    #: the child closed the connection before a complete head; nothing reached the client
    DIED_BEFORE_HEAD = "died before head"
    #: the client got a part; its stream ended with an error event, or was aborted
    DIED_MIDSTREAM = "died midstream"
    #: `Exchange.cut` ended it
    CUT = "cut"
    #: the child's answer is not valid HTTP; nothing reached the client
    BAD_UPSTREAM = "bad upstream"


#: Access to a member of an Enum calls a function of its class, which is slow in Python 3.11.
COMPLETE: Final = RelayOutcome.COMPLETE


class RelayResult(msgspec.Struct):
    """The result of a relay; times are of `time.monotonic()`, 0.0 if the event did not happen."""

    outcome: RelayOutcome
    #: whether bytes of an answer were sent to the client (also by `Exchange.start`)
    started: bool = False
    #: the status of the child's answer, 0 without one
    status: int = 0
    error: str = ""
    first_byte_at: float = 0.0
    #: the last bytes of a complete answer's body, with its framing (at most 2 KiB)
    tail: bytes = b""
    #: The body of an answer that was collected and not passed on. Either the answer is translated
    #: as a whole. Or lswap had started the client's stream, and the child's answer is not an event
    #: stream (at most 64 KiB; the client's stream is still open).
    refusal: bytes | None = None
    #: the error number if the child could not be reached
    errno: int = 0


def tokens(value: bytes) -> list[bytes]:
    """Return the members of a comma-separated header value, lower-cased."""
    return [token for part in value.lower().split(b",") if (token := part.strip())]


def forward_headers(
    head: RequestHead,
    *,
    drop: frozenset[bytes] = frozenset(),
    peer: str,
    scheme: str = "http",
    steady: bool = False,
) -> Headers:
    """Return the headers of a client's request for a child.

    It leaves out hop-by-hop headers and those named in Connection, framing (which `render_request`
    adds), Expect, and the lower-case names in `drop`. With `steady` it also leaves out the varying
    headers (`varied_lines`). Host becomes `localhost`.
    """
    unwanted = _NOT_FORWARDED | drop if drop else _NOT_FORWARDED
    if head.get(b"connection") is not None:
        several = [value for name, value in head.headers if name == b"connection"]
        unwanted = unwanted.union(*map(tokens, several))
    headers: Headers = [(b"host", b"localhost")]
    given = head.steady if steady else head.headers
    headers += [pair for pair in given if pair[0] not in unwanted]
    earlier = head.get(b"x-forwarded-for")
    client = peer.encode()
    headers.append((b"x-forwarded-for", b"%b, %b" % (earlier, client) if earlier else client))
    headers.append((b"x-forwarded-proto", scheme.encode()))
    host = head.get(b"host")
    if host is not None:
        headers.append((b"x-forwarded-host", host))
    return headers


def forward_lines(head: RequestHead, *, drop: frozenset[bytes], peer: str) -> bytes:
    """Return the lines of `forward_headers` that are the same if the head is repeated."""
    headers = forward_headers(head, drop=drop, peer=peer, steady=True)
    return b"".join([b"%b: %b\r\n" % pair for pair in headers])


def varied_lines(head: RequestHead, *, drop: frozenset[bytes]) -> bytes:
    """Return the lines of `forward_headers` that vary if the head is repeated."""
    return b"".join([b"%b: %b\r\n" % pair for pair in head.varied if pair[0] not in drop])


def render_request(request: UpstreamRequest, *, upgrade: bytes | None = None) -> bytes:
    """Return the head of a request for a child; its body is never chunked."""
    begin = _request_line(request.method, request.target)
    more, size = b"", request.body.size
    if request.headers:
        more = b"".join([b"%b: %b\r\n" % pair for pair in request.headers])
    if upgrade is not None:
        more += b"connection: upgrade\r\nupgrade: %b\r\n" % upgrade
    elif size or request.method in _LENGTH_EXPECTED:
        more += b"content-length: %d\r\n" % size
    return b"".join((begin, request.lines, request.id_line, more, b"\r\n"))


@lru_cache(maxsize=64)
def _request_line(method: str, target: str) -> bytes:
    return f"{method} {target} HTTP/1.1\r\n".encode()


def render_response(
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    reason: bytes = b"",
    more: bytes = b"",
) -> bytes:
    """Return the head of a response; `more` are rendered lines after the headers."""
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, reason or _REASONS.get(status, b""))]
    lines += [b"%b: %b\r\n" % pair for pair in headers]
    lines.append(more + b"\r\n")
    return b"".join(lines)


def chunk(data: bytes) -> bytes:
    """Return `data` (not empty) as one chunk of the chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def is_bodiless(method: str, status: int) -> bool:
    """Return whether an answer never has a body, whatever its headers (RFC 9112 section 6.3)."""
    return method == "HEAD" or status in (204, 304) or status < 200
