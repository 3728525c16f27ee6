"""Where one is in a JSON text, and what a piece of it does to that. Pure.

Pieces are checked by the parser that reads the whole later (msgspec), so both agree on what JSON
is; brackets are counted only where that does not already tell where a piece ends.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

BELOW_MEMBERS: Final = 2
"""Brackets that are open below the members of the top level."""
_DEEPEST: Final = 64
_MOST_PASSES: Final = 16
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_CLOSING: Final = bytes.maketrans(b"[{", b"]}")
_CHECK: Final = msgspec.json.Decoder(msgspec.Raw)


class Place(NamedTuple):
    """Between two tokens: `last` is the one before, of `[{,:`.

    `open` are the brackets that are open, the outermost first.
    """

    open: bytes
    last: bytes


START: Final = Place(b"", b"")
"""Before the first token."""


def last_place(text: bytes) -> int:
    """Return the offset of the last place in a text that ends outside of any string, or 0.

    It is not before more than one string: such a text is not JSON.
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
    """Return where a string begins, by its last quotation mark: no other but escaped ones."""
    at = end
    while (at := text.rfind(b'"', 0, at)) > 0:
        slash = at
        while text[slash - 1 : slash] == b"\\":
            slash -= 1
        if (at - slash) % 2 == 0:
            break
    return max(at, 0)


def place_after(text: bytes, before: Place) -> Place | None:
    """Return the place at the end of `text`, which stands at `before`, by its brackets alone.

    None: brackets that do not belong together, or nest too deeply to follow them.
    """
    parts = text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    if len(parts) % 2 == 0:
        return None  # it ends within a string
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
    """Tell whether `text` is what may stand between two places, all of it below one member's value.

    It is read within that value and nothing around it, so it cannot end it unseen.
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
    """Return a short text that leads from one place to another, and begins with a string.

    Both places must be below the value of the same member.
    """
    key = before.last == b"{" or (before.last == b"," and before.open[-1:] == b"{")
    text = string + (b":0" if key else b"") + _closers(before.open[BELOW_MEMBERS:]) + b","
    if len(after.open) > BELOW_MEMBERS:
        text += b'"":' if after.open[BELOW_MEMBERS - 1 :].startswith(b"{") else b""
        return text + _from_outside(after, BELOW_MEMBERS)
    return text + (b'"":' if after.last == b":" else b"")


def _from_outside(place: Place, depth: int) -> bytes:
    """Return a shortest text that opens the brackets of a place from a depth on, and is there."""
    inner = place.open[depth:]
    opened = inner[:-1].replace(b"{", b'{"":') + inner[-1:]
    if place.last == b":":
        return opened + b'"":'
    return opened + (_member(place) + b"," if place.last == b"," else b"")


def _to_outside(place: Place, depth: int) -> bytes:
    """Return a shortest text that goes on at a place, and closes its brackets down to a depth."""
    ends = {b",": _member(place), b":": b"0"}
    return ends.get(place.last, b"") + _closers(place.open[depth:])


def _member(place: Place) -> bytes:
    return b'"":0' if place.open.endswith(b"{") else b"0"


def _closers(opened: bytes) -> bytes:
    return opened[::-1].translate(_CLOSING)
