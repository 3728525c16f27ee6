"""Reading the body of a request, in steps that hold no other request up.

A large body is cut while it comes (large_body.py), and JSON is decoded only up to a bound, because
the event loop does nothing else meanwhile. Decoding makes an object of every value, about a
millisecond for 4000 of them. Bytes alone bound that badly: a body of 60 MB may hold one text, or
20 million empty lists.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llamaswap_py.api.body import FORM, looks_like_json
from llamaswap_py.api.large_body import STEP, FormSkimmer, JsonSkimmer
from llamaswap_py.api.media_urls import holds, may_name_url, refused
from llamaswap_py.api.multipart import parameters
from llamaswap_py.errors import ApiError
from llamaswap_py.proxy.messages import BodyTooLarge, tokens
from llamaswap_py.units import KIB, MIB

if TYPE_CHECKING:
    from llamaswap_py.api.body import Skim
    from llamaswap_py.api.request import Call, Route
    from llamaswap_py.proxy.messages import Body, RequestHead

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
_MARK: Final = f"lswap-{secrets.token_hex(12)}-"
"""Stands for what was cut; a client cannot know it."""
_BEFORE_JSON: Final = b" \t\r\n\xef\xbb\xbf"
"""Blanks, and the bytes of a byte order mark."""


def refuse_coded_body(head: RequestHead, route: Route) -> None:
    """Raise ApiError `unsupported_encoding` for a body that is compressed, and is to be read here.

    Below /upstream it goes to the child as it is.
    """
    coding = head.get(b"content-encoding")
    if coding is None or head.content_length == 0 or route.as_it_is:
        return
    if any(one != b"identity" for one in tokens(coding)):
        shown = coding[:80].decode("latin-1")
        raise ApiError(
            "unsupported_encoding",
            f"the body has Content-Encoding: {shown}, which is not read here",
            remedy="send it without compression, and without that header",
        )


async def read_control(call: Call) -> bytes:
    """Return the body of a request that lswap itself answers; raises ApiError `body_too_large`.

    A request with a large body counts against its key's `max_in_flight`, even if its route is free.
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


async def read_skimmed(
    call: Call, content_type: bytes, limit: int, *, translated: bool = False
) -> tuple[Body, Skim | None]:
    """Return a body, and of a large one what is to be read in its place.

    `translated`: all of it will be read, and its texts may go into other texts.
    Raises what `Exchange.read_body` does.
    """
    length = call.exchange.head.content_length
    if length is not None and length <= STEP:
        small = call.exchange.small_body(limit)
        return small or await call.exchange.read_body(limit), None
    kind = content_type.partition(b";")[0].strip().lower()
    skimmer: FormSkimmer | JsonSkimmer
    if kind == b"multipart/form-data":
        skimmer = FormSkimmer(parameters(content_type).get(b"boundary", b""))
    else:
        skimmer = JsonSkimmer(_MARK, unescaped=translated, top_level_only=not translated)

    def scan(piece: bytes) -> int:
        # What is too much is refused once it is here; until then no more of it is kept.
        return skimmer.size if translated and skimmer.size > TEXTS else skimmer.feed(piece)

    body = await call.exchange.read_body(limit, scan)
    if body.size <= STEP:
        return body, None
    if translated:
        _check_size(skimmer.size)
    skim = skimmer.finish(body)
    await asyncio.sleep(0)  # what is parsed next may be long still: many short strings
    if kind == FORM and not looks_like_json(skim.text):
        return body, None
    return body, skim


def check_text(text: bytes) -> None:
    """Raise ApiError `body_too_large` for a text that is too much for one turn of the loop."""
    _check_size(len(text))
    check_values(text, VALUES)


def _check_size(size: int) -> None:
    if size > TEXTS:
        raise _too_large(f"{TEXTS} bytes, images aside")


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


def check_media(body: Body, skim: Skim | None) -> None:
    """Raise ApiError for a body, large ones with their `skim`, that names a medium by a URL.

    What begins as JSON is looked at as such, whatever its Content-Type says.
    """
    if skim is not None and not skim.mark:  # a large form
        if begins_json(body):
            raise ApiError(
                "bad_request", "Content-Type says that the body is a form, but it begins as JSON"
            )
        return
    text = body.join() if skim is None else skim.text
    may_name = may_name_url(text) if skim is None else skim.may_name_url
    if not may_name or not begins_json(body):
        return
    # Where objects were cut, nothing tells whether what held them is a medium.
    cut = skim is not None and any(one.lead for one in skim.cuts)
    if cut or holds(text):
        raise refused()


async def check_unread_media(body: Body) -> None:
    """Raise ApiError for a body that is passed on unread and names a medium by a URL.

    Other requests have their turn between its pieces.
    """
    if body.size <= STEP:
        check_media(body, None)
        return
    if not begins_json(body):
        return
    skimmer = JsonSkimmer(_MARK, top_level_only=True)
    for piece in body.pieces:
        for start in range(0, len(piece), STEP):
            skimmer.feed(bytes(piece[start : start + STEP]))
            await asyncio.sleep(0)
    check_media(body, skimmer.finish(body))


def begins_json(body: Body) -> bool:
    """Tell whether a body begins with an object or a list, after blanks."""
    for piece in body.pieces:
        for start in range(0, len(piece), KIB):
            if part := bytes(piece[start : start + KIB]).lstrip(_BEFORE_JSON):
                return part[:1] in (b"{", b"[")
    return False
