"""Notes of an import, put together: one line for a note that many models share. Pure.

In a file of a hundred models most have the same few notes. A line for each model would hide the
notes that only one model has.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

_MODELS: Final = "models."
_SHOWN: Final = 6
"""The most names in one line; of more names it has the first few and the number of the others."""


@dataclass(frozen=True, slots=True)
class ImportNote:
    """Something of the source (at `place`) that the new file does not have, and what to do instead.

    `detail` is the source's text there; notes that differ only in it are put together.
    """

    place: str
    text: str
    detail: str = ""

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.place}{detail}: {self.text}"


class _Kind(NamedTuple):
    """The common part of several notes: the key inside a model, and the text."""

    of_models: bool
    key: str
    text: str


def merged(notes: Iterable[ImportNote], models: Container[str]) -> list[str]:
    """Return the lines for `notes`, in the order in which each was first said.

    `models` are the names of all models.
    """
    found: dict[_Kind, dict[str, ImportNote]] = {}
    for note in notes:
        model, key = _split(note.place, models)
        same = found.setdefault(_Kind(model != "", key if model else "", note.text), {})
        before = same.get(model or note.place)
        same[model or note.place] = note if before is None else _both(before, note)
    lines = [_line(kind, same) for kind, same in found.items()]
    return [" ".join(line.split()) for line in lines]


def _both(note: ImportNote, other: ImportNote) -> ImportNote:
    """Return one note of a model for two that differ in their detail alone."""
    if other.detail in note.detail.split(", "):
        return note
    return replace(note, detail=f"{note.detail}, {other.detail}")


def _line(kind: _Kind, same: dict[str, ImportNote]) -> str:
    if len(same) == 1:
        return str(*same.values())
    some = list(same.items())[:_SHOWN]
    shown = ", ".join(f"{name} ({one.detail})" if one.detail else name for name, one in some)
    if (rest := len(same) - _SHOWN) > 0:
        shown += f" and {rest} more"
    if not kind.of_models:
        return f"{shown}: {kind.text}"
    key = f"{kind.key} of " if kind.key else ""
    return f"{key}{len(same)} models: {shown}: {kind.text}"


def _split(place: str, models: Container[str]) -> tuple[str, str]:
    """Return the model that a place belongs to ("" if none), and the key inside the model."""
    bare = place.removeprefix("[").removesuffix("]")
    if bare in models:
        return bare, ""
    if not place.startswith(_MODELS):
        return "", ""
    rest = place.removeprefix(_MODELS)
    ends = [at for at, letter in enumerate(rest) if letter == "."]
    for end in (len(rest), *reversed(ends)):
        if rest[:end] in models:
            return rest[:end], rest[end + 1 :]
    return "", ""
