"""Finds images, sounds and videos that a request names by a URL. Pure.

llama-server fetches such a URL itself. So every client that may ask a model could have this machine
fetch from its own ports, its network, or the address where clouds keep secrets (169.254.169.254).
Checking the address here would not help: the name may lead to another address when llama-server
asks, and llama-server follows redirects. So such requests are refused, unless the configuration
allows them.

llama-server takes a text that begins with `http` for a URL. A body without such a string is passed
on after a quick search; only other bodies are decoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from llamaswap_py.api.body import decode
from llamaswap_py.errors import ApiError
from llamaswap_py.units import KIB

_BEGIN: Final = b'"http'
_ESCAPE: Final = b"\\u00"
_ESCAPES: Final = (b"\\u0068", b"\\u0074", b"\\u0070")
"""`h`, `t` and `p` as escapes, which only an attacker would write."""
_MEDIA: Final = frozenset(
    (
        *("image_url", "video_url", "audio_url", "file_url", "input_image", "input_audio"),
        *("input_video", "image", "video", "audio", "image_data", "video_data", "audio_data"),
    )
)
"""Members that hold a medium: a text, or an object with its `url` or `data` (server-common.cpp and
server-chat.cpp of b11434; vLLM and SGLang, which may be a `cmd`)."""
_OBJECTS: Final = _MEDIA | {"source"}
"""Members that hold a medium only as an object: a text in `source` names a search result."""
_WITHIN: Final = ("url", "data")
_NAMES: Final = frozenset(name.encode() for name in (*_MEDIA, *_WITHIN))
_EXACT: Final = 512 * KIB
_EXACT_VALUES: Final = 40_000
"""Up to this size a text is decoded to see which member has the URL, in some milliseconds."""
_STEP: Final = 20_000
"""The number of values that are examined in one turn of the event loop."""
_MOST: Final = 8_000
"""The most values that are examined in one turn of the event loop, which then takes some 13 ms. A
piece of 256 KiB has more only if each has less than 32 bytes with its name."""
_VALUE: Final = re.compile(rb'"http(?<![\\,\[{]"http)')
"""Matches the beginning of what may be a member's value. The bytes that it excludes stand before a
quotation mark that is escaped, or that begins a list element or a name."""
_BLANKS: Final = b" \t\r\n"
_LONGEST_NAME: Final = 200
"""The most bytes of a member's name, and of the blanks after it, that are examined."""
_LONGEST_MARK: Final = 5
"""The length of the longest mark or escape, less one."""
_CARRIED: Final = 2 * _LONGEST_NAME


def may_hold(text: bytes) -> bool:
    """Return whether JSON has a string that begins with `http`, escaped or not."""
    # `rfind` searches for the first byte, a quotation mark, which is rare in text. `in` searches
    # for the last one, and takes twice the time. A single byte is found at once.
    return text.rfind(_BEGIN) >= 0 or (
        b"\\" in text and text.rfind(_ESCAPE) >= 0 and _is_escaped(text)
    )


def _is_escaped(text: bytes) -> bool:
    return any(text.rfind(one) >= 0 for one in _ESCAPES)


def may_name_url(text: bytes) -> bool:
    """Return whether JSON may name a medium by a URL, judged by the names of members alone."""
    return may_hold(text) and _names(text, 0)


class Scan:
    """Reads a text piece by piece, and tells whether it may name a medium by a URL.

    It judges by the names of members alone, so the URL of an annotation counts as well.
    """

    def __init__(self) -> None:
        self.found = False
        self._before = b""

    def feed(self, piece: bytes) -> None:
        """Take the next piece."""
        if self.found:
            return
        begin = max(len(self._before) - _LONGEST_MARK, 0)
        text = self._before + piece
        self.found = may_hold(text) and _names(text, begin)
        self._before = text[-_CARRIED:]


def holds(text: bytes) -> bool:
    """Return whether JSON that may name a medium by a URL does so, judged by its members."""
    values = text.count(b",") + text.count(b"[") + text.count(b"{")
    if len(text) > _EXACT or values > _EXACT_VALUES:
        return True  # decoding it would stop the event loop for too long
    try:
        return found_in(decode(text.removeprefix(b"\xef\xbb\xbf")))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True  # the child may be able to read it


def _names(text: bytes, at: int) -> bool:
    """Return whether a member with the name of a medium has a value that begins with `http`."""
    if _is_escaped(text):
        return True
    for number, found in enumerate(_VALUE.finditer(text, at)):
        if number >= _MOST or _is_medium(text, found.start()):
            return True
    return False


def _is_medium(text: bytes, quote: int) -> bool:
    """Return whether the string at a quotation mark may be the value of a medium's member."""
    before = text[max(quote - _LONGEST_NAME, 0) : quote].rstrip(_BLANKS)
    if not before:
        return True  # so many blanks come before it that its name is not searched for
    if not before.endswith(b":"):
        return False  # it is a name, or an element of a list
    before = before[:-1].rstrip(_BLANKS)
    begin = before.rfind(b'"', 0, max(len(before) - 1, 0))
    if begin < 0:
        return True
    name = before[begin + 1 : -1]
    return name in _NAMES or b"\\" in name or before[begin - 1 : begin] == b"\\"


def found_in(value: Any) -> bool:
    """Return whether decoded JSON names a medium by a URL, at any depth."""
    return any(looking(value))


def looking(value: Any) -> Iterator[bool]:
    """Search like `found_in`, in steps: yield now and then whether it has been found."""
    left, looked_at = [value], 0
    while left:
        looked_at += 1
        if not looked_at % _STEP:
            yield False
        one = left.pop()
        if isinstance(one, list):
            left += one
        elif isinstance(one, dict):
            if any(_fetched(name, member) for name, member in one.items()):
                yield True
                return
            left += one.values()


def _fetched(name: str, value: Any) -> bool:
    if isinstance(value, str):
        return name in _MEDIA and value.startswith("http")
    if isinstance(value, dict) and name in _OBJECTS:
        inner = (value.get(key) for key in _WITHIN)
        return any(isinstance(one, str) and one.startswith("http") for one in inner)
    return False


def refused() -> ApiError:
    """Return the error for a request that names a medium by a URL."""
    return ApiError(
        "bad_request",
        "this server does not fetch images, sounds or videos from http(s):// URLs",
        remedy="send the file itself, as a data: URL (data:image/png;base64,…); or set "
        "`allow_media_urls: true` in the configuration (see docs/security.md)",
        param="url",
    )
