"""Shortens large bodies, piece by piece as they arrive, to a text that is quick to parse. Pure.

To parse 50 MB in one call would stop all streams meanwhile. A skimmer works in steps of about 256
KiB, and collects a short text with the same meaning. From a form it keeps only the heads of the
parts. In JSON it cuts long strings (images, audio) after their first characters, and puts a mark in
place of the rest. If only the top level of the JSON is needed, a mark can also replace very many
short values: once the text is large, all that lies below the members of the top level is left out.

Pieces are checked by the parser that later reads the text (msgspec), so both agree on what JSON is.
Brackets are counted only if this check does not tell where a piece ends.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from llamaswap_py.api.body import Cut, Skim
from llamaswap_py.api.media_urls import Scan
from llamaswap_py.api.multipart import MAX_PART_HEAD, MAX_VALUE
from llamaswap_py.proxy.messages import Body
from llamaswap_py.units import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    _State: TypeAlias = Callable[["JsonSkimmer", bytes, int], int]

STEP: Final = 256 * KIB
"""The most bytes to process without a pause; a body up to this size is read in one step."""
BELOW_MEMBERS: Final = 2
"""The number of open brackets below which the values of top-level members lie."""
_DEEPEST: Final = 64
_MOST_PASSES: Final = 16
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_CLOSING: Final = bytes.maketrans(b"[{", b"]}")
_CHECK: Final = msgspec.json.Decoder(msgspec.Raw)
_MUCH: Final = 512 * KIB
"""The size of the text, in bytes, at which it is shortened for the first time."""
_MORE: Final = 64 * KIB
"""The bytes that are added before it is shortened again."""
_TOO_MUCH: Final = MIB
"""Above so many bytes it is not shortened, which would take too long for one turn of the loop."""
_NEVER: Final = 1 << 60
_LONG: Final = 4 * KIB
"""The size in bytes from which strings are cut."""
_PART: Final = MAX_PART_HEAD + MAX_VALUE + 4 * KIB
_QUOTE, _BACKSLASH = 0x22, 0x5C
_FAR: Final = 1 << 60
# Matches up to a string that is long or incomplete, or that has many escapes.
_OUTSIDE: Final = re.compile(
    rb'(?:[^"]++|"[^"\\]{0,4095}+(?:\\.[^"\\]{0,4095}+){0,64}+")*+', re.DOTALL
)
_INSIDE: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_UNESCAPED: Final = re.compile(rb'[^"\\]*+')
# The first characters of a string, which tell its type (`data:image/png;base64,iVBOR…`), so they
# are kept. It never splits an escape or a surrogate pair (RFC 8259 section 7).
_FIRST: Final = re.compile(
    rb"(?>[\x20-\x5b\x5d-\x7f]|[\xc2-\xf4][\x80-\xbf]++"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|\\u[0-9a-fA-F]{4}|\\[^u]){96}+"
)


class Place(NamedTuple):
    """A position between two tokens of JSON: `last` is the token before it, one of `[{,:`.

    `open` are the open brackets, the outermost first.
    """

    open: bytes
    last: bytes


START: Final = Place(b"", b"")
"""The position before the first token."""


def last_place(text: bytes) -> int:
    """Return the offset of the last place in a text that ends outside of strings, or 0.

    At most one string can follow that place: two strings in a row are not JSON.
    """
    end = len(text)
    for _ in range(2):
        quote = text.rfind(b'"', 0, end)
        found = 1 + max(text.rfind(token, quote + 1, end) for token in (b",", b":", b"[", b"{"))
        if found or quote < 0:
            return found
        end = _begin_of_string(text, quote)
    return 0


def _begin_of_string(text: bytes, end: int) -> int:
    """Return where a string begins, given the offset of its closing quotation mark."""
    at = end
    while (at := text.rfind(b'"', 0, at)) > 0:
        slash = at
        while text[slash - 1 : slash] == b"\\":
            slash -= 1
        if (at - slash) % 2 == 0:
            break
    return max(at, 0)


def place_after(text: bytes, before: Place) -> Place | None:
    """Return the place at the end of `text`, which begins at `before`, from its brackets alone.

    None if brackets do not match, or nest too deeply.
    """
    parts = text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    if len(parts) % 2 == 0:
        return None  # the text ends within a string
    left = b"".join(parts[::2]).translate(None, _NO_BRACKETS)
    for _ in range(_MOST_PASSES):
        fewer = left.replace(b"{}", b"").replace(b"[]", b"")
        if len(fewer) == len(left):
            break
        left = fewer
    opened = left.lstrip(b"]}")
    closed = len(left) - len(opened)
    kept = len(before.open) - closed
    if kept < 0 or left[:closed] != _closers(before.open[kept:]) or opened.strip(b"[{"):
        return None
    found = before.open[:kept] + opened
    return Place(found, text[-1:]) if len(found) <= _DEEPEST else None


def leads(text: bytes, before: Place, after: Place) -> bool:
    """Return whether `text` may stand between two places, wholly within one member's value.

    The text is parsed inside that value alone, so it cannot close the value unnoticed.
    """
    if len(before.open) < BELOW_MEMBERS:
        return False
    whole = (_from_outside(before, 1), text, _to_outside(after, 1))
    try:
        _CHECK.decode(b"".join(whole))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def stand_in(before: Place, after: Place, string: bytes) -> bytes:
    """Return a short JSON text that leads from one place to another, and begins with `string`.

    Both places must be below the value of the same member.
    """
    key = before.last == b"{" or (before.last == b"," and before.open[-1:] == b"{")
    text = string + (b":0" if key else b"") + _closers(before.open[BELOW_MEMBERS:]) + b","
    if len(after.open) > BELOW_MEMBERS:
        text += b'"":' if after.open[BELOW_MEMBERS - 1 :].startswith(b"{") else b""
        return text + _from_outside(after, BELOW_MEMBERS)
    return text + (b'"":' if after.last == b":" else b"")


def _from_outside(place: Place, depth: int) -> bytes:
    """Return the shortest text that opens the brackets of a place, from `depth` on."""
    inner = place.open[depth:]
    opened = inner[:-1].replace(b"{", b'{"":') + inner[-1:]
    if place.last == b":":
        return opened + b'"":'
    return opened + (_member(place) + b"," if place.last == b"," else b"")


def _to_outside(place: Place, depth: int) -> bytes:
    """Return the shortest text that follows a place, and closes its brackets down to `depth`."""
    ends = {b",": _member(place), b":": b"0"}
    return ends.get(place.last, b"") + _closers(place.open[depth:])


def _member(place: Place) -> bytes:
    return b'"":0' if place.open.endswith(b"{") else b"0"


def _closers(opened: bytes) -> bytes:
    return opened[::-1].translate(_CLOSING)


def mark_of(mark: bytes, number: int) -> bytes:
    """Return the mark that stands for the cut with this number."""
    return b"%b%d;" % (mark, number)


class KeptText:
    """The text that is kept of a body; with `shorten` it can also become shorter again.

    It is one growing buffer, because to join many pieces would take a long turn of the event loop.
    """

    def __init__(self, mark: bytes, *, shorten: bool) -> None:
        self.cuts: list[Cut] = []
        self._mark = mark
        self._text = io.BytesIO()
        self._place = START
        """The place at `_done`; the text before it has been processed, with `_cuts_done` cuts."""
        self._done = 0
        self._done_in_body = 0
        self._cuts_done = 0
        self._run: Place | None = None
        """The place where the last of these cuts begins, if it ends at `_done` and may grow."""
        self._due = _MUCH if shorten else _NEVER

    @property
    def size(self) -> int:
        """The size of the text so far, in bytes."""
        return self._text.tell()

    def value(self) -> bytes:
        """Return the text."""
        return self._text.getvalue()

    def keep(self, data: bytes) -> None:
        """Add bytes to the text."""
        self._text.write(data)

    def cut(self, start: int, end: int) -> None:
        """Add a mark for bytes of the body that are within a string."""
        mark = mark_of(self._mark, len(self.cuts))
        self.cuts.append(Cut(self._text.tell(), len(mark), start, end))
        self._text.write(mark)

    def shorten(self) -> None:
        """Cut values below the top level, if the text is large. It must not end in a string."""
        if self._text.tell() - self._done < self._due:
            return
        with self._text.getbuffer() as text:
            new = bytes(text[self._done :])
        size = last_place(new)
        if not size or (self.cuts and self.cuts[-1].where >= self._done + size):
            self._due = len(new) + _MORE if len(new) < _TOO_MUCH else _NEVER
            return
        piece = new[:size]
        after, unseen = self._look_at(piece)
        if after is None:
            self._due = _NEVER
            return
        self._due = _MORE
        self._settle(piece, after, unseen=unseen)
        if unseen:
            self._text.write(new[size:])

    def _look_at(self, piece: bytes) -> tuple[Place | None, bool]:
        """Return the place after a piece, None if unknown, and whether the piece may be cut."""
        before = self._place
        likely = Place(before.open, piece[-1:])  # most often the same brackets are open
        if leads(piece, before, likely):
            return likely, True
        after = place_after(piece, before)
        return after, after is not None and leads(piece, before, after)

    def _settle(self, piece: bytes, after: Place, *, unseen: bool) -> None:
        """Keep a piece, or cut it if it is `unseen`, and continue after it."""
        within = self.cuts[self._cuts_done :]
        end = self._done_in_body + len(piece)
        end += sum(cut.end - cut.start - cut.size for cut in within)
        if unseen:
            self._leave_out(piece, after, end)
        else:
            self._run = None
            self._done += len(piece)
        self._place, self._done_in_body = after, end
        self._cuts_done = len(self.cuts)

    def _leave_out(self, piece: bytes, after: Place, end: int) -> None:
        """Replace a piece with a stand-in, or extend the last cut by the piece."""
        where, start, lines = self._done, self._done_in_body, 0
        if self._run is None:
            self._run = self._place
        else:
            self._cuts_done -= 1
            where, start, lines = (last := self.cuts[self._cuts_done]).where, last.start, last.lines
        lines += piece.count(b"\n") if b"\n" in piece else 0
        string = b'"%b"' % mark_of(self._mark, self._cuts_done)
        text = stand_in(self._run, after, string)
        # The cuts within the piece are now part of this cut.
        self.cuts[self._cuts_done :] = [Cut(where, len(text), start, end, 1, lines)]
        self._text.seek(where)
        self._text.truncate()
        self._text.write(text)
        self._done = self._text.tell()


class JsonSkimmer:
    """Skims JSON in pieces. `mark` is a text that clients cannot know; it replaces cut parts.

    The skim is JSON if and only if the body is, except for mistakes inside the cut parts of
    strings. `unescaped`: cut only parts without escapes, so that they may stand in a string within
    a string. `top_level_only`: the caller needs only the members of the top level; once the text is
    large, values below them are cut even if they are short.
    """

    def __init__(self, mark: str, *, unescaped: bool = False, top_level_only: bool = False) -> None:
        self._mark = mark.encode()
        self._unescaped = unescaped
        self._kept = KeptText(self._mark, shorten=top_level_only)
        self._keep = self._kept.keep
        self._taken = 0  # bytes of the body before `_rest`
        self._rest = b""  # the backslash of an escape that continues in the next piece
        self._begin = b""  # the begin of a string that may become long
        self._cut_from = 0
        self._state: _State = JsonSkimmer._outside
        self._urls = Scan()

    def feed(self, piece: bytes) -> int:
        """Take the next piece; return the size of the text so far, in bytes."""
        for start in range(0, len(piece), STEP):
            new = piece[start : start + STEP]
            self._urls.feed(new)
            data = self._rest + new
            self._rest = b""
            at = 0
            while at < len(data):
                at = self._state(self, data, at)
            self._taken += len(data) - len(self._rest)
        return self.size

    @property
    def size(self) -> int:
        """The size of the text so far, in bytes."""
        return self._kept.size

    def finish(self, body: Body) -> Skim:
        """Return the skim of `body`, all of which has been fed."""
        if self._state is JsonSkimmer._cutting:
            self._kept.cut(self._cut_from, self._taken)
        self._keep(self._begin + self._rest)
        return Skim(body, self._kept.value(), self._mark, self._kept.cuts, self._urls.found)

    def _outside(self, data: bytes, at: int) -> int:
        """Keep all bytes up to a string that is long, or may become long."""
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
        """Cut the rest of a long string."""
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
        """Keep the rest of a long string that cannot be cut."""
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
        """Keep a backslash for the next piece, which has the character that it escapes."""
        self._rest = data[at:]
        return len(data)


class FormSkimmer:
    """Skims a multipart body in pieces, and keeps of each part as much as a field may have.

    `multipart_field` finds the same in the skim's text as in the body.
    """

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"--" + boundary
        self._around = len(self._delimiter) + 4  # with the line end before it, and the text after
        self._text: list[bytes] = []
        self._rest = b""
        self._wanted = _PART
        self.size = 0
        """The size of the text so far, in bytes."""

    def feed(self, piece: bytes) -> int:
        """Take the next piece; return the size of the text so far, in bytes."""
        for start in range(0, len(piece), STEP):
            data = self._rest + piece[start : start + STEP]
            at = 0
            while (found := data.find(self._delimiter, at)) >= 0:
                self._part(data, at, max(at, found - 2))
                # Before a delimiter comes a line end, which does not belong to the value.
                self._text.append(data[max(at, found - 2) : found])
                at = found + len(self._delimiter)
                self._text.append(self._delimiter)
                self._wanted = _PART
            last = max(at, len(data) - self._around)
            self._part(data, at, last)
            self._rest = data[last:]
        return self.size

    def finish(self, body: Body) -> Skim:
        """Return the skim of `body`, all of which has been fed; it cannot restore anything."""
        self._text.append(self._rest)
        return Skim(body, b"".join(self._text))

    def _part(self, data: bytes, at: int, end: int) -> None:
        """Keep the bytes of a part that are still wanted."""
        kept = min(at + self._wanted, end)
        self._text.append(data[at:kept])
        self.size += kept - at
        self._wanted -= kept - at


def _end_of(pattern: re.Pattern[bytes], data: bytes, at: int, stop: int = _FAR) -> int:
    """Return where the match of a pattern ends that may match the empty text."""
    found = pattern.match(data, at, stop)
    return at if found is None else found.end()
