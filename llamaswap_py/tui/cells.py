"""Texts and bars that fit a width in terminal cells. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len, set_cell_size

from llamaswap_py.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?")
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_IN_ASCII: Final = str.maketrans("·…–—×→↑↓“”‘’█░▓▚▒╱›", "-~--x>^v\"\"''#-@Ro/>")


def clean(text: str) -> str:
    """Return text without escape sequences and control characters, which clients may have sent."""
    return _CONTROLS.sub(" ", _ESCAPES.sub("", text.replace("\t", "    ")))


def in_ascii(text: str) -> str:
    """Return text of the same length in ASCII, which every terminal can show."""
    return text.translate(_IN_ASCII).encode("ascii", "replace").decode()


def fit(text: str, width: int, *, right: bool = False) -> str:
    """Return `text` in exactly `width` cells, cut if it is too long."""
    if width <= 0:
        return ""
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…"
    space = " " * (width - length)
    return space + text if right else text + space


def fit_middle(text: str, width: int) -> str:
    """Return `text` in exactly `width` cells; if it is too long, it is cut in the middle.

    Both ends of a model's name matter: Qwen3-32B-Q4_K_M, Qwen3-32B-Q6_K, Qwen3-Coder-30B-Q4_K_M.
    """
    if width < 12 or cell_len(text) <= width:
        return fit(text, width)
    tail = (width - 1) // 3
    end = text
    while cell_len(end) > tail:
        end = end[1:]
    return fit(text, width - cell_len(end)) + end


def wrap(text: str, width: int, limit: int) -> list[str]:
    """Return at most `limit` lines of at most `width` cells, broken between words."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_len(joined) <= width or not lines[-1]:
            lines[-1] = joined
        elif len(lines) == limit:
            lines[-1] = fit(f"{lines[-1]} {word}", width)
            break
        else:
            lines.append(word)
    return [fit(line, width).rstrip() for line in lines]


def short_time(seconds: float) -> str:
    """Return `9s`, `12m`, `3h05` or `4d`: at most four cells below 100 days."""
    whole = int(seconds)
    if whole < 100:
        return f"{whole}s"
    if whole < 6000:
        return f"{whole // 60}m"
    hours, minutes = divmod(whole // 60, 60)
    if hours < 10:
        return f"{hours}h{minutes:02}"
    return f"{hours}h" if hours < 100 else f"{hours // 24}d"


def short_count(number: float) -> str:
    """Return `0.4`, `31`, `999`, `1.2k` or `15k`."""
    if number < 1:
        return f"{number:.1f}"
    if number < 1000:
        return f"{number:.0f}"
    return f"{number / 1000:.1f}k" if number < 10_000 else f"{number / 1000:.0f}k"


def short_size(size: int) -> str:
    """Return `512M`, `9.5G` or `1.2T`: a size in fewer cells than `format_size` needs."""
    return format_size(size).replace(" ", "").replace("iB", "")


def progress_bar(fraction: float, width: int) -> str:
    """Return a bar that is full at 1.0."""
    full = int(min(1.0, max(0.0, fraction)) * width)
    return "█" * full + "░" * (width - full)


def shares(sizes: Sequence[int], total: int, width: int) -> list[int]:
    """Return how many of `width` cells each size gets; a size above 0 gets at least one.

    The cells left after rounding down go to the largest remainders, so that the sum is right. If
    the smallest sizes need more, the largest ones lose cells.
    """
    whole = max(total, sum(sizes), 1)
    exact = [size * width / whole for size in sizes]
    cells = [max(1, int(part)) if size > 0 else 0 for part, size in zip(exact, sizes, strict=True)]
    want = min(width, round(sum(exact)))
    order = sorted(range(len(sizes)), key=lambda at: exact[at] - int(exact[at]), reverse=True)
    for at in order:
        if sum(cells) < want and exact[at] >= 1:
            cells[at] += 1
    while sum(cells) > width:
        cells[cells.index(max(cells))] -= 1
    return cells
