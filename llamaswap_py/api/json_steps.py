"""Decodes and encodes JSON in short steps, so that the event loop runs others in between. Pure.

msgspec decodes a text in one call, which takes 60 ms for 240,000 keys or for 16 MiB of escapes. So
a large text is decoded in pieces that end after a comma. Each piece is completed to JSON: it gets
the brackets that are open where it begins and where it ends. What it holds is then added to the
lists and objects that are open. Strings that are longer than a piece are decoded by themselves.

Each function is a generator that yields after every step, and returns the result.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from llamaswap_py.errors import ApiError
from llamaswap_py.units import KIB, MIB

_T = TypeVar("_T")
Steps: TypeAlias = Generator[None, None, _T]

STEP: Final = 128 * KIB
"""The bytes of a piece: some 3 ms if they are short keys, the most expensive values."""
LIGHT: Final = 4_000
"""What is encoded at once: values; each 64 characters, or 64 bits of a number, count as one."""
_GAP: Final = MIB
"""The most bytes without a comma or a text: blanks, brackets or one number."""
_SLICE: Final = 64 * KIB
_BACK: Final = 64
"""The most strings before the end of a piece that are looked at to find a comma."""
_CLOSING: Final = bytes.maketrans(b"[{", b"]}")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_WHOLE: Final = re.compile(rb'(?:[^"]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)
_INSIDE: Final = re.compile(
    rb"(?:[^\"\\]++|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\[^u])*+",
    re.DOTALL,
)
_COLON: Final = re.compile(rb"[ \t\r\n]*:")
_BYTE: Final = re.compile(r"\(byte (\d+)\)")
_TEXT: Final = msgspec.json.Decoder(str)
_CHECK: Final = msgspec.json.Decoder(msgspec.Raw)


def at_once(steps: Steps[_T]) -> _T:
    """Return the result of steps without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _T = end.value
            return result


def decoded(text: bytes, decoder: msgspec.json.Decoder[Any], mark: str) -> Steps[Any]:
    """Decode JSON; raises what `decoder` raises, and ApiError for what cannot be divided.

    `mark` is a text that clients cannot know. It stands for what is around a piece, and for long
    strings.
    """
    if len(text) <= STEP:
        return decoder.decode(text)
    tree = _Tree(decoder, mark)
    at = 0
    while at < len(text):
        piece = _Piece(text, at, mark)
        yield from piece.read()
        try:
            fits = tree.add(piece)
        except msgspec.DecodeError as error:
            yield
            raise _located(error, piece, tree.ahead, text) from None
        if not fits:  # its brackets do not match
            _CHECK.decode(text)
            raise msgspec.DecodeError(f"JSON is malformed: brackets do not match (byte {at})")
        at = piece.end
        yield
    return tree.root


def _located(
    error: msgspec.DecodeError, piece: _Piece, ahead: int, text: bytes
) -> msgspec.DecodeError:
    """Return the error of a piece with the place in the whole text."""
    found = _BYTE.search(str(error))
    within = int(found[1]) - ahead if found else -1
    if not piece.long and 0 <= within < piece.end - piece.at:
        return _moved(error, piece.at - ahead)
    try:
        _CHECK.decode(text)
    except msgspec.DecodeError as whole:
        return whole
    return error


def _moved(error: msgspec.DecodeError, by: int) -> msgspec.DecodeError:
    return msgspec.DecodeError(_BYTE.sub(lambda found: f"(byte {int(found[1]) + by})", str(error)))


class _Piece:
    """A part of a text that ends after a comma, or with the text; its long strings are cut out."""

    def __init__(self, text: bytes, at: int, mark: str) -> None:
        self._mark = mark
        self._text, self.at, self.end = text, at, at
        self._parts: list[bytes] = []
        self.long: dict[str, str] = {}
        self.is_last = False

    @property
    def json(self) -> bytes:
        """The part with tokens in place of long strings."""
        return b"".join(self._parts)

    def read(self) -> Steps[None]:
        """Find the end."""
        text, at, size = self._text, self.at, STEP
        while True:
            window = min(at + size, len(text))
            end = _end(_WHOLE, text, at, window)
            if end == len(text):
                return self._finish(at, end, last=True)
            if comma := _after_last_comma(text, at, end):
                return self._finish(at, comma, last=False)
            if end == window:  # nothing but blanks, brackets or digits
                if size >= _GAP:
                    raise _too_large(f"{_GAP} bytes without a comma or a text")
                size *= 2
                yield
                continue
            after, value = yield from _string(text, end)
            if after < 0:  # it has no end
                return self._finish(at, len(text), last=True)
            if value is None:
                self._parts.append(text[at:after])
            else:
                if _COLON.match(text, after):
                    raise _too_large(f"{STEP} bytes for the name of a member")
                token = f"{self._mark}long-{len(self.long)}"
                self.long[token] = value
                self._parts.append(text[at:end] + b'"%b"' % token.encode())
            at, size = after, STEP

    def _finish(self, at: int, end: int, *, last: bool) -> None:
        self._parts.append(self._text[at:end])
        self.end, self.is_last = end, last


