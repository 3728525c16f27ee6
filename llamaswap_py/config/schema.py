"""The JSON Schema for editors and the rows of the reference page, both from the records."""

from __future__ import annotations

import json
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llamaswap_py.config.keys import Key, keys_of, spelled_default
from llamaswap_py.config.records import Config, Defaults, Preset, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llamaswap_py.config.forms import Schema

_WAYS: Final = ("model", "hf", "cmd")
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> Schema:
    """Return the schema (draft 2020-12) of the configuration file, as YAML loads it."""
    return {
        "$schema": DIALECT,
        "title": "lswap configuration",
        "description": "Models to serve, one preset each, and the machine to serve them on.",
        **_object(Config),
        "$defs": {"preset": _object(Preset)},
    }


def _object(record: type[Record]) -> Schema:
    keys = keys_of(record)
    schema: Schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _property(key) for name, key in keys.items()},
    }
    if required := [name for name, key in keys.items() if key.required]:
        schema["required"] = required
    if record is Preset:  # a file, the repository that has it, or another program
        del schema["required"]
        schema["not"] = {"anyOf": [{"required": list(two)} for two in combinations(_WAYS, 2)]}
    if record is Config:  # presets, or folders to find them in
        schema["anyOf"] = [{"required": schema.pop("required")}, {"required": ["model_dirs"]}]
        one = {"anyOf": [{"required": [way]} for way in _WAYS]}
        schema["if"] = {"not": {"required": ["model_dirs"]}}
        schema["then"] = {"properties": {"models": {"additionalProperties": one}}}
    return schema


def _property(key: Key) -> Schema:
    schema: Schema = {"description": key.description}
    if key.name == "models":
        names = {"pattern": r"^[^\s,]([^,]{0,253}[^\s,])?$"}
        reference = {"$ref": "#/$defs/preset"}
        schema |= {"type": "object"}
        return schema | {"propertyNames": names, "additionalProperties": reference}
    if key.record is not None:
        return schema | _COLLECTIONS[key.many](_object(key.record))
    schema |= _or_variable(key.form.schema)
    if key.examples:
        schema["examples"] = list(key.examples)
    default = None if key.required else spelled_default(key)
    if default is not None:  # null is the absence of a value: nothing an editor should insert
        schema["default"] = default
    return schema


def _or_variable(schema: Schema) -> Schema:
    """Return the schema of a value that may be written with variables, too."""
    if schema.get("type") in ("object", "array") or (
        schema.get("type") == "string" and ("pattern" not in schema)
    ):
        return schema  # any text is fine, or they stand further inside
    return {"anyOf": [*schema.get("anyOf", [schema]), _VARIABLE]}


_VARIABLE: Final[Schema] = {"title": "variable", "type": "string", "pattern": r"\$\{"}
_COLLECTIONS: Final[dict[str, Callable[[Schema], Schema]]] = {
    "": lambda record: record,
    "list": lambda record: {"type": "array", "minItems": 1, "items": record},
    "mapping": lambda record: {"type": "object", "additionalProperties": record},
}


class Row(NamedTuple):
    """One line of the reference page; `type` and `default` are as one writes them."""

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
    """Return a schema in few words: `size or mapping`, `never or duration`."""
    if "anyOf" in schema:
        words = [_said(each) for each in schema["anyOf"]]
        return " or ".join(dict.fromkeys(word for word in words if word != "0"))
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if schema.get("title"):
        return str(schema["title"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    names = {"array": "list", "object": "mapping", "string": "text", "integer": "number"}
    return " or ".join(str(names.get(kind, kind)) for kind in kinds)
