"""The one spelling in which a path goes to a child, so that both read the same in it. Pure.

llama-server, frameworks of Python and proxies decode odd paths each in its own way. What has one
meaning for all of them is sent in its canonical form (RFC 3986 section 6.2.2); the rest is refused.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from llamaswap_py.errors import ApiError

_PLAIN: Final = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)+")
_ESCAPE: Final = re.compile("%([0-9A-Fa-f]{2})")
_BROKEN: Final = re.compile("%(?![0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_UNRESERVED: Final = re.compile("[A-Za-z0-9_.~-]")
_KEPT: Final = "/%!$&'()*+,;=:@"


def canonical(path: str) -> tuple[str, str]:
    """Return a path as it is sent and as it is read: encoded, and decoded.

    Raises ApiError `bad_request` for a path that is read differently by different programs.
    """
    if _PLAIN.fullmatch(path):
        return path, path
    if found := _BROKEN.search(path):
        raise _odd(
            path,
            f"{path[found.start() :][:6]!r} is not an escape",
            "encode its letters as UTF-8, and % as %25",
        )
    try:
        text = unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise _odd(path, "its escapes are not UTF-8", "encode its letters as UTF-8") from None
    if _CONTROL.search(text):
        raise _odd(path, "it has a control character", "leave the character out")
    parts = text.replace("\\", "/").split("/")
    if any(part.partition(";")[0] in (".", "..") for part in parts):
        raise _odd(path, "it has a part `.` or `..`", "write the path without such parts")
    return _ESCAPE.sub(_normal, quote(path, safe=_KEPT)), text


def one_reading(sent: str, text: str) -> None:
    """Refuse a path that has more parts when it is decoded than as it is written (`%2F`)."""
    if sent.count("/") != text.count("/"):
        raise _odd(sent, "it has an escaped slash", "write %2F as /")


def _normal(found: re.Match[str]) -> str:
    char = chr(int(found[1], 16))
    return char if _UNRESERVED.fullmatch(char) else found[0].upper()


def _odd(path: str, why: str, remedy: str) -> ApiError:
    return ApiError("bad_request", f"the path {path[:200]} is refused: {why}", remedy=remedy)
