"""Heads that come again: what was parsed once means the same the next time.

A client sends the same head with every request of a connection, and a child with every answer,
but for the digits of Content-Length. A parser at the start of a message is deterministic: the same
bytes are compared instead of parsed, at a tenth of the cost. Whatever differs by a byte is parsed.
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
"""Heads of answers that are kept; a child has few kinds of them."""
_MOST_REQUESTS: Final = 1024
_LARGEST: Final = 4096
"""Heads of requests that are kept, and the bytes of one."""
VARYING: Final = (
    *(b"traceparent", b"tracestate", b"baggage", b"b3", b"x-request-id", b"x-correlation-id"),
    *(b"x-amzn-trace-id", b"x-cloud-trace-context", b"idempotency-key", b"x-request-start"),
)
"""Headers that clients and proxies send with another value each time, and that mean nothing here;
x-request-id alone is looked at, with every request."""
_VARIES: Final = re.compile(
    rb"\r\n(?:(%b): ?([!-~]+(?: [!-~]+)*)|content-length: ?([0-9]{1,15}))(?=\r\n)"
    % b"|".join(VARYING),
    re.IGNORECASE,
)


class KnownRequests:
    """Heads that clients have sent, whole, and what they say; the same bytes say it again.

    What differs from one request to the next is looked at apart: the length, and the values of
    VARYING. Each address has heads of its own, for what is remembered with a head may depend on it.
    """

    def __init__(self) -> None:
        self._known: dict[_Key, RequestHead] = {}

    def read(self, peer: str, data: bytes) -> tuple[RequestHead, int] | None:
        """Return the head that `data` begins with and where its body begins, if it is known."""
        cut = _cut_request(peer, data)
        if cut is None:
            return None
        key, digits, varied, end = cut
        head = self._known.get(key)
        if head is None:
            return None
        length = int(digits) if digits else 0
        if varied or head.varied or length != head.content_length:
            head = head.again(digits, varied)
        return head, end

    def note(self, peer: str, data: bytes, head: RequestHead) -> None:
        """Remember a head that the parser found at the beginning of `data`, if it is plain."""
        cut = _cut_request(peer, data)
        if cut is None or not _is_plain(data, head):
            return
        key, digits, varied, _ = cut
        names = [name for name, _ in head.headers]
        if names.count(b"content-length") != bool(digits):
            return
        if sum(name in VARYING for name in names) != len(varied):
            return
        if varied:
            head.vary(varied)
        if len(self._known) >= _MOST_REQUESTS:
            del self._known[next(iter(self._known))]  # the oldest
        self._known[key] = head


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
    """Return what is the same in a whole head, its length's digits, what varies, and its end.

    None where it is not whole, or not plain: a length that comes twice.
    """
    end = data.find(_END, 0, _LARGEST)
    if end < 0:
        return None
    parts: list[Any] = _VARIES.split(data[: end + 2])
    if len(parts) == 5 and parts[1] is None:  # what most are like
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
    """The head of an answer with a length, ready to be sent on."""

    __slots__ = ("_after", "_before", "_raw_after", "_raw_before", "reason", "status")

    def __init__(
        self, status: int, reason: bytes, raw: tuple[bytes, bytes], shown: tuple[bytes, bytes]
    ) -> None:
        """Take what stands before and after the length, as it came and as it is sent on."""
        self.status = status
        self.reason = reason
        self._raw_before, self._raw_after = raw
        self._before, self._after = shown

    def read(self, data: bytes) -> tuple[int, bytes] | None:
        """Return the length and what follows the head if `data` begins with this one."""
        if not data.startswith(self._raw_before):
            return None
        at = len(self._raw_before)
        end = data.find(b"\r", at, at + _MOST_DIGITS + 1)
        digits = data[at:end]
        if end < 0 or not digits.isdigit() or not data.startswith(self._raw_after, end):
            return None
        return int(digits), data[end + len(self._raw_after) :]

    def render(self, length: int, lines: bytes, body: bytes) -> bytes:
        """Return it for a body of `length` bytes, with more header lines and what follows it."""
        return b"%b%d%b%b\r\n%b" % (self._before, length, self._after, lines, body)


class KnownAnswers:
    """The heads that children have answered with, as far as they differ in their length alone."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], KnownAnswer] = {}
        self._last: KnownAnswer | None = None

    def find(self, data: bytes) -> tuple[KnownAnswer, int, bytes] | None:
        """Return the known head that `data` begins with, its length, and what follows."""
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
        """Remember the whole head that `data` is: an answer of HTTP/1.1 that has a length, is no
        stream, and keeps its connection; `headers` are what a client gets to see of it.
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
    """Return a whole head before its length's digits, these, the head after them, and the rest."""
    end = data.find(_END)
    found = _LENGTH.search(data, 0, end + 2) if end > 0 else None
    if found is None:
        return None
    start, stop = found.span(1)
    end += len(_END)
    return data[:start], data[start:stop], data[stop:end], data[end:]