def _end(pattern: re.Pattern[bytes], text: bytes, at: int, window: int) -> int:
    match = pattern.match(text, at, window)
    assert match is not None, "it matches the empty text"
    return match.end()


def _after_last_comma(text: bytes, start: int, end: int) -> int:
    """Return the offset after the last comma outside of strings, or 0; both ends are outside."""
    for _ in range(_BACK):
        quote = text.rfind(b'"', start, end)
        comma = text.rfind(b",", max(quote, start), end)
        if comma >= 0 or quote < 0:
            return comma + 1
        end = _begin_of_string(text, start, quote)
        if end <= start:
            break
    return 0


def _begin_of_string(text: bytes, start: int, end: int) -> int:
    at = end
    while (at := text.rfind(b'"', start, at)) > start:
        slash = at
        while text[slash - 1 : slash] == b"\\":
            slash -= 1
        if (at - slash) % 2 == 0:
            break
    return max(at, start)


def _string(text: bytes, quote: int) -> Steps[tuple[int, str | None]]:
    """Decode a string that begins at a quotation mark; return the offset after it, and its value.

    The value is None if it is not longer than a piece. The offset is -1 if the string has no end.
    """
    parts: list[str] = []
    at = quote + 1
    while True:
        window = min(at + STEP, len(text))
        end = _end(_INSIDE, text, at, window)
        if text[end : end + 1] == b'"' and not parts:
            return end + 1, None
        if end < len(text) and text[end] != ord('"'):
            while end > at and text[end] & 0xC0 == 0x80:  # within a character
                end -= 1
            if end == at:  # no escape
                end = window
        try:
            parts.append(_TEXT.decode(b'"%b"' % text[at:end]))
        except msgspec.DecodeError as error:
            raise _moved(error, at - 1) from None
        yield
        if end == len(text):
            return -1, None
        if text[end] == ord('"'):
            return end + 1, "".join(parts)
        at = end


def _too_large(limit: str) -> ApiError:
    return ApiError(
        "body_too_large",
        f"the request body is larger than the limit of this route: {limit}",
        remedy="send JSON as clients write it, without long names, numbers and blanks",
    )


class _Tree:
    """What has been decoded so far, and the containers that are open, the outermost first."""

    def __init__(self, decoder: msgspec.json.Decoder[Any], mark: str) -> None:
        self.root: Any = None
        self.ahead = 0
        """The bytes that were put before the last piece."""
        self._decoder = decoder
        self._first, self._last = f"{mark}first", f"{mark}last"
        """Stand for a member before a piece, and for one after it."""
        self._open: list[Any] = []
        self._kinds = b""

    def add(self, piece: _Piece) -> bool:
        """Decode and add a piece; return False if its brackets do not match those that are open."""
        text = piece.json
        before, after, kept = self._kinds, b"", 0
        if not piece.is_last:
            found = _opened_after(text, before)
            if found is None:
                return False
            after, kept = found
        begin, end = (
            _begin(before, self._first),
            b"" if piece.is_last else _finish(after, self._last),
        )
        self.ahead = len(begin)
        value = self._decoder.decode(begin + text + end)
        if piece.long:
            value = _put(value, piece.long)
        levels = self._merge(value) if before else [value]
        if not before:
            self.root = value
        if after:
            self._follow(levels, after, max(kept, 1))
        self._kinds = after
        return True

    def _merge(self, value: Any) -> list[Any]:
        """Add the members of a piece to what is open; return what holds them at each level."""
        levels = []
        for opened in self._open:
            levels.append(value)
            if isinstance(value, list):
                inner = value[0]
                opened.extend(value[1:])
            else:
                inner = value.pop(self._first)
                opened.update(value)
            value = inner
        return levels

    def _follow(self, levels: list[Any], after: bytes, kept: int) -> None:
        """Note what is open after a piece, and remove the member that stood for what follows."""
        self._open = self._open[:kept] or [self.root]
        path = _path(levels[kept - 1], len(after) - kept, self._last)
        self._open += path[1:]
        for one in {id(one): one for one in (path[-1], self._open[-1])}.values():
            if isinstance(one, list):
                one.pop()
            else:
                one.pop(self._last, None)


def _begin(kinds: bytes, first: str) -> bytes:
    """Return what opens brackets and has a member in the innermost."""
    if not kinds:
        return b""
    name = b'{"%b":' % first.encode()
    opened = kinds.replace(b"{", name)
    return opened + b"0,"


