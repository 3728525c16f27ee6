"""The reference of all keys: a row for each, and the tables of docs/configuration.md."""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llamaswap_py.config.forms import Record
from llamaswap_py.config.json_schema import keys_of, spelled_default
from llamaswap_py.config.sections import Config, Defaults

if TYPE_CHECKING:
    from collections.abc import Iterator

BEGIN: Final = "<!-- The tables from here on are made by scripts/configuration_reference.py -->"
_TOP: Final = "The file"
_PRESET: Final = "models.NAME"
_SECTIONS: Final = {
    _TOP: "Top-level settings.",
    _PRESET: "One model. Keys that `defaults` has, too, are inherited from there.",
    "models.NAME.variants[]": "Several ways to run one model; each has only the keys that differ.",
}
_ONE_OF: Final = {"models": "this or `model_dirs`", "models.NAME.model": "this, `hf` or `cmd`"}
"""Keys that may be left out only if another key is set, with what the page says of each."""


class Row(NamedTuple):
    """One line of the reference page; `type` and `default` are spelled as in the file."""

    key: str
    type: str
    default: str
    description: str
    examples: tuple[Any, ...] = ()


def reference_rows() -> tuple[Row, ...]:
    """Return a row for every key, in the file's order; presets are `models.NAME.…`."""
    return tuple(_rows(Config, ""))


def _rows(record: type[Record], prefix: str) -> Iterator[Row]:
    for name, key in keys_of(record).items():
        place = f"{prefix}{name}"
        if key.record is not None and key.many:
            default = "required" if key.required else "none"
            yield Row(place, key.many, default, key.description)
            yield from _rows(key.record, f"{place}[]." if key.many == "list" else f"{place}.NAME.")
        elif key.record is Defaults:
            own = "model, hf, cmd, ready, stop_cmd, served_by, aliases, variants"
            keys = f"All keys of a preset but {own}."
            yield Row(place, "mapping", "", f"{key.description} {keys}")
        elif key.record is not None:
            yield from _rows(key.record, f"{place}.")
        else:
            default = "required" if key.required else json.dumps(spelled_default(key))
            yield Row(
                place, _said(key.form.schema), default.strip('"'), key.description, key.examples
            )


def _said(schema: Any) -> str:
    """Return a schema in a few words, each once: `size or mapping`, `never or duration`."""
    if "anyOf" in schema:
        words = [_said(each) for each in schema["anyOf"]]
        return " or ".join(dict.fromkeys(word for word in words if word != "0"))
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return " or ".join(dict.fromkeys(map(str, schema["enum"])))
    if schema.get("title"):
        return str(schema["title"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    names = {"array": "list", "object": "mapping", "string": "text", "integer": "number"}
    return " or ".join(str(names.get(kind, kind)) for kind in kinds)


def reference_text() -> str:
    """Return a table for every mapping of the file, the top level and presets first."""
    tables: dict[str, list[Row]] = {}
    for place, rows in groupby(reference_rows(), key=_section):
        tables.setdefault(place, []).extend(rows)
    first = [place for place in (_TOP, _PRESET) if place in tables]
    order = [*first, *(place for place in tables if place not in first)]
    return "\n".join(line for place in order for line in _table(place, tables[place]))


def with_reference(page: str) -> str:
    """Return a page with new tables after the mark. Raises ValueError if it has no mark."""
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
    """Return a value as YAML in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_yaml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, str) and not value.startswith(("{", "*", "&")):
        return value
    return json.dumps(value)
