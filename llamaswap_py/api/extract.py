"""Which model a request is for. Pure.

The name is taken from: the JSON body (whatever Content-Type says: curl -d claims to send a form),
the form field, `?model=`; the caller adds the path and the configured default.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.api import forms
from llamaswap_py.errors import ApiError
from llamaswap_py.units import KIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.api.skim import Skim

FORM: Final = b"application/x-www-form-urlencoded"
_BOM: Final = b"\xef\xbb\xbf"
_BYTE: Final = re.compile(r"\(byte (\d+)\)")
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
        return Ask(_text(_field(forms.urlencoded_field, body, b"model")))
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
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _bad_json(body, str(error), skim) from None
    except RecursionError:
        raise ApiError("bad_json", "the body nests arrays or objects too deeply") from None
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


def _bad_json(body: bytes, reason: str, skim: Skim | None) -> ApiError:
    match = _BYTE.search(reason)
    if match is None:
        size = len(body) if skim is None else skim.body.size
        where = f"it ends too early, after {size} bytes"
    else:
        at = min(int(match[1]), len(body))
        if skim is None:
            lines, begin = body.count(b"\n", 0, at), body.rfind(b"\n", 0, at)
        else:
            (lines, begin), at = skim.lines(at), skim.place(at)
        line, column = lines + 1, at - begin
        what = reason.removeprefix("JSON is malformed: ")[: match.start()].partition(" (byte")[0]
        where = f"{what} at byte {at} (line {line}, column {column})"
    return ApiError("bad_json", f"the body is not valid JSON: {where}", remedy=_EXAMPLE)


def _ask_of_form(content_type: bytes, body: bytes) -> Ask:
    """Read `model` alone: looking for `stream` too would scan a large upload to its end."""
    boundary = forms.parameters(content_type).get(b"boundary", b"")

    def read(text: bytes, name: bytes) -> bytes | None:
        return forms.multipart_field(text, boundary, name)

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
