"""How many lines each part of the screen gets. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SMALL: Final = 17
"""Lines of body below which the two lower panes share one place."""


@dataclass(frozen=True, slots=True)
class Heights:
    """Lines of each part; 0 means it is not there. `models` and the others count their heads."""

    devices: int
    models: int
    detail: int
    requests: int
    lower: int


def divide(
    lines: int, *, devices: int, models: int, requests: int, focus: str, zoomed: bool = False
) -> Heights:
    """Divide a screen of `lines`, less title and keys, among what there is to show.

    `focus` is `models`, `requests` or `lower`: on a small screen it is the one of the lower two
    that is seen; zoomed, the only one of all.
    """
    shown = max(1, min(devices, max(1, lines // 8))) if devices else 0
    body = max(0, lines - 2 - shown)
    if zoomed:
        return Heights(
            shown,
            body if focus == "models" else 0,
            0,
            body if focus == "requests" else 0,
            body if focus == "lower" else 0,
        )
    detail = 0 if body < 8 else 1 if body < 20 else 2
    body -= detail
    if body < SMALL:
        top = min(models + 1, body, max(2, (body + 1) // 2))
        rest = body - top
        if focus == "requests":
            return Heights(shown, top, detail, rest, 0)
        return Heights(shown, top, detail, 0, rest)
    top = min(models + 1, max(4, body * 45 // 100))
    middle = min(max(requests, 1) + 1, max(3, body * 30 // 100))
    return Heights(shown, top, detail, middle, body - top - middle)
