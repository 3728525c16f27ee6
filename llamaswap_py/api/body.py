"""Which model a request is for. Pure.

The name is taken from: the JSON body (whatever Content-Type says: curl -d claims to send a form),
the form field, `?model=`; the caller adds the path and the configured default.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.api import multipart
from llamaswap_py.errors import ApiError
from llamaswap_py.units import KIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.api.large_body import Skim

FORM: Final = b"application/x-www-form-urlencoded"
decode: Final = msgspec.json.Decoder(float_hook=float).decode
"""Decodes what a client sent. Without the hook 250,000 numbers like 1.5e300 take four seconds."""
_BOM: Final = b"\xef\xbb\xbf"
_BYTE: Final = re.compile(r"\(byte (\d+)\)")
_MALFORMED: Final = "JSON is malformed: "
_ESCAPE: Final = re.compile(rb"\\(?:u([0-9A-Fa-f]{4})|.)", re.DOTALL)
_BROKEN_OFF: Final = re.compile(rb"(\\(u[0-9A-Fa-f]{0,3})?)?")
_EXAMPLE: Final = 'send a JSON object like {"model": "NAME", "messages": [...]}'


@dataclass(slots=True)
class Ask:
    """What a body asks for: `model` is None where it names none."""

    model: str | None = None
    stream: bool = False
    _json: bytes = field(default=b"", repr=False, compare=False)

    @property
    def plain(self) -> bool:
        """Whether any model could answer: it is small, and words only - no images, no audio, no
        tools. Looked up when somebody asks, for few do."""
        text = self._json
        if not text or len(text) > _PLAIN_LIMIT:
            return False
        tools = bytes(_PEEK.decode(text).tools)
        return tools in (b"null", b"[]") and not any(mark in text for mark in _NOT_WORDS)


NOTHING: Final = Ask()


class _Peek(msgspec.Struct, gc=False):
    """The members that matter; everything else is skipped, not built. The last duplicate
    wins, as in llama-server (nlohmann::json)."""

    model: msgspec.Raw = msgspec.Raw(b"null")
    stream: msgspec.Raw = msgspec.Raw(b"null")
    tools: msgspec.Raw = msgspec.Raw(b"null")


class _Usual(msgspec.Struct, gc=False):
    """What almost every body is like: read in one go."""

    model: str | None = None
    stream: bool = False


_PLAIN_LIMIT: Final = 256 * KIB
# Parts of a message that are no text: OpenAI's chat and responses, Anthropic's messages.
_NOT_WORDS: Final = (b'"image_url"', b'"input_audio"', b'"input_image"', b'"image"', b'"file"')

_PEEK: Final = msgspec.json.Decoder(_Peek)
_USUAL: Final = msgspec.json.Decoder(_Usual)


def read_ask(content_type: bytes, body: bytes, skim: Skim | None = None) -> Ask:
    """Return what `body`, or the text of its `skim`, asks for.

    Raises ApiError `bad_json` or `bad_request`.
    """
    kind = content_type.partition(b";")[0].strip().lower()
    if kind == b"multipart/form-data":
        return _ask_of_form(content_type, body)
    if not body or body.isspace():
        return Ask()
    if kind == FORM and not looks_like_json(body):
        return Ask(_text(_field(multipart.urlencoded_field, body, b"model")))
    return _ask_of_json(body, skim)


def name_in(body: bytes) -> str | None:
    """Return the model that an ordinary JSON body names; None: `read_ask` has to look."""
    try:
        return _USUAL.decode(body).model or None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def looks_like_json(body: bytes) -> bool:
    """Tell whether what claims to be a form is none: `curl -d` says so of everything."""
    start = body[:64].removeprefix(_BOM).lstrip()
    return start[:1] in (b"{", b"[") or b"=" not in body


def _ask_of_json(body: bytes, skim: Skim | None) -> Ask:
    if body.startswith(_BOM):
        body = body[len(_BOM) :]
    try:
        usual = _USUAL.decode(body)
        return Ask(usual.model or None, usual.stream, body if skim is None else b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # unusual, or wrong: say where
    try:
        peek = _PEEK.decode(body)
    except msgspec.ValidationError:
        return Ask()  # an array or a bare value: legal JSON that names no model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_json(body, error, skim) from None
    text = body if skim is None else b""
    return Ask(_model(peek.model), bytes(peek.stream) == b"true", text)


def _model(raw: msgspec.Raw) -> str | None:
    if bytes(raw) == b"null":
        return None
    try:
        return msgspec.json.decode(raw, type=str) or None
    except msgspec.ValidationError:
        raise ApiError(
            "bad_request", "`model` must be a string", param="model", remedy=_EXAMPLE
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ApiError("bad_json", "`model` is not valid UTF-8 text", param="model") from None


def bad_json(body: bytes, error: Exception, skim: Skim | None = None) -> ApiError:
    """Return what is wrong with a body, or with the text of its `skim`, that was not decoded."""
    if isinstance(error, RecursionError):
        return ApiError("bad_json", "arrays or objects in the body are nested too deeply")
    match = _BYTE.search(str(error))
    at = None if match is None else min(int(match[1]), len(body))
    half = _half_character(body)
    if half is not None and (at is None or half <= at):
        shown = body[half : half + 6].decode("ascii")
        at, what = half, f"an incomplete character, {shown} without its other half,"
    elif isinstance(error, UnicodeDecodeError):
        at, what = _not_utf8(body), "it is not UTF-8"
    elif at is None or match is None:
        size = len(body) if skim is None else skim.body.size
        message = f"the body is not valid JSON: it ends too early, after {size} bytes"
        return ApiError("bad_json", message, remedy=_EXAMPLE)
    else:
        reason = str(error).removeprefix(_MALFORMED)
        what = reason.partition(" (byte")[0]
    if skim is None:
        lines, begin = body.count(b"\n", 0, at), body.rfind(b"\n", 0, at)
    else:
        (lines, begin), at = skim.lines(at), skim.place(at)
    where = f"{what} at byte {at} (line {lines + 1}, column {at - begin})"
    return ApiError("bad_json", f"the body is not valid JSON: {where}", remedy=_EXAMPLE)


def _half_character(body: bytes) -> int | None:
    """Return where an escape is one half of a surrogate pair, without the other half."""
    high: re.Match[bytes] | None = None
    for found in _ESCAPE.finditer(body):
        code = int(found[1], 16) if found[1] else 0
        is_low = 0xDC00 <= code < 0xE000
        if high is not None and not (is_low and found.start() == high.end()):
            break
        if high is None and is_low:
            return found.start()
        high = found if 0xD800 <= code < 0xDC00 else None
    if high is None or _BROKEN_OFF.fullmatch(body, high.end()):
        return None
    return high.start()


def _not_utf8(body: bytes) -> int:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0


def _ask_of_form(content_type: bytes, body: bytes) -> Ask:
    """Read `model` alone: looking for `stream` too would scan a large upload to its end."""
    boundary = multipart.parameters(content_type).get(b"boundary", b"")

    def read(text: bytes, name: bytes) -> bytes | None:
        return multipart.multipart_field(text, boundary, name)

    return Ask(_text(_field(read, body, b"model")))


def _field(read: Callable[[bytes, bytes], bytes | None], body: bytes, name: bytes) -> bytes | None:
    try:
        return read(body, name)
    except ValueError as error:
        raise ApiError("bad_request", f"the form cannot be read: {error}", param="model") from None


def _text(value: bytes | None) -> str | None:
    if not value:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ApiError("bad_request", "`model` is not valid UTF-8 text", param="model") from None
