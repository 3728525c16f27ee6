"""Ask a child one question over its own socket: a small HTTP/1.1 request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import httptools
import msgspec

from llamaswap_py.proxy.dial import note_refusal, open_tcp, opened
from llamaswap_py.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.endpoint import Endpoint

# /props carries the chat template, and is the longest answer to a GET; it is far below this limit.
_BODY_LIMIT: Final = 8 * MIB
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Status and body of one answer."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Names in lower case."""

    def json(self) -> dict[str, Any]:
        """Return the body as an object, or an empty one if the body is not an object."""
        try:
            value = msgspec.json.decode(self.body)
        except msgspec.DecodeError:
            return {}
        return value if isinstance(value, dict) else {}


class _Reader(asyncio.Protocol):
    """Collect one answer. Raises nothing: the future carries the error."""

    def __init__(
        self,
        request: bytes,
        answer: asyncio.Future[HttpAnswer],
        keep: bool,
        on_status: Callable[[int], None] | None,
    ) -> None:
        self._request = request
        self._keep = keep
        self._answer = answer
        self._on_status = on_status
        self._parser: Any = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._size = 0
        self._headers: list[tuple[bytes, bytes]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's: nothing to check at run time.
        cast("asyncio.WriteTransport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._answer.done():
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"not HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionError("closed before its answer was complete"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._on_status is not None:
            self._on_status(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        if not self._keep and self._parser.get_status_code() == _OK:
            return
        self._size += len(body)
        if self._size > _BODY_LIMIT:
            self._fail(ConnectionError("answer too large"))
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if not self._answer.done():
            status = self._parser.get_status_code()
            self._answer.set_result(HttpAnswer(status, b"".join(self._body), tuple(self._headers)))

    def _fail(self, error: ConnectionError) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)


async def get(endpoint: Endpoint, path: str, timeout: float) -> HttpAnswer:  # noqa: ASYNC109
    """GET `path` from `endpoint` within `timeout` seconds.

    Raises OSError (also ConnectionError and TimeoutError) when no complete answer comes.
    """
    return await ask(endpoint, "GET", path, timeout=timeout)


async def ask(
    endpoint: Endpoint,
    method: str,
    path: str,
    *,
    timeout: float | None,  # noqa: ASYNC109
    body: bytes = b"",
    headers: str = "",
    keep: bool = True,
    on_status: Callable[[int], None] | None = None,
) -> HttpAnswer:
    """Send one request, with `body` as its JSON, and wait `timeout` seconds (None: for ever).

    `headers` are lines of more headers, each with its CRLF.

    `on_status` is called with the status of the answer. Without `keep` the body of an answer 200
    is read to its end and dropped. Raises OSError (also ConnectionError and TimeoutError) when no
    complete answer comes.
    """
    loop = asyncio.get_running_loop()
    content = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: lswap\r\n"
        f"Accept: */*\r\n{headers}{content}Connection: close\r\n\r\n"
    )
    request = head.encode("ascii") + body
    answer: asyncio.Future[HttpAnswer] = loop.create_future()
    transport: asyncio.BaseTransport | None = None

    def make() -> _Reader:
        return _Reader(request, answer, keep, on_status)

    try:
        async with asyncio.timeout(timeout):
            if endpoint.path is not None:
                transport, _ = await loop.create_unix_connection(make, endpoint.path)
            else:
                sock = await open_tcp(endpoint)
                opening = loop.create_connection(make, sock=sock)
                pair = await opened(opening, lambda made: made[0].abort())
                transport = pair[0]
            return await answer
    except OSError as error:
        note_refusal(endpoint, error.errno)
        raise
    finally:
        if transport is not None:
            cast("asyncio.WriteTransport", transport).abort()
        if answer.done() and not answer.cancelled():
            answer.exception()  # marks it as seen: perhaps no task awaits it any more
