"""Reads one field of a form body: multipart (RFC 7578, tolerant) or urlencoded. Pure.

It is used to find the model's name; the body itself goes to the child unchanged.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_VALUE: Final = 1024
"""The longest field value that is read, in bytes; model names are short."""
MAX_PART_HEAD: Final = 16 * 1024
"""The longest head of a part that is read, in bytes."""
_MAX_BOUNDARY: Final = 256  # RFC 2046 says 70; be generous

# Matches one parameter at a time, so that a quoted file name cannot pose as another parameter.
_PARAMETER: Final = re.compile(rb';\s*([^=;\s"]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)')
_DISPOSITION: Final = re.compile(rb"^content-disposition[ \t]*:[ \t]*form-data", re.I | re.M)


def parameters(header: bytes) -> dict[bytes, bytes]:
    """Return the parameters of a header value (`; name="x"`), names lower-cased, unquoted."""
    found: dict[bytes, bytes] = {}
    for name, raw in _PARAMETER.findall(header):
        value = raw.strip()
        if value[:1] == b'"' and value[-1:] == b'"' and len(value) > 1:
            value = re.sub(rb"\\(.)", rb"\1", value[1:-1], flags=re.S)
        found.setdefault(name.lower(), value)
    return found


def multipart_field(body: bytes, boundary: bytes, name: bytes) -> bytes | None:
    """Return the value of the first top-level part called `name`; None if there is none.

    It accepts bare LF line ends, a preamble, and a missing end. It does not read nested multipart.
    Raises ValueError if the value is longer than MAX_VALUE or the boundary cannot be used.
    """
    if not boundary or len(boundary) > _MAX_BOUNDARY:
        raise ValueError("the multipart boundary is missing or too long")
    for start, end in _parts(body, b"--" + boundary):
        head, content = _split_head(body, start, end)
        if _part_name(head) == name:
            value = body[content : min(end, content + MAX_VALUE + 1)]
            if len(value) > MAX_VALUE:
                raise ValueError(f"the form field is longer than {MAX_VALUE} bytes")
            return value
    return None


def urlencoded_field(body: bytes, name: bytes) -> bytes | None:
    """Return the decoded value of the first `name=` pair; None if there is none."""
    for pair in re.finditer(rb"(?:^|&)" + re.escape(name) + rb"=([^&]*)", body):
        if len(pair[1]) > MAX_VALUE * 3:
            raise ValueError(f"the form field is longer than {MAX_VALUE} bytes")
        return unquote_to_bytes(pair[1].replace(b"+", b" "))
    return None


def _parts(body: bytes, delimiter: bytes) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each part with its head, without the line end before the delimiter."""
    at = _next_delimiter(body, delimiter, 0)
    while at is not None:
        start, last = _after_delimiter(body, at + len(delimiter))
        if last:
            return
        following = _next_delimiter(body, delimiter, start)
        end = len(body) if following is None else following
        if following is not None:
            end -= 2 if body[end - 2 : end] == b"\r\n" else 1
        yield start, max(start, end)
        at = following


def _next_delimiter(body: bytes, delimiter: bytes, start: int) -> int | None:
    """Return the offset of a delimiter that begins a line and is not the start of a longer word."""
    while (at := body.find(delimiter, start)) >= 0:
        follows = body[at + len(delimiter) : at + len(delimiter) + 2]
        if (at == 0 or body[at - 1] == 0x0A) and (follows == b"--" or follows[:1] in b" \t\r\n"):
            return at
        start = at + 1
    return None


def _after_delimiter(body: bytes, at: int) -> tuple[int, bool]:
    """Return where the part begins, and whether this delimiter was the last one."""
    if body.startswith(b"--", at):
        return at, True
    line_end = body.find(b"\n", at)
    return (len(body), True) if line_end < 0 else (line_end + 1, False)


def _split_head(body: bytes, start: int, end: int) -> tuple[bytes, int]:
    """Return a part's head and where its content begins."""
    if body.startswith((b"\r\n", b"\n"), start):
        return b"", body.index(b"\n", start) + 1
    limit = min(end, start + MAX_PART_HEAD)
    ends = [
        (at, at + len(mark))
        for mark in (b"\r\n\r\n", b"\n\n")
        if (at := body.find(mark, start, limit)) >= 0
    ]
    if not ends:
        return b"", end
    head_end, content = min(ends)
    return body[start:head_end], content


def _part_name(head: bytes) -> bytes | None:
    match = _DISPOSITION.search(head)
    if match is None:
        return None
    line = head[match.end() :].splitlines()[0] if head[match.end() :] else b""
    return parameters(line).get(b"name")
