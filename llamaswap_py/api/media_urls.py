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

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from llamaswap_py.api.body import decode
from llamaswap_py.errors import ApiError
from llamaswap_py.units import KIB

_BEGIN: Final = b'"http'
_ESCAPE: Final = b"\\u00"
_ESCAPES: Final = (b"\\u0068", b"\\u0074", b"\\u0070")
"""`h`, `t` and `p` as escapes: only an attacker writes them so."""
_MEDIA: Final = frozenset(
    (
        *("image_url", "video_url", "audio_url", "file_url", "input_image", "input_audio"),
        *("input_video", "image", "video", "audio", "image_data", "video_data", "audio_data"),
    )
)
"""Members that hold a medium: a text, or an object with its `url` or `data` (server-common.cpp and
server-chat.cpp of b11434; vLLM and SGLang, which may be a `cmd`)."""
_OBJECTS: Final = _MEDIA | {"source"}
"""Anthropic's `source` is an object; a text there is where a search result comes from."""
_WITHIN: Final = ("url", "data")
_NAMES: Final = frozenset(name.encode() for name in (*_MEDIA, *_WITHIN))
_EXACT: Final = 512 * KIB
_EXACT_VALUES: Final = 40_000
"""Of a text up to this it is looked up where the URL stands; it takes some milliseconds."""
_STEP: Final = 20_000
"""Values that are looked at before others have their turn."""
_MOST: Final = 50_000
"""Strings that are looked at; no more are looked at in one turn of the loop."""
_NO_VALUE: Final = (b"\\", b",", b"[", b"{")
"""What stands before a mark within a string, an element of a list, a name."""
_BLANKS: Final = b" \t\r\n"
_LONGEST_NAME: Final = 200
"""Bytes of a member's name, and of the blanks behind it, that are looked at."""
_LONGEST_MARK: Final = 5
"""Bytes of a mark or an escape, less one."""
_CARRIED: Final = 2 * _LONGEST_NAME


def may_hold(text: bytes) -> bool:
    """Tell whether JSON has a string that begins with `http`, however that is escaped."""
    # `rfind` looks for the first byte, which is rare in words, and `in` for the last one: `rfind`
    # takes half the time. One byte alone is found at once.
    return text.rfind(_BEGIN) >= 0 or (
        b"\\" in text and text.rfind(_ESCAPE) >= 0 and _is_escaped(text)
    )


def _is_escaped(text: bytes) -> bool:
    return any(text.rfind(one) >= 0 for one in _ESCAPES)


def may_name_url(text: bytes) -> bool:
    """Tell whether JSON may name a medium by a URL, by the names of members alone."""
    return may_hold(text) and _names(text, 0)


class Scan:
    """Takes a text piece by piece, and says whether it may name a medium by a URL.

    It goes by the names of members alone, so the URL of an annotation counts, too.
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
    """Tell whether JSON that may do so names a medium by a URL: where it stands is looked up."""
    values = text.count(b",") + text.count(b"[") + text.count(b"{")
    if len(text) > _EXACT or values > _EXACT_VALUES:
        return True  # to decode it would hold up the event loop
    try:
        return found_in(decode(text.removeprefix(b"\xef\xbb\xbf")))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True  # the child may read it in another way


def _names(text: bytes, at: int) -> bool:
    """Tell whether a member with the name of a medium has a value that begins with `http`."""
    if _is_escaped(text):
        return True
    for _ in range(_MOST):
        if (at := text.find(_BEGIN, at)) < 0:
            return False
        if text[at - 1 : at] not in _NO_VALUE and _is_medium(text, at):
            return True
        at += len(_BEGIN)
    return True


def _is_medium(text: bytes, quote: int) -> bool:
    """Tell whether the string at a quotation mark may be the value of a medium's member."""
    before = text[max(quote - _LONGEST_NAME, 0) : quote].rstrip(_BLANKS)
    if not before:
        return True  # behind very many blanks
    if not before.endswith(b":"):
        return False  # a name itself, or in a list
    before = before[:-1].rstrip(_BLANKS)
    begin = before.rfind(b'"', 0, max(len(before) - 1, 0))
    if begin < 0:
        return True
    name = before[begin + 1 : -1]
    return name in _NAMES or b"\\" in name or before[begin - 1 : begin] == b"\\"


def found_in(value: Any) -> bool:
    """Tell whether decoded JSON names a medium by a URL, at any depth."""
    return any(looking(value))


def looking(value: Any) -> Iterator[bool]:
    """Look for what `found_in` tells; yield now and then whether it was found so far."""
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
    """Return the error of a request that names a medium by a URL."""
    return ApiError(
        "bad_request",
        "images, sounds and videos are not fetched from http(s):// URLs here",
        remedy="send the file itself, as a data: URL (data:image/png;base64,…); or set "
        "`allow_media_urls: true` in the configuration (see docs/security.md)",
        param="url",
    )
