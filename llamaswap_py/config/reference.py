"""The reference of all keys as Markdown: the tables of docs/configuration.md."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any, Final

from llamaswap_py.config.json_schema import Row, reference_rows

BEGIN: Final = "<!-- The tables from here on are made by scripts/configuration_reference.py -->"
_TOP: Final = "The file"
_PRESET: Final = "models.NAME"
_SECTIONS: Final = {
    _TOP: "Top-level settings.",
    _PRESET: "One model. Keys that `defaults` has, too, are inherited from there.",
    "models.NAME.variants[]": "Several ways to run one model; each has only the keys that differ.",
}
_ONE_OF: Final = {"models": "this or `model_dirs`", "models.NAME.model": "this, `hf` or `cmd`"}
"""Keys of which one has to be there."""


def reference_text() -> str:
    """Return a table for every mapping of the file, the top level and presets first."""
    tables: dict[str, list[Row]] = {}
    for place, rows in groupby(reference_rows(), key=_section):
        tables.setdefault(place, []).extend(rows)
    first = [place for place in (_TOP, _PRESET) if place in tables]
    order = [*first, *(place for place in tables if place not in first)]
    return "\n".join(line for place in order for line in _table(place, tables[place]))


def with_reference(page: str) -> str:
    """Return a page with what follows the mark made anew. Raises ValueError without a mark."""
    written, mark, _ = page.partition(BEGIN)
    if not mark:
        raise ValueError(f"the page has no line {BEGIN}")
    return f"{written}{BEGIN}\n\n{reference_text()}"


def _section(row: Row) -> str:
    place, dot, _ = row.key.rpartition(".")
    return place if dot else _TOP


def _table(place: str, rows: list[Row]) -> list[str]:
    said = _SECTIONS.get(place)
    title = place if place == _TOP else f"`{place}`"
    return [
        f"## {title}",
        "",
        *([said, ""] if said else []),
        "| key | value | default | |",
        "|---|---|---|---|",
        *(_line(place, row) for row in rows),
        "",
    ]


def _line(place: str, row: Row) -> str:
    name = row.key.removeprefix(f"{place}.")
    default = {"none": "", "null": "", "": ""}.get(row.default, row.default)
    said = row.description.replace("|", "\\|")
    shown = [_yaml(example) for example in row.examples if _yaml(example) != default]
    examples = f" Like {', '.join(f'`{one}`' for one in shown)}." if shown else ""
    if row.key in _ONE_OF:
        default = _ONE_OF[row.key]
    elif default and default != "required":
        default = f"`{_yaml(json.loads(default)) if default[0] in '{[' else default}`"
    kind = row.type.replace("|", "\\|")
    return f"| `{name}` | {kind} | {default} | {said}{examples} |"


def _yaml(value: Any) -> str:
    """Return a value in one line, as one writes it in braces."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_yaml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, str) and not value.startswith(("{", "*", "&")):
        return value
    return json.dumps(value)
