"""Large bodies, read piece by piece as they come: what is long is left out of what is parsed. Pure.

One call of a parser over 50 MB would hold every stream up. A skimmer takes steps of some 256 KiB
and keeps a short text that means the same: of JSON the long strings (images, audio) are cut after
their first characters and a mark stands for the rest, and where only the top level is looked at, a
mark stands for very many short values too; of a form only the heads of its parts stay.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from llamaswap_py.api.forms import MAX_PART_HEAD, MAX_VALUE
from llamaswap_py.api.kept import KeptText
from llamaswap_py.api.media_urls import Scan
from llamaswap_py.units import KIB
from llamaswap_py.wire.messages import Body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from llamaswap_py.api.kept import Cut

    _State: TypeAlias = Callable[["JsonSkimmer", bytes, int], int]

STEP: Final = 256 * KIB
"""Bytes that may be looked at without a pause; bodies up to this size are read in one go."""
_LONG: Final = 4 * KIB
"""Strings from this size on are cut."""
_PART: Final = MAX_PART_HEAD + MAX_VALUE + 4 * KIB
_QUOTE, _BACKSLASH = 0x22, 0x5C
_FAR: Final = 1 << 60

# Up to a string that is long, or does not end here: runs without an escape and escapes are few.
_OUTSIDE: Final = re.compile(
    rb'(?:[^"]++|"[^"\\]{0,4095}+(?:\\.[^"\\]{0,4095}+){0,64}+")*+', re.DOTALL
)
_INSIDE: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_UNESCAPED: Final = re.compile(rb'[^"\\]*+')
# Whole characters, no half of an escape or of a surrogate pair (RFC 8259 section 7): what comes
# first in a string says what it is (`data:image/png;base64,iVBOR…`), so it stays.
_FIRST: Final = re.compile(
    rb"(?>[\x20-\x5b\x5d-\x7f]|[\xc2-\xf4][\x80-\xbf]++"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|\\u[0-9a-fA-F]{4}|\\[^u]){96}+"
)


@dataclass(slots=True)
class Skim:
    """A body, and the short `text` to read in its place: the body itself where nothing was cut.

    `cuts` are what is missing, in order.
    """

    body: Body
    text: bytes
    mark: bytes = b""
    cuts: list[Cut] = field(default_factory=list)
    may_name_url: bool = False
    """Whether the body, of which all was looked at, may name a medium by a URL."""

    def place(self, at: int) -> int:
        """Return where in the body an offset in the text is."""
        ahead = 0
        for cut in self.cuts:
            if at < cut.where + cut.size:
                return cut.start if at > cut.where else at + ahead
            ahead += cut.end - cut.start - cut.size
        return at + ahead

    def lines(self, at: int) -> tuple[int, int]:
        """Return how many line ends come before an offset in the text, and where in the body the
        last of them is; -1 where none is."""
        kept = self.text.count(b"\n", 0, at)
        last = self.place(self.text.rfind(b"\n", 0, at))
        cuts = [cut for cut in self.cuts if cut.lines and cut.where < at]
        if cuts:
            last = max(last, self._last_line_end(cuts[-1]))
        return kept + sum(cut.lines for cut in cuts), last

    def _last_line_end(self, cut: Cut) -> int:
        end = cut.end
        for piece in reversed([*self._slices(cut.start, cut.end)]):
            if (at := bytes(piece).rfind(b"\n")) >= 0:
                return end - len(piece) + at
            end -= len(piece)
        return -1

    def restore(self, text: bytes) -> Body:
        """Return a text made of parts of this one as a body, with what its marks stand for."""
        if not self.cuts:
            return Body.of(text)
        pieces: list[bytes | memoryview] = []
        at = 0
        for found in re.finditer(re.escape(self.mark) + rb"(\d{1,9});", text):
            cut = self.cuts[int(found[1])]
            begin = found.start() - cut.lead
            pieces.append(text[at:begin])
            pieces += self._slices(cut.start, cut.end)
            at = begin + cut.size
        pieces.append(text[at:])
        return Body(_gathered(pieces), sum(map(len, pieces)))

    def _slices(self, start: int, end: int) -> Iterator[memoryview]:
        offset = 0
        for piece in self.body.pieces:
            if offset + len(piece) > start:
                yield memoryview(piece)[max(start - offset, 0) : end - offset]
            offset += len(piece)
            if offset >= end:
                return


def _gathered(pieces: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """Join small neighbours: each piece of a body is sent by itself."""
    found: list[bytes | memoryview] = []
    small: list[bytes | memoryview] = []
    size = 0
    for piece in pieces:
        if size + len(piece) > STEP and small:
            found.append(small[0] if len(small) == 1 else b"".join(small))
            small, size = [], 0
        small.append(piece)
        size += len(piece)
    if size:
        found.append(b"".join(small))
    return found


class JsonSkimmer:
    """Takes JSON in pieces. `mark` is text that no client can know; it stands in the cut strings.

    The skim of a text is JSON if and only if the text is, but for what stands in the cut parts of
    strings. `unescaped`: cut only what has no escapes, so that it may stand in a string within a
    string. `top_level_only`: who reads the text looks at the top level, and takes its values as
    they are; once much was kept, what lies deeper is cut, be it short.
    """

    def __init__(self, mark: str, *, unescaped: bool = False, top_level_only: bool = False) -> None:
        self._mark = mark.encode()
        self._unescaped = unescaped
        self._kept = KeptText(self._mark, shorten=top_level_only)
        self._keep = self._kept.keep
        self._taken = 0  # bytes of the body before `_rest`
        self._rest = b""  # an escape of which only the backslash is here
        self._begin = b""  # of a string that may become long
        self._cut_from = 0
        self._state: _State = JsonSkimmer._outside
        self._urls = Scan()

    def feed(self, piece: bytes) -> int:
        """Take the next piece; return the bytes that are kept until now."""
        for start in range(0, len(piece), STEP):
            new = piece[start : start + STEP]
            self._urls.feed(new)
            data = self._rest + new
            self._rest = b""
            at = 0
            while at < len(data):
                at = self._state(self, data, at)
            self._taken += len(data) - len(self._rest)
        return self._kept.size

    def finish(self, body: Body) -> Skim:
        """Return the skim of `body`, which was fed."""
        if self._state is JsonSkimmer._cutting:
            self._kept.cut(self._cut_from, self._taken)
        self._keep(self._begin + self._rest)
        return Skim(body, self._kept.value(), self._mark, self._kept.cuts, self._urls.found)

    def _outside(self, data: bytes, at: int) -> int:
        """Keep everything up to a string that is long, or may be."""
        end = _end_of(_OUTSIDE, data, at)
        self._keep(data[at:end])
        self._kept.shorten()
        if end == len(data):
            return end
        self._keep(b'"')
        self._state = JsonSkimmer._beginning
        return end + 1

    def _beginning(self, data: bytes, at: int) -> int:
        """Collect a string until it is long."""
        stop = min(len(data), at + _LONG - len(self._begin))
        end = _end_of(_INSIDE, data, at, stop)
        if end < stop and data[end] == _BACKSLASH and stop < len(data):
            end += 2
        self._begin += data[at:end]
        if end < stop and data[end] == _QUOTE:
            self._keep(self._begin)
            self._begin = b""
            return self._close(end)
        if len(self._begin) < _LONG:
            return end if end == len(data) else self._hold(data, end)
        begin, self._begin = self._begin, b""
        first = _FIRST.match(begin)
        if first is None or (self._unescaped and b"\\" in begin[first.end() :]):
            self._keep(begin)
            self._state = JsonSkimmer._keeping
        else:
            self._keep(begin[: first.end()])
            self._cut_from = self._taken + end - len(begin) + first.end()
            self._state = JsonSkimmer._cutting
        return end

    def _cutting(self, data: bytes, at: int) -> int:
        """Leave out what comes of a long string."""
        end = _end_of(_UNESCAPED if self._unescaped else _INSIDE, data, at)
        if end == len(data):
            return end
        if data[end] == _BACKSLASH and not self._unescaped:
            return self._hold(data, end)
        self._kept.cut(self._cut_from, self._taken + end)
        if data[end] == _QUOTE:
            return self._close(end)
        self._state = JsonSkimmer._keeping
        return end

    def _keeping(self, data: bytes, at: int) -> int:
        """Keep the rest of a long string of which nothing can be cut."""
        end = _end_of(_INSIDE, data, at)
        self._keep(data[at:end])
        if end == len(data):
            return end
        return self._close(end) if data[end] == _QUOTE else self._hold(data, end)

    def _close(self, at: int) -> int:
        self._keep(b'"')
        self._state = JsonSkimmer._outside
        return at + 1

    def _hold(self, data: bytes, at: int) -> int:
        """Leave a backslash to the next piece, which has what it escapes."""
        self._rest = data[at:]
        return len(data)


class FormSkimmer:
    """Takes a multipart body in pieces, and keeps of each part as much as a field may have.

    What `forms.multipart_field` finds in the skim's text is what it finds in the body.
    """

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"--" + boundary
        self._around = len(self._delimiter) + 4  # with the line end before, and what follows it
        self._text: list[bytes] = []
        self._rest = b""
        self._wanted = _PART
        self._size = 0

    def feed(self, piece: bytes) -> int:
        """Take the next piece; return the bytes that are kept until now."""
        for start in range(0, len(piece), STEP):
            data = self._rest + piece[start : start + STEP]
            at = 0
            while (found := data.find(self._delimiter, at)) >= 0:
                self._part(data, at, max(at, found - 2))
                # What stands before a delimiter is the end of its line, and no part of a value.
                self._text.append(data[max(at, found - 2) : found])
                at = found + len(self._delimiter)
                self._text.append(self._delimiter)
                self._wanted = _PART
            last = max(at, len(data) - self._around)
            self._part(data, at, last)
            self._rest = data[last:]
        return self._size

    def finish(self, body: Body) -> Skim:
        """Return the skim of `body`, which was fed; nothing can be restored from it."""
        self._text.append(self._rest)
        return Skim(body, b"".join(self._text))

    def _part(self, data: bytes, at: int, end: int) -> None:
        """Keep what is still wanted of a part."""
        kept = min(at + self._wanted, end)
        self._text.append(data[at:kept])
        self._size += kept - at
        self._wanted -= kept - at


def _end_of(pattern: re.Pattern[bytes], data: bytes, at: int, stop: int = _FAR) -> int:
    """Return where a pattern that also matches nothing stops to match."""
    found = pattern.match(data, at, stop)
    return at if found is None else found.end()
