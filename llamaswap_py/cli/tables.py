"""Tables for people: fitted to the terminal's width, else aligned text. No text is cut."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_COLOURS: Final = {
    "ready": "32",
    "loading": "33",
    "draining": "33",
    "stopping": "33",
    "sleeping": "34",
    "failed": "31",
}
_SAYS_NOTHING: Final = frozenset(("", "-", "0"))
_GAP: Final = 2
_FIXED: Final = 2
"""So many first columns always stay: a name and its state."""
_LEAST_LAST: Final = 24
"""The least width of the last column, which has sentences; with less room it goes below its row."""
_LONG: Final = 16
"""A column that is wider than this may go below its row."""


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: fitted to a terminal; else with all columns, aligned."""
    print(table_text(columns, rows, colour=not os.environ.get("NO_COLOR")))


def table_text(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, colour: bool = False
) -> str:
    """Return a table for standard output; `colour` is for terminals only."""
    if not sys.stdout.isatty():
        return plain_table(columns, rows)
    width = shutil.get_terminal_size().columns
    return fitted_table(columns, rows, width, colour=colour)


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return aligned columns, two blanks apart."""
    lines = [[name.upper() for name in columns], *rows]
    widths = _widths(lines)
    return "\n".join(_joined(line, widths) for line in lines)


def fitted_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, colour: bool = False
) -> str:
    """Return a table that is not wider than `width`, as far as its words allow.

    Columns that are empty in every row are left out. The last column is folded between words. If
    that is not enough, long columns go below their rows, and so do the columns after a long name.
    """
    kept = [at for at in range(len(columns)) if at < _FIXED or _says(rows, at)]
    lines = [[columns[at].upper() for at in kept], *([row[at] for at in kept] for row in rows)]
    widths = _widths(lines)
    beside = _beside(widths, width)
    below = [at for at in range(len(widths)) if at not in beside]
    sizes = [widths[at] for at in beside]
    room = width - sum(sizes[1:]) - _GAP * (len(sizes) - 1)
    if below:
        sizes[0] = min(sizes[0], max(room, _cells(lines[0][0])))
    indent = sum(sizes[:-1]) + _GAP * (len(sizes) - 1)
    found = [_style(_joined([lines[0][at] for at in beside], sizes), "1", colour=colour)]
    for line in lines[1:]:
        cells = [line[at] for at in beside]
        if _cells(cells[0]) > sizes[0]:  # the name alone; its other columns go below it
            found.append(cells[0])
            cells[0] = ""
        folded = [cells[-1]] if below else _folded(cells[-1], width - indent) or [""]
        state = _COLOURS.get(line[1].partition(" ")[0].rstrip(","), "") if colour else ""
        found.append(_joined([*cells[:-1], folded[0]], sizes, state=state))
        found += [" " * indent + more for more in folded[1:]]
        for at in below:
            label = f"{lines[0][at].lower()}: " if len(below) > 1 else ""
            told = _folded(label + line[at], width - 4) if line[at] not in _SAYS_NOTHING else []
            found += [f"    {each}" for each in told]
    return "\n".join(found)


def _beside(widths: Sequence[int], width: int) -> list[int]:
    """Return the columns that stand beside each other; the others go below their rows."""
    found = list(range(len(widths)))
    least = [*widths[:-1], min(widths[-1], _LEAST_LAST)]
    while sum(least[at] for at in found) + _GAP * (len(found) - 1) > width:
        long = [at for at in found if at >= _FIXED and widths[at] > _LONG]
        if not long:
            break
        found.remove(max(long, key=lambda at: (widths[at], at)))
        least = list(widths)
    return found


def _folded(text: str, width: int) -> list[str]:
    """Fold a sentence between its words; a word that is too long is left whole."""
    if _cells(text) <= width:
        return [text] if text not in _SAYS_NOTHING else []
    return textwrap.wrap(text, max(width, 10), break_long_words=False, break_on_hyphens=False)


def _joined(line: Sequence[str], widths: Sequence[int], *, state: str = "") -> str:
    cells = [
        cell + " " * max(width - _cells(cell), 0) for cell, width in zip(line, widths, strict=False)
    ]
    if state:
        cells[1] = _style(cells[1], state, colour=True)
    return (" " * _GAP).join(cells).rstrip()


def _style(text: str, code: str, *, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text


def _cells(text: str) -> int:
    """Return the width of a text in the cells of a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _says(rows: Sequence[Sequence[str]], at: int) -> bool:
    return any(row[at] not in _SAYS_NOTHING for row in rows)


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(_cells(line[at]) for line in lines) for at in range(len(lines[0]))]
