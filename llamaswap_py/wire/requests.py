"""The strict parser of requests: bytes in, checked heads and body pieces out.

llhttp (behind httptools) refuses CL with TE, a repeated or odd Content-Length, obs-fold, bare LF or
CR, NUL and control characters, spaces around names, and bad chunks. Added here: sizes, counts,
versions, Host, target forms, transfer codings other than `chunked`, and upgrades with a body.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

import httptools

from .messages import Headers, RequestHead, WireError, WireLimits, tokens

#: llhttp counts in 64 bits; more than this is a mistake or an attack.
_LARGEST_BODY: Final = 2**62
_LONGEST_METHOD: Final = 64
# Every registered method is in capitals: what is not is the rest of a body, or a mistake.
_METHOD: Final = re.compile(rb"[\r\n]*[A-Z][A-Z0-9_-]*(?= |$)")


class RequestSink(Protocol):
    """Takes what a RequestParser finds, in order."""

    def on_request(self, head: RequestHead) -> None: ...
    def on_piece(self, piece: bytes) -> None: ...
    def on_request_complete(self) -> None: ...


class RequestParser:
    """Parses one connection's requests, however they are cut into pieces."""

    def __init__(self, sink: RequestSink, limits: WireLimits) -> None:
        self._sink = sink
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        #: a head has begun and is not complete
        self.in_head = False
        self._in_body = False
        self._ignored_upgrade = False
        self._url = b""
        self._fields: Headers = []
        self._headers: Headers = []
        self._in_message = False
        #: what the request begins with
        self._start = b""
        # Bytes since the last progress: an endless header, trailer or chunk extension.
        self._fruitless = 0

    def feed(self, data: bytes) -> bytes | None:
        """Parse `data`; after an upgrade return what follows it, else None. Raises WireError."""
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
        """Break the reference cycles with the C parser and with who is told."""
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
            return WireError(501, "the method of the request is not known here")
        status = 505 if "HTTP version" in reason or "PRI" in reason else 400
        return WireError(status, f"malformed HTTP request: {reason}")

    def _head_without_upgrade(self) -> bytes:
        """Start over with a head that asks for no upgrade, so that llhttp reads its body."""
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
        # Also trailers, which nobody looks at.
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
        raise WireError(505, f"HTTP/{version} is not supported, HTTP/1.1 is")
    authority, text = _split_authority(method, target)
    path, _, query = text.partition("?")
    seen = _framing_headers(headers, version)
    if authority is not None:  # RFC 9112 section 3.2.2: what Host says does not count
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
    """Return the headers that steer the connection; several of one name are joined by commas."""
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
# Two parsers could each believe another one: these decide who may ask.
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
    """Return what an absolute-form target says of the host, and the target without it.

    It is in origin-form then, or `*`.
    """
    if method == "CONNECT":
        raise WireError(501, "CONNECT is not supported")
    if b"#" in target:
        raise WireError(400, "a request target has no fragment")
    text = target.decode("ascii")
    if text.startswith("/") or (text == "*" and method == "OPTIONS"):
        return None, text
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        raise WireError(400, f"bad request target {text[:80]!r}")
    authority = rest.partition("?")[0].partition("/")[0]
    if not authority or "@" in authority:  # RFC 9110 sections 4.2.1 and 4.2.4
        raise WireError(400, f"the request target {text[:80]!r} names no host alone")
    text = rest[len(authority) :]
    if not text and method == "OPTIONS":
        text = "*"
    elif not text.startswith("/"):
        text = "/" + text
    return authority.encode(), text
