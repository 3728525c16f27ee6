"""Heads that come again: what was parsed once means the same the next time.

A client sends the same head with every request of a connection, and a child with every answer,
but for the digits of Content-Length. A parser at the start of a message is deterministic: the same
bytes are compared instead of parsed, at a tenth of the cost. Whatever differs by a byte is parsed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from llamaswap_py.proxy.messages import is_bodiless, render_response

if TYPE_CHECKING:
    from llamaswap_py.proxy.messages import Headers, RequestHead

_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: ?([0-9]{1,15})(?=\r\n)", re.IGNORECASE)
_MOST_DIGITS: Final = 15
_REMEMBERED: Final = 64
"""Heads of answers that are kept; a child has few kinds of them."""


class RepeatedRequest:
    """The head that a connection has sent last."""

    __slots__ = ("_data", "known")

    def __init__(self) -> None:
        self.known: KnownRequest | None = None
        self._data = b""

    def expect(self, data: bytes) -> None:
        """Another request begins with `data`, which goes to the parser."""
        self._data = data

    def note(self, head: RequestHead) -> None:
        """The parser has found a head: the first since `expect`, or one that came in pieces."""
        data, self._data = self._data, b""
        self.known = KnownRequest.of(data, head)


class KnownRequest:
    """A head in its bytes before and after the length's digits, and what it says."""

    __slots__ = ("_after", "_before", "_head")

    def __init__(self, before: bytes, after: bytes, head: RequestHead) -> None:
        self._before = before
        self._after = after
        self._head = head

    @classmethod
    def of(cls, data: bytes, head: RequestHead) -> KnownRequest | None:
        """Return the head that `data` begins with, None for one that had better be parsed again."""
        end = data.find(_END)
        raw = data[: end + len(_END)]
        lengths = list(_LENGTH.finditer(raw))
        if (
            end < 0
            or not raw.startswith(head.method.encode() + b" ")
            or head.version != "1.1"
            or head.upgrade
            or head.expects_continue
            or head.content_length is None
            or sum(name == b"content-length" for name, _ in head.headers) != len(lengths)
            or len(lengths) > 1
        ):
            return None
        start, stop = lengths[0].span(1) if lengths else (len(raw), len(raw))
        return cls(raw[:start], raw[stop:], head)

    def read(self, data: bytes) -> tuple[RequestHead, bytes] | None:
        """Return head and body if `data` is this head and the whole of a body, and no more."""
        if not data.startswith(self._before):
            return None
        at = len(self._before)
        if not self._after:
            return (self._head, b"") if len(data) == at else None
        end = data.find(b"\r", at, at + _MOST_DIGITS + 1)
        digits = data[at:end]
        if end < 0 or not digits.isdigit() or not data.startswith(self._after, end):
            return None
        start = end + len(self._after)
        length = int(digits)
        if len(data) - start != length:
            return None
        if length != self._head.content_length:
            self._head = self._head.with_length(digits)
        return self._head, data[start:]


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
