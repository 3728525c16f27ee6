"""Curves over time as an SVG file, without a library: one panel for each series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTH: Final = 720
_HEIGHT: Final = 110
_LEFT: Final = 56
_TEXT: Final = 'font-family="sans-serif" font-size="12" fill="#444"'


@dataclass(frozen=True, slots=True)
class Series:
    """What is drawn in one panel, from 0 up."""

    name: str
    values: Sequence[float]


def draw(at: Sequence[float], series: Sequence[Series], unit: str) -> str:
    """Return the SVG; `at` are the places of all values on the axis, in `unit`."""
    height = _HEIGHT * len(series) + 24
    body = [panel for number, one in enumerate(series) for panel in _panel(at, one, number)]
    end = max(at, default=0.0)
    body.append(f'<text x="{_LEFT}" y="{height - 6}" {_TEXT}>0</text>')
    body.append(
        f'<text x="{_WIDTH - 8}" y="{height - 6}" text-anchor="end" {_TEXT}>{end:.0f} {unit}</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}">\n<rect width="100%" height="100%" fill="#fff"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _panel(at: Sequence[float], one: Series, number: int) -> list[str]:
    top, bottom = number * _HEIGHT + 24, (number + 1) * _HEIGHT
    right, highest = _WIDTH - 8, max(one.values, default=0.0) or 1.0
    across = (right - _LEFT) / (max(at, default=0.0) or 1.0)
    points = " ".join(
        f"{_LEFT + x * across:.1f},{bottom - (bottom - top) * y / highest:.1f}"
        for x, y in zip(at, one.values, strict=True)
    )
    return [
        f'<text x="{_LEFT}" y="{top - 6}" {_TEXT}>{one.name}</text>',
        f'<text x="{_LEFT - 6}" y="{top + 10}" text-anchor="end" {_TEXT}>{highest:,.0f}</text>',
        f'<text x="{_LEFT - 6}" y="{bottom}" text-anchor="end" {_TEXT}>0</text>',
        f'<path d="M{_LEFT} {top}V{bottom}H{right}" fill="none" stroke="#bbb"/>',
        f'<polyline points="{points}" fill="none" stroke="#2563eb" stroke-width="1.2"/>',
    ]