def _finish(kinds: bytes, last_name: str) -> bytes:
    """Return a last member, and what closes brackets."""
    last = b'"%b"' % last_name.encode() + (b":0" if kinds.endswith(b"{") else b"")
    return (last if kinds else b"") + kinds[::-1].translate(_CLOSING)


def _opened_after(text: bytes, before: bytes) -> tuple[bytes, int] | None:
    """Return the brackets that are open after a text, and how many of those were open before it.

    None if brackets do not match.
    """
    parts = text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    left = b"".join(parts[::2]).translate(None, _NO_BRACKETS)
    for _ in range(16):
        fewer = left.replace(b"{}", b"").replace(b"[]", b"")
        if len(fewer) == len(left):
            break
        left = fewer
    opened, kept = bytearray(before), len(before)
    for one in left:
        if one in b"[{":
            opened.append(one)
        elif not opened or opened.pop() != one - 2:
            return None
        else:
            kept = min(kept, len(opened))
    return bytes(opened), kept


def _path(value: Any, depth: int, last: str) -> list[Any]:
    """Return a container and those within it, down to the one that is open at the end of a piece.

    In an object the last name may have been there before, so all its members are looked at.
    """
    path, ways = [value], [_inner(value)]
    while len(path) <= depth or not _is_end(path[-1], last):
        inner = next(ways[-1], None) if len(path) <= depth else None
        if inner is None:
            path.pop()
            ways.pop()
        else:
            path.append(inner)
            ways.append(_inner(inner))
    return path


def _inner(value: Any) -> Iterator[Any]:
    members = value[-1:] if isinstance(value, list) else reversed(value.values())
    return (one for one in members if isinstance(one, list | dict))


def _is_end(value: Any, last: str) -> bool:
    return value[-1:] == [last] if isinstance(value, list) else last in value


def _put(value: Any, long: dict[str, str]) -> Any:
    """Return a decoded piece with its long strings in place of their tokens."""
    if isinstance(value, str):
        return long.get(value, value)
    left = [value]
    while left:
        one = left.pop()
        if not isinstance(one, list | dict):
            continue
        for at, member in enumerate(one) if isinstance(one, list) else tuple(one.items()):
            if isinstance(member, str):
                if member in long:
                    one[at] = long[member]
            else:
                left.append(member)
    return value


# Encoding


def weight(value: Any, most: int = LIGHT) -> int:
    """Return about how much work it is to encode a value, up to `most`."""
    left, found = [value], 0
    while left and found < most:
        one = left.pop()
        found += 1
        if isinstance(one, str):
            found += len(one) // 64
        elif isinstance(one, int):
            found += one.bit_length() // 64
        elif isinstance(one, list | tuple | dict):
            if len(one) >= most:
                return most
            left += one.values() if isinstance(one, dict) else one
            if isinstance(one, dict):
                found += sum(map(len, one)) // 64
    return min(found, most)


def encoded(value: Any) -> Steps[bytearray]:
    """Encode a value as msgspec does; raises RecursionError if it is nested too deeply."""
    text = bytearray()  # which grows without a copy; to join many pieces takes a long step
    yield from _encode(value, text)
    return text


def _encode(value: Any, text: bytearray) -> Steps[None]:
    if isinstance(value, str) and len(value) > _SLICE:
        text += b'"'
        for at in range(0, len(value), _SLICE):
            text += msgspec.json.encode(value[at : at + _SLICE])[1:-1]
            yield
        text += b'"'
    elif not value or not isinstance(value, list | dict) or weight(value) < LIGHT:
        text += msgspec.json.encode(value)
    elif isinstance(value, list):
        yield from _encode_list(value, text)
    else:
        yield from _encode_object(value, text)


def _encode_list(members: list[Any], text: bytearray) -> Steps[None]:
    text += b"["
    few: list[Any] = []
    room = LIGHT
    for at, member in enumerate(members):
        room -= (needs := weight(member))
        heavy = needs >= LIGHT
        if not heavy:
            few.append(member)
        if few and (heavy or room <= 0 or at == len(members) - 1):
            text += msgspec.json.encode(few)[1:-1] + b","
            few, room = [], LIGHT
            yield
        if heavy:
            yield from _encode(member, text)
            text += b","
            room = LIGHT
    text[-1:] = b"]"


def _encode_object(members: dict[str, Any], text: bytearray) -> Steps[None]:
    text += b"{"
    few: dict[str, Any] = {}
    room = LIGHT
    for at, (name, member) in enumerate(members.items()):
        room -= (needs := weight(member)) + len(name) // 64
        heavy = needs >= LIGHT
        if not heavy:
            few[name] = member
        if few and (heavy or room <= 0 or at == len(members) - 1):
            text += msgspec.json.encode(few)[1:-1] + b","
            few, room = {}, LIGHT
            yield
        if heavy:
            text += msgspec.json.encode(name) + b":"
            yield from _encode(member, text)
            text += b","
            room = LIGHT
    text[-1:] = b"}"
