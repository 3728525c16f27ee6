"""Reads the model's name from a request's body, and applies the `request` filters. Pure.

The name is in the JSON body, the form field, or `?model=`. A body that begins as JSON is read as
JSON, whatever its Content-Type, because `curl -d` claims to send a form. The caller handles names
in the path, and the configured default.
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
"""Decodes a client's JSON. Without the hook 250,000 numbers like 1.5e300 take four seconds."""
_BOM: Final = b"\xef\xbb\xbf"
_BYTE: Final = re.compile(r"\(byte (\d+)\)")
_MALFORMED: Final = "JSON is malformed: "
_ESCAPE: Final = re.compile(rb"\\(?:u([0-9A-Fa-f]{4})|.)", re.DOTALL)
_NUMBER: Final = re.compile(rb"(\d{1,9});")
_BROKEN_OFF: Final = re.compile(rb"(\\(u[0-9A-Fa-f]{0,3})?)?")
_EXAMPLE: Final = 'send a JSON object like {"model": "NAME", "messages": [...]}'
_PIECE: Final = 256 * KIB
"""The size in bytes up to which neighbouring pieces are joined before they are sent."""


class Ask(msgspec.Struct):
    """What a body asks for; `model` is None if it does not name one."""

    model: str | None = None
    stream: bool = False
    _json: bytes = b""

    @property
    def plain(self) -> bool:
        """Whether any model could answer: the body is small, and has only text: no images, audio or
        tools. It is computed on demand, which is rare."""
        text = self._json
        if not text or len(text) > _PLAIN_LIMIT:
            return False
        tools = bytes(_PEEK.decode(text).tools)
        return tools in (b"null", b"[]") and not any(mark in text for mark in _NOT_WORDS)


NOTHING: Final = Ask()


class Cut(NamedTuple):
    """A part that was left out of a skim: the body's bytes from `start` to `end`.

    They have `lines` line ends. In the skim's text they are replaced by `size` bytes at `where`; in
    these the mark comes after `lead` bytes.
    """

    where: int
    size: int
    start: int
    end: int
    lead: int = 0
    lines: int = 0


@dataclass(slots=True)
class Skim:
    """A body, and the short `text` that is read in its place; the same bytes if nothing was cut.

    `cuts` are the parts that were left out, in order.
    """

    body: Body
    text: bytes
    mark: bytes = b""
    cuts: list[Cut] = field(default_factory=list)
    may_name_url: bool = False
    """Whether the whole body, not only the text, may name a medium by a URL."""

    def place(self, at: int) -> int:
        """Return the offset in the body for an offset in the text."""
        ahead = 0
        for cut in self.cuts:
            if at < cut.where + cut.size:
                return cut.start if at > cut.where else at + ahead
            ahead += cut.end - cut.start - cut.size
        return at + ahead

    def lines(self, at: int) -> tuple[int, int]:
        """Return how many line ends of the body come before an offset in the text, and the offset
        of the last one in the body; -1 if there is none."""
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
        """Return a body made of `text`, which has parts of this one, with its marks replaced."""
        if not self.cuts:
            return Body.of(text)
        pieces: list[bytes | memoryview] = []
        ends = [*accumulate(map(len, self.body.pieces))]
        at = found = 0
        # `find` takes a half to a third of the time of a pattern that begins with the mark.
        while (found := text.find(self.mark, found)) >= 0:
            number = _NUMBER.match(text, found + len(self.mark))
            if number is None:
                found += len(self.mark)
                continue
            cut = self.cuts[int(number[1])]
            begin = found - cut.lead
            pieces.append(text[at:begin])
            pieces += self._slices(cut, ends)
            at = begin + cut.size
            found = max(at, number.end())
        pieces.append(text[at:])
        return Body(_gathered(pieces), sum(map(len, pieces)))

    def _slices(self, cut: Cut, ends: list[int]) -> Iterator[memoryview]:
        """Yield the bytes of a cut; `ends` are the offsets at which the body's pieces end."""
        for number in range(bisect(ends, cut.start), len(ends)):
            piece = self.body.pieces[number]
            offset = ends[number] - len(piece)
            yield memoryview(piece)[max(cut.start - offset, 0) : cut.end - offset]
            if ends[number] >= cut.end:
                return


class _Peek(msgspec.Struct, gc=False):
    """The members that lswap needs; msgspec skips all others and builds no objects for them.

    If a member comes twice, the last one counts, as in llama-server (nlohmann::json).
    """

    model: msgspec.Raw = msgspec.Raw(b"null")
    stream: msgspec.Raw = msgspec.Raw(b"null")
    tools: msgspec.Raw = msgspec.Raw(b"null")


class _Usual(msgspec.Struct, gc=False):
    """The members that lswap needs, with the types that they have in almost every body."""

    model: str | None = None
    stream: bool = False


_PLAIN_LIMIT: Final = 256 * KIB
# Types of message parts that are not text: OpenAI's chat and responses, Anthropic's messages.
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
    """Return what an ordinary JSON body asks for; None if `read_ask` has to decide."""
    try:
        usual = _USUAL.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return Ask(usual.model, usual.stream, body)


def looks_like_json(body: bytes) -> bool:
    """Return whether a body is JSON though it may claim to be a form, as `curl -d` makes it."""
    start = body[:64].removeprefix(_BOM).lstrip()
    return start[:1] in (b"{", b"[") or b"=" not in body


def _ask_of_json(body: bytes, skim: Skim | None) -> Ask:
    if body.startswith(_BOM):
        body = body[len(_BOM) :]
    try:
        usual = _USUAL.decode(body)
        return Ask(usual.model or None, usual.stream, body if skim is None else b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # unusual, or a mistake, which is located below
    try:
        peek = _PEEK.decode(body)
    except msgspec.ValidationError:
        return Ask()  # an array or a single value: valid JSON without a model's name
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
    """Return the error for a body, or for the text of its `skim`, that cannot be decoded."""
    if isinstance(error, RecursionError):
        return ApiError("bad_json", "arrays or objects in the body are nested too deeply")
    match = _BYTE.search(str(error))
    at = None if match is None else min(int(match[1]), len(body))
    half = _half_character(body)
    if half is not None and (at is None or half <= at):
        shown = body[half : half + 6].decode("ascii")
        at, what = half, f"half a surrogate pair, {shown} without its other half,"
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
    """Return the offset of an escape that is half of a surrogate pair without the other half."""
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
    """Read only `model`: to look for `stream` as well would scan a large upload to its end."""
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
    """Join small neighbouring pieces, because each piece is sent by itself."""
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
    """Return a JSON body after the changes of `filters` for a request that asked for `name`.

    The values of other members are copied byte for byte. A body that is not a JSON object stays as
    it is.
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
