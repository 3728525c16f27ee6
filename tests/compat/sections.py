"""The parts of a page that commands write: each between two comments that name it."""

from __future__ import annotations

from pathlib import Path


def marks(name: str) -> tuple[str, str]:
    """Return the comments around a part."""
    return f"<!-- begin: {name} -->", f"<!-- end: {name} -->"


def replaced(page: str, name: str, text: str) -> str:
    """Return a page with a part written anew; raises ValueError for one that it does not have."""
    begin, end = marks(name)
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no part between {begin} and {end}")
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"


def write(path: Path, name: str, text: str) -> None:
    """Write a part of a page anew."""
    path.write_text(replaced(path.read_text(encoding="utf-8"), name, text), encoding="utf-8")
