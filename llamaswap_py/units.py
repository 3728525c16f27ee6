"""Sizes, durations and numbers of tokens, as people write them and as the code holds them.

Beside them: the name of main memory, and texts that a terminal can show.
"""

from __future__ import annotations

import re
from typing import Final

# Control characters but tab and newline; those that turn the direction of text around; bytes of a
# file's name that are not UTF-8 (PEP 383).
_UNSHOWABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

KIB: Final = 1024
MIB: Final = 1024**2
GIB: Final = 1024**3

HOST: Final = "host"
"""What main memory is called where devices have names, like CUDA0."""

_SIZE_UNITS: Final[dict[str, int]] = {
    "b": 1,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 1024**4,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "k": KIB,
    "m": MIB,
    "g": GIB,
    "t": 1024**4,
}
_DURATION_UNITS: Final[dict[str, float]] = {
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
# The same, for editors (ECMA regular expressions have no flag for case).
SIZE_PATTERN: Final = r"^\s*(0|[0-9]+(\.[0-9]+)?\s*([KkMmGgTt]([Ii]?[Bb])?|[Bb]))\s*$"
TOKENS_PATTERN: Final = r"^\s*[0-9]+(\.[0-9]+)?\s?[KkMm]\s*$"
DURATION_PATTERN: Final = r"^\s*(0\s*|([0-9]+(\.[0-9]+)?\s*(ms|s|m|h|d)\s*)+)$"

# Above these the arithmetic of the rest of the code means nothing: 8 EiB, and a hundred years.
_MAX_SIZE: Final = 2**63 - 1
_MAX_DURATION: Final = 100 * 366 * 86400.0
_MAX_TOKENS: Final = 2**31 - 1  # llama-server's int
_TOKENS: Final = re.compile(r"(\d+(?:\.\d+)?)\s?([kKmM])", re.ASCII)
_NUMBER_UNIT: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]+)", re.ASCII)


def parse_size(text: str) -> int:
    """Return bytes from `9.5GiB`, `512 MiB`, `24g` or `0`.

    Raises ValueError with a usable message; a bare number other than 0 is refused, because its
    unit would be a guess.
    """
    text = text.strip()
    if text == "0":
        return 0
    match = _NUMBER_UNIT.fullmatch(text)
    unit = _SIZE_UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(
            f"{text!r} is not a size: write a number with a unit, like 512MiB or 9.5GiB"
        )
    size = float(match[1]) * unit
    if size > _MAX_SIZE:
        raise ValueError(f"{text!r} is more than any machine has")
    return round(size)


def parse_duration(text: str) -> float:
    """Return seconds from `90s`, `1m30s`, `250ms`, `15m`, `2h` or `0`.

    Raises ValueError with a usable message; a bare number other than 0 is refused.
    """
    text = text.strip()
    if text == "0":
        return 0.0
    parts = _NUMBER_UNIT.findall(text)
    rest = _NUMBER_UNIT.sub("", text).strip()
    if not parts or rest or any(unit not in _DURATION_UNITS for _, unit in parts):
        raise ValueError(
            f"{text!r} is not a duration: write it with a unit, like 30s, 15m or 1h30m"
        )
    seconds = sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)
    if seconds > _MAX_DURATION:
        raise ValueError(f"{text!r} is longer than a hundred years")
    return seconds


def parse_tokens(text: str) -> int | None:
    """Return 8192 for `8k`, as people write numbers of tokens; None for a text of another form."""
    match = _TOKENS.fullmatch(text.strip())
    if match is None:
        return None
    number = float(match[1]) * (KIB if match[2] in "kK" else MIB)
    return round(number) if number <= _MAX_TOKENS else None


def format_size(size: int | float) -> str:
    """Return `18.9 GiB`, `512 MiB` or `17 B`: at most one decimal, binary units."""
    for unit, name in ((1024**4, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(size) >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{int(size)} B"


def format_duration(seconds: float) -> str:
    """Return `250 ms`, `2.1 s`, `12 m`, `1 h 30 m` or `3 d`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} m"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} m" if minutes else f"{hours} h"
    return f"{hours // 24} d"


def format_age(seconds: float) -> str:
    """Return a duration in whole seconds or longer units."""
    return format_duration(round(seconds)) if seconds >= 1 else "0 s"


def spell_size(size: int) -> str:
    """Return a size exactly, as the file writes it: `512MiB`, `17B` or `0`."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return f"{size}B" if size else "0"


def spell_duration(seconds: float) -> str:
    """Return a duration exactly, as the file writes it: `90s`, `15m`, `250ms` or `0`."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        if seconds and seconds % unit == 0:
            return f"{seconds / unit:.0f}{name}"
    return f"{seconds * 1000:g}ms" if seconds else "0"


def showable(text: str) -> str:
    """Return `text` so that it cannot command a terminal: what could is written as an escape.

    It may come from a file that somebody made: a model's header, or llama-server's words about it.
    """
    if text.isprintable():
        return text
    return _UNSHOWABLE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return found[0].encode("unicode_escape").decode()


def is_utf8(name: str) -> bool:
    """Tell whether the name of a file is UTF-8, so that JSON, YAML and HTTP can say it."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
