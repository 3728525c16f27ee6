"""What a request's body asks for, and how the file changes it. Pure.

The model's name is taken from the JSON body (whatever Content-Type says: curl -d claims to send a
form), the form field, or `?model=`; the caller adds the path and the configured default.
"""

from __future__ import annotations

import re
from bisect import bisect
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from llamaswap_py.api import multipart
from llamaswap_py.errors import ApiError
from llamaswap_py.proxy.messages import Body
from llamaswap_py.units import KIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llamaswap_py.config.forms import Filters

FORM: Final = b"application/x-www-form-urlencoded"
decode: Final = msgspec.json.Decoder(float_hook=float).decode
"""Decodes what a client sent. Without the hook 250,000 numbers like 1.5e300 take four seconds."""
_BOM: Final = b"\xef\xbb\xbf"
_BYTE: Final = re.compile(r"\(byte (\d+)\)")
_MALFORMED: Final = "JSON is malformed: "
_ESCAPE: Final = re.compile(rb"\\(?:u([0-9A-Fa-f]{4})|.)", re.DOTALL)
_BROKEN_OFF: Final = re.compile(rb"(\\(u[0-9A-Fa-f]{0,3})?)?")
_EXAMPLE: Final = 'send a JSON object like {"model": "NAME", "messages": [...]}'
_PIECE: Final = 256 * KIB
"""Bytes of small pieces that are joined before they are sent."""


class Ask(msgspec.Struct):
    """What a body asks for: `model` is None if it names no model."""

    model: str | None = None
    stream: bool = False
    _json: bytes = b""

    @property
    def plain(self) -> bool:
        """Whether any model could answer: it is small, and has words only - no images, no audio, no
        tools. It is worked out when it is asked for, which is rare."""
        text = self._json
        if not text or len(text) > _PLAIN_LIMIT:
            return False
        tools = bytes(_PEEK.decode(text).tools)
        return tools in (b"null", b"[]") and not any(mark in text for mark in _NOT_WORDS)


NOTHING: Final = Ask()


class Cut(NamedTuple):
    """What was left out: the body's bytes from `start` to `end`, with so many ends of `lines`.

    In the text `size` bytes at `where` stand for them, of which the first `lead` come before the
    mark.
    """

    where: int
    size: int
    start: int
    end: int
    lead: int = 0
    lines: int = 0


@dataclass(slots=True)
class Skim:
    """A body, and the short `text` to read in its place: the body itself where nothing was cut.

    `cuts` are what is missing, in order.
    """

    body: Body
    text: bytes
    mark: bytes = b""
    cuts: list[Cut] = field(default_factory=list)
    may_name_url: bool = False
    """Whether the body, of which all was looked at, may name a medium by a URL."""

    def place(self, at: int) -> int:
        """Return where in the body an offset in the text is."""
        ahead = 0
        for cut in self.cuts:
            if at < cut.where + cut.size:
                return cut.start if at > cut.where else at + ahead
            ahead += cut.end - cut.start - cut.size
        return at + ahead

    def lines(self, at: int) -> tuple[int, int]:
        """Return how many line ends come before an offset in the text, and where in the body the
        last of them is; -1 where none is."""
        kept = self.text.count(b"\n", 0, at)
        last = self.place(self.text.rfind(b"\n", 0, at))
        cuts = [cut for cut in self.cuts if cut.lines and cut.where < at]
        if cuts:
            last = max(last, self._last_line_end(cuts[-1]))
        return kept + sum(cut.lines for cut in cuts), last

    def _last_line_end(self, cut: Cut) -> int:
        end = cut.end
        ends = [*accumulate(map(len, self.body.pieces))]
        for piece in reversed([*self._slices(cut, ends)]):
            if (at := bytes(piece).rfind(b"\n")) >= 0:
                return end - len(piece) + at
            end -= len(piece)
        return -1

    def restore(self, text: bytes) -> Body:
        """Return a text made of parts of this one as a body, with what its marks stand for."""
        if not self.cuts:
            return Body.of(text)
        pieces: list[bytes | memoryview] = []
        ends = [*accumulate(map(len, self.body.pieces))]
        at = 0
        for found in re.finditer(re.escape(self.mark) + rb"(\d{1,9});", text):
            cut = self.cuts[int(found[1])]
            begin = found.start() - cut.lead
            pieces.append(text[at:begin])
            pieces += self._slices(cut, ends)
            at = begin + cut.size
        pieces.append(text[at:])
        return Body(_gathered(pieces), sum(map(len, pieces)))

    def _slices(self, cut: Cut, ends: list[int]) -> Iterator[memoryview]:
        """Yield what was cut; `ends` are where the body's pieces end in it."""
        for number in range(bisect(ends, cut.start), len(ends)):
            piece = self.body.pieces[number]
            offset = ends[number] - len(piece)
            yield memoryview(piece)[max(cut.start - offset, 0) : cut.end - offset]
            if ends[number] >= cut.end:
                return


class _Peek(msgspec.Struct, gc=False):
    """The members that matter; msgspec skips all others and builds nothing of them.

    Of a member that comes twice the last one counts, as in llama-server (nlohmann::json).
    """

    model: msgspec.Raw = msgspec.Raw(b"null")
    stream: msgspec.Raw = msgspec.Raw(b"null")
    tools: msgspec.Raw = msgspec.Raw(b"null")


class _Usual(msgspec.Struct, gc=False):
    """The members that matter, with the types that almost every body gives them."""

    model: str | None = None
    stream: bool = False


_PLAIN_LIMIT: Final = 256 * KIB
# Parts of a message that are not text: OpenAI's chat and responses, Anthropic's messages.
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


def usual_ask(body: bytes) -> Ask | None:
    """Return what an ordinary JSON body asks for; None: `read_ask` has to look."""
    try:
        usual = _USUAL.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return Ask(usual.model, usual.stream, body)


def looks_like_json(body: bytes) -> bool:
    """Tell whether what claims to be a form is JSON: `curl -d` calls everything a form."""
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


_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _gathered(pieces: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """Join small neighbours: each piece of a body is sent by itself."""
    found: list[bytes | memoryview] = []
    small: list[bytes | memoryview] = []
    size = 0
    for piece in pieces:
        if size + len(piece) > _PIECE and small:
            found.append(small[0] if len(small) == 1 else b"".join(small))
            small, size = [], 0
        small.append(piece)
        size += len(piece)
    if size:
        found.append(b"".join(small))
    return found


def filter_body(body: bytes, filters: Filters, name: str) -> bytes:
    """Return a JSON body with the changes that `filters` make for a request that asked for `name`.

    The values of members that stay are copied as they came, byte for byte. What is not JSON object
    stays as it is.
    """
    try:
        members: dict[str, Any] = _MEMBERS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    return msgspec.json.encode(filtered(members, filters, name))


def filtered(members: dict[str, Any], filters: Filters, name: str) -> dict[str, Any]:
    """Return the members of a request after all changes: the preset's, then the name's own."""
    found = _applied(members, filters)
    inner = filters.per_name.get(name)
    return found if inner is None else _applied(found, inner)


def _applied(members: dict[str, Any], filters: Filters) -> dict[str, Any]:
    kept = {key: value for key, value in members.items() if key not in filters.strip}
    return {**filters.default, **kept, **filters.set}
