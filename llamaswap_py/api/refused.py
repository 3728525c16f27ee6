"""A child's refusal in one line, for the log: what it says, without a word of the prompt.

llama-server quotes requests in some of its messages (JSON that it cannot read, messages that its
template does not take). So only what comes before the first quotation is shown, and of another
program's answer the kind of error alone.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

_LONGEST: Final = 200
_KIND: Final = re.compile(rb'"type"\s*:\s*"([A-Za-z0-9_.-]{1,60})"')
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,60}")
_QUOTES: Final = re.compile(r"(?<![A-Za-z0-9])'|[\n\"`{\[<]|[:;] |\. |[\x00-\x1f]")
"""What may introduce a piece of the request, or another sentence."""
_IN_STREAM: Final = b'data: {"error"'


def is_failure(status: int, tail: bytes, *, streams: bool) -> bool:
    """Tell whether an answer that is whole says that there is none."""
    return status >= 400 or (streams and _IN_STREAM in tail)


def reason_of(tail: bytes, *, quotes: bool) -> str:
    """Return the kind of error at the end of an answer's body; with `quotes` what it says besides.

    An empty text where it has nothing of that.
    """
    kind, message = _read(tail[tail.rfind(_IN_STREAM) + 6 :] if _IN_STREAM in tail else tail)
    said = _QUOTES.split(message, maxsplit=1)[0].strip(" ,.")[:_LONGEST] if quotes else ""
    return ": ".join(part for part in (kind, said) if part)


def _read(body: bytes) -> tuple[str, str]:
    body = body.partition(b"\n")[0] if body.startswith(b'{"error"') else body
    try:
        whole = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = _KIND.findall(body)
        return (found[-1].decode() if found else ""), ""
    error: Any = whole.get("error") if isinstance(whole, dict) else None
    if isinstance(error, str):
        return "", error
    if not isinstance(error, dict):
        return "", ""
    kind, message = error.get("type"), error.get("message")
    named = isinstance(kind, str) and _NAME.fullmatch(kind)
    return (str(kind) if named else ""), (message if isinstance(message, str) else "")
