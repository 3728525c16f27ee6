"""The `context` of /api/generate: a conversation encoded as whole numbers. Pure.

A client gets it with an answer, and sends it back with the next request. In Ollama it is a list of
tokens. Here it has the compressed messages. So templates, thinking and images still work, and the
server need not store conversations.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from llamaswap_py.errors import ApiError
from llamaswap_py.units import KIB, MIB

_MARK: Final = 0x6C737701
"""The first number; it is larger than any token, so tokens of another server are recognized."""
_STEP: Final = 3
"""The number of bytes in each number."""
_LONG: Final = 64 * KIB
"""Above so many bytes good compression takes too long for one turn of the event loop."""
LONGEST: Final = 2 * MIB
"""The most characters of a conversation that can become a `context`."""
_MOST: Final = 8 * MIB
"""The most bytes of an uncompressed conversation."""
_MOST_LISTS: Final = 200_000
"""The most opening brackets in it, counting those in its texts."""


class Said(msgspec.Struct, frozen=True, array_like=True):
    """A message of a conversation, without its images."""

    role: str
    content: str


_DECODER: Final = msgspec.json.Decoder(list[Said])


def write_context(talk: Sequence[Said]) -> list[int]:
    """Return a conversation as numbers."""
    text = msgspec.json.encode(talk)
    packed = zlib.compress(text, 1 if len(text) > _LONG else -1)
    pieces = (packed[at : at + _STEP] for at in range(0, len(packed), _STEP))
    return [_MARK, len(packed), *(int.from_bytes(piece, "big") for piece in pieces)]


def read_context(numbers: Any) -> list[Said]:
    """Return the conversation of a `context`; raises ApiError `bad_request`."""
    if not numbers:
        return []
    try:
        return _DECODER.decode(_unpacked(numbers))
    except (ValueError, TypeError, OverflowError, zlib.error):
        raise ApiError(
            "bad_request",
            "this `context` was not made by lswap, which cannot read tokens of another server",
            remedy="leave `context` out, or send the conversation to /api/chat",
            param="context",
        ) from None


def _unpacked(numbers: Any) -> bytes:
    mark, length, *pieces = numbers
    if mark != _MARK or len(pieces) != -(-length // _STEP):
        raise ValueError
    packed = b"".join(piece.to_bytes(_STEP, "big") for piece in pieces[:-1])
    packed += pieces[-1].to_bytes(length - len(packed), "big")
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(packed, _MOST)
    if not unpacker.eof or text.count(b"[") > _MOST_LISTS:
        raise ValueError
    return text
