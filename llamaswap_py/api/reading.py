"""Read a request's body; a large one so that no other request waits for it."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Final

from llamaswap_py.api.extract import FORM, looks_like_json
from llamaswap_py.api.forms import parameters
from llamaswap_py.api.skim import STEP, FormSkimmer, JsonSkimmer
from llamaswap_py.errors import ApiError
from llamaswap_py.wire.messages import tokens

if TYPE_CHECKING:
    from llamaswap_py.api.call import Call, Route
    from llamaswap_py.api.skim import Skim
    from llamaswap_py.wire.messages import Body, RequestHead

_MARK: Final = f"lswap-{secrets.token_hex(12)}-"
"""Stands for what was cut: nobody can send it on purpose."""


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
    body = await call.exchange.read_body(limit, skimmer.feed)
    if body.size <= STEP:
        return body, None
    skim = skimmer.finish(body)
    await asyncio.sleep(0)  # what is parsed next may be long still: many short strings
    if kind == FORM and not looks_like_json(skim.text):
        return body, None
    return body, skim
