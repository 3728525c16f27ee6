"""Write GGUF headers by hand, good ones and bad ones."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TYPES = {"u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"), "bool": (7, "B"), "u64": (10, "Q")}


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, value: Any) -> bytes:
    """Encode a key and a value: str, bool, int, float, or a list of one of these."""
    return text(key) + _value(value)


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        first = value[0] if value else 0
        kind = 8 if isinstance(first, str) else TYPES[_name(first)][0]
        items = b"".join(_plain(each) for each in value)
        return struct.pack("<IIQ", 9, kind, len(value)) + items
    kind = 8 if isinstance(value, str) else TYPES[_name(value)][0]
    return struct.pack("<I", kind) + _plain(value)


def _name(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    return "f32" if isinstance(value, float) else "u32"


def _plain(value: Any) -> bytes:
    if isinstance(value, str):
        return text(value)
    return struct.pack("<" + TYPES[_name(value)][1], value)


def tensor(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def header(
    pairs: Mapping[str, Any],
    tensors: Sequence[bytes] = (),
    *,
    version: int = 3,
    data: int = 0,
    alignment: int = 32,
) -> bytes:
    """Return a whole file with `data` bytes of zeros for weights."""
    body = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    body += b"".join(pair(key, value) for key, value in pairs.items())
    body += b"".join(tensors)
    return body + bytes(-len(body) % alignment) + bytes(data)


def reader(content: bytes) -> Callable[[int, int], bytes]:
    return lambda at, count: content[at : at + count]
