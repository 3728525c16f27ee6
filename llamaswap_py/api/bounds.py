"""How much JSON is decoded at once: the event loop does nothing else meanwhile.

Decoding makes an object of every value, about a millisecond for 4000 of them. Bytes alone bound
that badly: a body of 60 MB may hold one text, or 20 million empty lists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from llamaswap_py.errors import ApiError
from llamaswap_py.proxy.messages import BodyTooLarge
from llamaswap_py.units import KIB, MIB

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call

CONTROL: Final = MIB
"""Bytes of a body that only names models and such."""
_CONTROL_VALUES: Final = 50_000
TEXTS: Final = 16 * MIB
"""Bytes that are decoded of a request that is translated; its images are not among them."""
VALUES: Final = 250_000
DECIMALS: Final = 20_000
"""Numbers with a point or an exponent: each costs as much as ten other values."""
SKIPPED: Final = 600_000
"""Of a request that is passed on: no object is made of them but of its members."""
FREE: Final = 64 * KIB
"""Bytes of a body up to which a route that is free stays so."""


async def read_control(call: Call) -> bytes:
    """Return the body of a request that is no model's; raises ApiError `body_too_large`.

    A large one counts against its key's `max_in_flight`, also where its route does not.
    """
    length = call.exchange.head.content_length
    if not call.counted and (length is None or length > FREE):
        call.count()
    limit = min(CONTROL, call.supervisor.config.limits.body)
    try:
        body = await call.exchange.read_body(limit)
    except BodyTooLarge:
        raise _too_large(f"{limit} bytes") from None
    text = body.join()
    check_values(text, _CONTROL_VALUES)
    return text


def check_text(text: bytes) -> None:
    """Raise ApiError `body_too_large` for a text that is too much for one turn of the loop."""
    if len(text) > TEXTS:
        raise _too_large(f"{TEXTS} bytes, images aside")
    check_values(text, VALUES)


def decode_large(text: bytes) -> Any:
    """Decode JSON; raises ApiError `body_too_large` for too many decimals, and msgspec's errors."""
    left = DECIMALS

    def number(digits: str) -> float:
        nonlocal left
        left -= 1
        if left < 0:
            raise _too_large(f"{DECIMALS} numbers with a point or an exponent")
        return float(digits)

    return msgspec.json.Decoder(float_hook=number).decode(text)


def check_values(text: bytes, most: int) -> None:
    """Raise ApiError `body_too_large` for JSON that may hold more values than `most`."""
    if len(text) > most and text.count(b",") + text.count(b"[") + text.count(b"{") > most:
        raise _too_large(f"{most} commas and opening brackets")


def _too_large(limit: str) -> ApiError:
    return ApiError(
        "body_too_large",
        f"the request body is larger than the limit of this route: {limit}",
        remedy="send less at a time",
    )
