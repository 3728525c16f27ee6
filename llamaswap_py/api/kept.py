"""What is kept of a large body while it comes, and what stands there for the rest. Pure.

A long string is left out when it ends. What is short stays at first; of that, once it is much, all
that lies below the top level's members is left out too, piece by piece.
"""

from __future__ import annotations

import io
from typing import Final, NamedTuple

from llamaswap_py.api import nesting
from llamaswap_py.api.nesting import START, Place
from llamaswap_py.units import KIB, MIB

_MUCH: Final = 512 * KIB
"""Bytes that are kept before any of them is looked at once more."""
_MORE: Final = 64 * KIB
"""Bytes after which that is done again."""
_TOO_MUCH: Final = MIB
"""Bytes that are not looked at once more: it would take too long for one turn of the loop."""
_NEVER: Final = 1 << 60


class Cut(NamedTuple):
    """What was left out: the body's bytes from `start` to `end`, with so many ends of `lines`.

    In the text `size` bytes at `where` stand for them, of which the first `lead` come before the
    mark.
    """

    where: int
    size: int
    start: int
    end: int
    lead: int = 0
    lines: int = 0


def mark_of(mark: bytes, number: int) -> bytes:
    """Return what stands for a cut, by its number."""
    return b"%b%d;" % (mark, number)


class KeptText:
    """Grows with what is kept of a body, and shrinks where `shorten` says that it may.

    A buffer that grows: no turn of the event loop has to join it.
    """

    def __init__(self, mark: bytes, *, shorten: bool) -> None:
        self.cuts: list[Cut] = []
        self._mark = mark
        self._text = io.BytesIO()
        self._place = START
        """At `_done`: all before it was looked at, with so many cuts."""
        self._done = 0
        self._done_in_body = 0
        self._cuts_done = 0
        self._run: Place | None = None
        """Where the last of these cuts begins, if it ends at `_done` and may grow."""
        self._due = _MUCH if shorten else _NEVER

    @property
    def size(self) -> int:
        """Bytes of the text until now."""
        return self._text.tell()

    def value(self) -> bytes:
        """Return the text."""
        return self._text.getvalue()

    def keep(self, data: bytes) -> None:
        """Add what stays."""
        self._text.write(data)

    def cut(self, start: int, end: int) -> None:
        """Add a mark for bytes of the body, within a string."""
        mark = mark_of(self._mark, len(self.cuts))
        self.cuts.append(Cut(self._text.tell(), len(mark), start, end))
        self._text.write(mark)

    def shorten(self) -> None:
        """Leave out what nobody looks at, if much was kept. The text ends outside of any string."""
        if self._text.tell() - self._done < self._due:
            return
        with self._text.getbuffer() as text:
            new = bytes(text[self._done :])
        size = nesting.last_place(new)
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
        """Return the place after a piece, if it can be told, and whether nobody looks at it."""
        before = self._place
        likely = Place(before.open, piece[-1:])  # most often what is open is what was
        if nesting.leads(piece, before, likely):
            return likely, True
        after = nesting.place_after(piece, before)
        return after, after is not None and nesting.leads(piece, before, after)

    def _settle(self, piece: bytes, after: Place, *, unseen: bool) -> None:
        """Keep a piece, or leave it out, and go on behind it."""
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
        """Put a stand-in where a piece was, or was left out up to here."""
        where, start, lines = self._done, self._done_in_body, 0
        if self._run is None:
            self._run = self._place
        else:
            self._cuts_done -= 1
            where, start, lines = (last := self.cuts[self._cuts_done]).where, last.start, last.lines
        lines += piece.count(b"\n") if b"\n" in piece else 0
        string = b'"%b"' % mark_of(self._mark, self._cuts_done)
        text = nesting.stand_in(self._run, after, string)
        # What was cut within it goes with it.
        self.cuts[self._cuts_done :] = [Cut(where, len(text), start, end, 1, lines)]
        self._text.seek(where)
        self._text.truncate()
        self._text.write(text)
        self._done = self._text.tell()
