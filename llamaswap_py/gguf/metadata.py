"""The key-value part of a GGUF header (ggml/include/gguf.h, "GGUF file format").

Vocabularies hold hundreds of thousands of strings that nobody here needs: of a long array only the
length is kept. Counts and lengths are checked against the bytes that are left before anything is
allocated for them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from llamaswap_py.gguf.cursor import Cursor
from llamaswap_py.gguf.errors import GgufError

MAX_KEYS: Final = 65536
MAX_KEY_LENGTH: Final = 65535
MAX_STRING: Final = 16 * 1024**2
MAX_ELEMENTS: Final = 2**24
KEPT_ELEMENTS: Final = 4096
"""Longer arrays than any list of layers are vocabularies."""
MAX_DEPTH: Final = 4

_STRING: Final = 8
_ARRAY: Final = 9
_BOOL: Final = 7
_NUMBERS: Final[dict[int, str]] = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "B",
    10: "Q",
    11: "q",
    12: "d",
}


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """An array; `values` is None where only its length was kept."""

    length: int
    values: tuple[int | float | bool, ...] | None = None


Value = int | float | bool | str | ArrayInfo


def read_metadata(cursor: Cursor, keys: int) -> dict[str, Value]:
    """Read `keys` pairs; raises GgufError."""
    if keys > MAX_KEYS:
        raise GgufError(f"claims {keys:,} keys of metadata, more than any model has")
    found: dict[str, Value] = {}
    for number in range(keys):
        key = read_string(cursor, f"metadata key {number}", MAX_KEY_LENGTH)
        if key in found:
            raise GgufError(f"has the key {key} twice")
        kind = int(cursor.number("I", f"the type of {key}"))
        found[key] = _read_value(cursor, kind, key)
    return found


def read_string(cursor: Cursor, what: str, limit: int = MAX_STRING) -> str:
    """Read a length and that many bytes of UTF-8; odd bytes are replaced."""
    length = cursor.count(f"the length of {what}")
    if length > limit:
        raise GgufError(f"{what} claims to be {length:,} bytes long")
    return cursor.take(length, what).decode(errors="replace")


def _read_value(cursor: Cursor, kind: int, key: str) -> Value:
    if kind == _STRING:
        return read_string(cursor, f"the value of {key}")
    if kind == _ARRAY:
        return _read_array(cursor, key, 1)
    form = _NUMBERS.get(kind)
    if form is None:
        raise GgufError(f"{key} has the unknown type {kind}")
    value = cursor.number(form, f"the value of {key}")
    return bool(value) if kind == _BOOL else value


def _read_array(cursor: Cursor, key: str, depth: int) -> ArrayInfo:
    kind = int(cursor.number("I", f"the element type of {key}"))
    length = cursor.count(f"the length of {key}")
    if length > MAX_ELEMENTS:
        raise GgufError(f"{key} claims {length:,} elements")
    if kind == _STRING:
        _skip_strings(cursor, length, key)
        return ArrayInfo(length)
    if kind == _ARRAY:
        if depth == MAX_DEPTH:
            raise GgufError(f"{key} nests arrays {depth} deep")
        # Each of them is at least its type and its length: that many must still be in the file.
        if length * 12 > cursor.left:
            raise GgufError(f"{key} claims {length:,} arrays, more than the file can hold")
        for _ in range(length):
            _read_array(cursor, key, depth + 1)
        return ArrayInfo(length)
    form = _NUMBERS.get(kind)
    if form is None:
        raise GgufError(f"{key} has elements of the unknown type {kind}")
    size = length * struct.calcsize(form)
    if length > KEPT_ELEMENTS:
        cursor.skip(size, f"the elements of {key}")
        return ArrayInfo(length)
    values = struct.unpack(f"<{length}{form}", cursor.take(size, f"the elements of {key}"))
    return ArrayInfo(length, tuple(map(bool, values)) if kind == _BOOL else values)


def _skip_strings(cursor: Cursor, length: int, key: str) -> None:
    if length * 8 > cursor.left:
        raise GgufError(f"{key} claims {length:,} strings, more than the file can hold")
    what = f"the elements of {key}"
    for _ in range(length):
        cursor.skip(cursor.count(what), what)
