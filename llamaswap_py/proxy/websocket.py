"""Closes a WebSocket that is relayed (RFC 6455); lswap needs no more of the protocol."""

from __future__ import annotations

from typing import Final

_FINAL_CLOSE: Final = 0x88
_LENGTH: Final = 0x7F
_TWO_BYTES: Final = 126


def close_frame(code: int) -> bytes:
    """Return a server's Close frame (section 5.5.1)."""
    return bytes((_FINAL_CLOSE, 2)) + code.to_bytes(2)


def ends_a_frame(data: bytes) -> bool:
    """Return whether a server's bytes, read from the start of a frame, end with a frame (5.2).

    Servers write whole frames. So the last bytes tell, in most cases, whether another frame may
    follow. If they do not begin with a frame, the result is almost certainly False.
    """
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            return False
        length, more = data[at + 1] & _LENGTH, 0
        if length >= _TWO_BYTES:
            more = 2 if length == _TWO_BYTES else 8
            length = int.from_bytes(data[at + 2 : at + 2 + more])
        at += 2 + more + length
    return at == len(data)
