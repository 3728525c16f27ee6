"""Caches of parsed heads, by their bytes: a head that is repeated need not be parsed again.

A client sends the same head with every request of a connection, and a child with every answer,
except for the digits of Content-Length. The parser is deterministic at the start of a message. So
equal bytes give an equal head, and to compare them costs a tenth of parsing. A head that differs by
one byte is parsed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from llamaswap_py.proxy.messages import is_bodiless, render_response

if TYPE_CHECKING:
    from llamaswap_py.proxy.messages import Headers, RequestHead

_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: ?([0-9]{1,15})(?=\r\n)", re.IGNORECASE)
_MOST_DIGITS: Final = 15
_REMEMBERED: Final = 64
"""How many heads of answers are stored; a child has few different ones."""
_MOST_REQUESTS: Final = 1024
_LARGEST: Final = 4096
"""How many heads of requests are stored, and the most bytes of one."""
VARYING: Final = (
    *(b"traceparent", b"tracestate", b"baggage", b"b3", b"x-request-id", b"x-correlation-id"),
    *(b"x-amzn-trace-id", b"x-cloud-trace-context", b"idempotency-key", b"x-request-start"),
)
"""Headers with another value in each request. lswap does not use them, except x-request-id, which
it reads from every request."""
_VARIES: Final = re.compile(
    rb"\r\n(?:(%b): ?([!-~]+(?: [!-~]+)*)|content-length: ?([0-9]{1,15}))(?=\r\n)"
    % b"|".join(VARYING),
    re.IGNORECASE,
)


class KnownRequest:
    """A head that a client has sent.

    The next head of a client is often the same, or differs in its length alone. Then comparing the
    bytes is enough.
    """

    __slots__ = ("_after", "_before", "_size", "_whole", "head")

    def __init__(self, head: RequestHead, data: bytes) -> None:
        """Store a head with the bytes from which it was parsed."""
        self.head = head
        self._whole, self._size = data, len(data)
        self._before = self._after = b""
        length = None if head.varied else _LENGTH.search(data)
        if length is not None:
            start, stop = length.span(1)
            self._before, self._after = data[:start], data[stop:]

    def read(self, data: bytes) -> tuple[RequestHead, int] | None:
        """Return the head and the offset of the body if `data` begins with this head."""
        if data[: self._size] == self._whole:
            return self.head, self._size
        before, after = self._before, self._after
        if not before or not data.startswith(before):
            return None
        at = len(before)
        end = data.find(b"\r", at, at + _MOST_DIGITS + 1)
        digits = data[at:end]
        if end < 0 or not digits.isdigit() or not data.startswith(after, end):
            return None
        self._size = size = end + len(after)
        self._whole = data[:size]
        if int(digits) != self.head.content_length:
            self.head = self.head.again(digits, [])
        return self.head, size


class KnownRequests:
    """The complete heads that clients have sent, each with its parsed form.

    The parts that differ from one request to the next are not compared: the length, and the values
    of VARYING. Heads are stored by address, because the data stored with a head may depend on it.
    """

    def __init__(self) -> None:
        self._known: dict[_Key, KnownRequest] = {}
        #: the last plain head of each address, for a client that connects anew for each request
        self._last: dict[str, KnownRequest] = {}

    def read(self, peer: str, data: bytes) -> tuple[RequestHead, int, KnownRequest] | None:
        """Return the head at the begin of `data` and the offset of its body, if it is known.

        The third item is the stored head: its `read` finds the next head of this client faster.
        """
        last = self._last.get(peer)
        if last is not None and (found := last.read(data)) is not None:
            return *found, last
        cut = _cut_request(peer, data)
        if cut is None:
            return None
        key, digits, varied, end = cut
        known = self._known.get(key)
        if known is None:
            return None
        head = known.head
        length = int(digits) if digits else 0
        if varied or head.varied:
            return head.again(digits, varied), end, known
        if len(self._last) >= _MOST_REQUESTS:
            self._last.clear()
        self._last[peer] = known
        return head if length == head.content_length else head.again(digits, []), end, known

    def note(self, peer: str, data: bytes, head: RequestHead) -> None:
        """Store the head that the parser found at the begin of `data`, if it is plain."""
        cut = _cut_request(peer, data)
        if cut is None or not _is_plain(data, head):
            return
        key, digits, varied, end = cut
        names = [name for name, _ in head.headers]
        if names.count(b"content-length") != bool(digits):
            return
        if sum(name in VARYING for name in names) != len(varied):
            return
        if varied:
            head.vary(varied)
        if len(self._known) >= _MOST_REQUESTS:
            del self._known[next(iter(self._known))]  # the oldest
        self._known[key] = KnownRequest(head, data[:end])


_Key: TypeAlias = tuple[str | bool | bytes, ...]


def _is_plain(data: bytes, head: RequestHead) -> bool:
    return (
        data.startswith(head.method.encode() + b" ")
        and head.version == "1.1"
        and not head.upgrade
        and not head.expects_continue
        and head.content_length is not None
        and (head.get(b"connection") or b"keep-alive").lower() in (b"keep-alive", b"close")
    )


def _cut_request(peer: str, data: bytes) -> tuple[_Key, bytes, Headers, int] | None:
    """Return the constant part of a head, its length's digits, the varying headers, and its end.

    None if the head is not complete, or not plain (it has two lengths).
    """
    end = data.find(_END, 0, _LARGEST)
    if end < 0:
        return None
    parts: list[Any] = _VARIES.split(data[: end + 2])
    if len(parts) == 5 and parts[1] is None:  # most heads are like this
        return (peer, True, parts[0], parts[4]), parts[3], [], end + len(_END)
    digits = b""
    varied: Headers = []
    for at in range(1, len(parts), 4):
        name = parts[at]
        if name is not None:
            varied.append((name.lower(), parts[at + 1]))
        elif digits:
            return None
        else:
            digits = parts[at + 2]
    return (peer, digits != b"", *parts[::4]), digits, varied, end + len(_END)


class KnownAnswer:
    """The head of an answer with a length, in the form in which it is sent to clients."""

    __slots__ = (
        *("_after", "_before", "_length", "_raw_after", "_raw_before", "_size", "_whole"),
        *("reason", "status"),
    )

    def __init__(
        self, status: int, reason: bytes, raw: tuple[bytes, bytes], shown: tuple[bytes, bytes]
    ) -> None:
        """Store the parts before and after the length: `raw` from the child, `shown` to clients."""
        self.status = status
        self.reason = reason
        self._raw_before, self._raw_after = raw
        self._before, self._after = shown
        #: the last head, its size, and the length that it gives
        self._whole, self._size, self._length = b"", 1, 0

    def read(self, data: bytes) -> tuple[int, bytes] | None:
        """Return the length, and the bytes after the head, if `data` begins with this head."""
        if data[: self._size] == self._whole:
            return self._length, data[self._size :]
        if not data.startswith(self._raw_before):
            return None
        at = len(self._raw_before)
        end = data.find(b"\r", at, at + _MOST_DIGITS + 1)
        digits = data[at:end]
        if end < 0 or not digits.isdigit() or not data.startswith(self._raw_after, end):
            return None
        self._size = size = end + len(self._raw_after)
        self._whole, self._length = data[:size], int(digits)
        return self._length, data[size:]

    def render(self, length: int, lines: bytes, body: bytes) -> bytes:
        """Return the head for a body of `length` bytes, with more header lines, and `body`."""
        return b"%b%d%b%b\r\n%b" % (self._before, length, self._after, lines, body)


class KnownAnswers:
    """The heads of children's answers; heads that differ only in their length are stored once."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], KnownAnswer] = {}
        self._last: KnownAnswer | None = None

    def find(self, data: bytes) -> tuple[KnownAnswer, int, bytes] | None:
        """Return the known head at the begin of `data`, its length, and the bytes after it."""
        known = self._last
        if known is not None and (read := known.read(data)) is not None:
            return known, *read
        cut = _cut(data)
        if cut is None:
            return None
        before, digits, after, rest = cut
        self._last = known = self._known.get((before, after))
        return None if known is None else (known, int(digits), rest)

    def note(self, data: bytes, status: int, reason: bytes, headers: Headers) -> None:
        """Store a complete head, `data`, of an HTTP/1.1 answer that has a length, is not a stream,
        and keeps its connection open. `headers` are those that a client gets.
        """
        cut = _cut(data)
        if cut is None or is_bodiless("GET", status):
            return
        rendered = render_response(status, headers, reason)[:-2]
        lengths = list(_LENGTH.finditer(rendered))
        if len(lengths) != 1:
            return
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        start, end = lengths[0].span(1)
        raw = cut[0], cut[2]
        shown = rendered[:start], rendered[end:]
        self._known[raw] = KnownAnswer(status, reason, raw, shown)


def _cut(data: bytes) -> tuple[bytes, bytes, bytes, bytes] | None:
    """Return a head up to its length's digits, the digits, the head after them, and the body."""
    end = data.find(_END)
    found = _LENGTH.search(data, 0, end + 2) if end > 0 else None
    if found is None:
        return None
    start, stop = found.span(1)
    end += len(_END)
    return data[:start], data[start:stop], data[stop:end], data[end:]
