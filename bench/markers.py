"""Puts a table into a page, between the two lines that mark its place."""

from __future__ import annotations

from pathlib import Path
from typing import Final

END: Final = "<!-- end of table -->"


def begin(command: str) -> str:
    """Return the line that begins the table of a command."""
    return f"<!-- table: {command} -->"


def write_into(path: Path, command: str, text: str) -> None:
    """Replace what stands between the two markers of a file. Exits if they are not both there."""
    first = begin(command)
    before, _, rest = path.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{path}: the lines {first} and {END} are not both in it")
    path.write_text(f"{before}{first}\n\n{text}\n\n{END}{after}", encoding="utf-8")
