"""Reads the body of a request in short steps, so that other requests do not wait for it.

A large body is shortened while it arrives (large_body.py), and JSON is decoded only up to a bound,
because the event loop stands still meanwhile. Decoding makes an object of every value, which takes
about a millisecond for 4000 values. The number of bytes says little about that: a body of 60 MB may
be one text, or 20 million empty lists. So the number of values is bounded as well.
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
"""The most bytes of a body that only has names, numbers and options."""
_CONTROL_VALUES: Final = 50_000
TEXTS: Final = 16 * MIB
"""The most bytes that are decoded of a request to be translated, not counting its images."""
VALUES: Final = 250_000
DECIMALS: Final = 20_000
"""The most numbers with a point or an exponent; each costs as much as ten other values."""
SKIPPED: Final = 600_000
"""The most values of a request that is passed on; only its top-level members become objects."""
_COUNTED: Final = MIB
"""Bytes that are counted at once. A text with far too many values is refused after one of them."""
FREE: Final = 64 * KIB
"""The size of a body in bytes above which a request counts even if its route is free."""
MARK: Final = f"lswap-{secrets.token_hex(12)}-"
"""Stands for the parts that were cut; a client cannot know it."""
_BEFORE_JSON: Final = b" \t\r\n\xef\xbb\xbf"
"""Blanks, and the bytes of a byte order mark."""


def refuse_coded_body(head: RequestHead, route: Route) -> None:
    """Raise ApiError `unsupported_encoding` for a compressed body that lswap would have to read.

    Below /upstream such a body goes to the child as it is.
    """
    coding = head.get(b"content-encoding")
    if coding is None or head.content_length == 0 or route.as_it_is:
        return
    if any(one != b"identity" for one in tokens(coding)):
        shown = coding[:80].decode("latin-1")
        raise ApiError(
            "unsupported_encoding",
            f"the body has Content-Encoding: {shown}, which lswap cannot read",
            remedy="send it without compression and without this header",
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
    """Return a body and, if it is large, a skim to read in its place.

    `translated`: all of the body will be read, and its texts may be put into other texts.
    Raises the errors of `Exchange.read_body`.
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
        skimmer = JsonSkimmer(MARK, unescaped=translated, top_level_only=not translated)

    def scan(piece: bytes) -> int:
        # A body that is too large is refused once it is complete; until then nothing is added.
        return skimmer.size if translated and skimmer.size > TEXTS else skimmer.feed(piece)

    body = await call.exchange.read_body(limit, scan)
    if body.size <= STEP:
        return body, None
    if translated:
        _check_size(skimmer.size)
    skim = skimmer.finish(body)
    await asyncio.sleep(0)  # the text may still take long to parse, with many short strings
    if kind == FORM and not looks_like_json(skim.text):
        return body, None
    return body, skim


def check_text(text: bytes) -> None:
    """Raise ApiError `body_too_large` for a text that takes too long to decode."""
    _check_size(len(text))
    check_values(text, VALUES)


def _check_size(size: int) -> None:
    if size > TEXTS:
        raise _too_large(f"{TEXTS} bytes, images aside")


def decode_large(text: bytes) -> Any:
    """Decode JSON; raises msgspec's errors, and ApiError `body_too_large` for too many decimals."""
    return few_decimals().decode(text)


def few_decimals() -> msgspec.json.Decoder[Any]:
    """Return a decoder for one text that raises ApiError for too many decimals."""
    left = DECIMALS

    def number(digits: str) -> float:
        nonlocal left
        left -= 1
        if left < 0:
            raise _too_large(f"{DECIMALS} numbers with a point or an exponent")
        return float(digits)

    return msgspec.json.Decoder(float_hook=number)


def check_values(text: bytes, most: int) -> None:
    """Raise ApiError `body_too_large` for JSON that may hold more values than `most`."""
    found = 0
    for start in range(0, len(text) if len(text) > most else 0, _COUNTED):
        end = start + _COUNTED
        found += sum(text.count(one, start, end) for one in (b",", b"[", b"{"))
        if found > most:
            raise _too_large(f"{most} commas and opening brackets")


def _too_large(limit: str) -> ApiError:
    return ApiError(
        "body_too_large",
        f"the request body is larger than the limit of this route: {limit}",
        remedy="send less at a time",
    )


def check_media(body: Body, skim: Skim | None) -> None:
    """Raise ApiError for a body that names a medium by a URL; `skim` is that of a large body.

    A body that begins as JSON is examined as JSON, whatever its Content-Type says.
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
    # If objects were cut, the text does not show whether they were part of a medium.
    cut = skim is not None and any(one.lead for one in skim.cuts)
    if cut or holds(text):
        raise refused()


async def check_unread_media(body: Body) -> None:
    """Raise ApiError for a body that is passed on unread and names a medium by a URL.

    The event loop runs other requests between the pieces.
    """
    if body.size <= STEP:
        check_media(body, None)
        return
    if not begins_json(body):
        return
    skimmer = JsonSkimmer(MARK, top_level_only=True)
    for piece in body.pieces:
        for start in range(0, len(piece), STEP):
            skimmer.feed(bytes(piece[start : start + STEP]))
            await asyncio.sleep(0)
    check_media(body, skimmer.finish(body))


def begins_json(body: Body) -> bool:
    """Return whether a body begins with an object or a list, after blanks."""
    for piece in body.pieces:
        for start in range(0, len(piece), KIB):
            if part := bytes(piece[start : start + KIB]).lstrip(_BEFORE_JSON):
                return part[:1] in (b"{", b"[")
    return False
