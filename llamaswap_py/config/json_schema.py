"""The keys of each record, derived from its fields, and the JSON Schema that editors get."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Meta, structs

from llamaswap_py.config.forms import Base, Form, Record, expected, read_text
from llamaswap_py.config.sections import Config, Preset
from llamaswap_py.config.yaml_tree import Invalid, Node, Scalar, nearest
from llamaswap_py.llamacpp.options import LONG_NAMES, long_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.config.forms import Schema


# Fields that are not read from the file.
_HIDDEN: Final = {
    Preset: {"id", "variant"},
    Config: {"source", "lines", "spelled", "secrets", "sources", "folders", "broken", "described"},
}
_TRUE: Final = ("true", "yes", "on")
_FALSE: Final = ("false", "no", "off")


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a record: its value is a record, a list or mapping of records, or has a form."""

    name: str
    description: str
    examples: tuple[Any, ...]
    record: type[Record] | None
    many: Literal["", "list", "mapping"]
    form: Form
    default: Any

    @property
    def required(self) -> bool:
        return self.default is NODEFAULT


@cache
def keys_of(record: type[Record]) -> dict[str, Key]:
    """Return the keys of a record in the order of its class."""
    hidden = _HIDDEN.get(record, set())
    fields = [field for field in structs.fields(record) if field.name not in hidden]
    if record is Preset:  # its own keys come before the inherited ones
        fields.sort(key=lambda field: field.name not in ("model", "aliases"))
    return {field.name: _key(field) for field in fields}


def key_hint(record: type[Record], name: str) -> str:
    """Return the remedy for an unknown key: where it belongs, or which key may be meant."""
    keys = keys_of(record)
    if record is Config and (place := _place_of(name)):
        return place
    meant = _CALLED_OTHERWISE.get(name, "") if "args" in keys else ""
    if meant in keys:
        return f"did you mean {meant}?"
    if near := nearest(name, keys):
        return near
    if "args" in keys and name.replace("_", "-") in LONG_NAMES:
        return f"llama-server's options go under args: args: {{{long_name(name)}: …}}"
    return f"known here: {', '.join(keys)}"


def _place_of(name: str) -> str:
    """Return where a key at the top level belongs instead; "" if no level has such a key."""
    if name in ("host", "port"):
        return "write listen: HOST:PORT"
    for key in keys_of(Config).values():
        if key.record is not None and not key.many and name in keys_of(key.record):
            return f"write it below `{key.name}`"
    of_preset = keys_of(Preset).keys() - {"model"}  # which is `models`, mistyped
    return "write it in a preset below `models`" if name in of_preset else ""


_CALLED_OTHERWISE: Final = {
    **dict.fromkeys(("file", "path", "gguf", "model_path"), "model"),
    **dict.fromkeys(("repo", "repository", "huggingface"), "hf"),
    **dict.fromkeys(("options", "flags", "params", "parameters"), "args"),
    **dict.fromkeys(("timeout", "keep_alive", "idle_timeout"), "ttl"),
}
"""The names that other programs give to keys of a preset -> the names here."""


def _key(field: structs.FieldInfo) -> Key:
    kind, meta = get_args(field.type)[:2]
    assert isinstance(meta, Meta), field.name
    nested, many = _nested(kind)
    default = field.default
    if default is NODEFAULT and field.default_factory is not NODEFAULT:
        default = field.default_factory()
    return Key(
        name=field.name,
        description=meta.description or "",
        examples=tuple(meta.examples or ()),
        record=nested,
        many=many,
        form=_form(kind, meta) if nested is None else _NOTHING,
        default=default,
    )


def _nested(kind: Any) -> tuple[type[Record] | None, Literal["", "list", "mapping"]]:
    if _is_record(kind):
        return kind, ""
    inner = next((each for each in get_args(kind) if _is_record(each)), None)
    if inner is None:
        return None, ""
    return inner, "list" if get_origin(kind) is tuple else "mapping"


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Record)


def _form(kind: Any, meta: Meta) -> Form:
    extra = meta.extra or {}
    if "form" in extra:
        form = extra["form"]
        assert isinstance(form, Form)
        return form
    if kind is bool:
        return _BOOLEAN
    if get_origin(kind) is Literal:
        return _one_of(get_args(kind))
    word = extra.get("word")
    assert kind is int or (word and set(get_args(kind)) == {int, NoneType}), kind
    most = _MOST if meta.le is None else int(meta.le)
    return _number(int(meta.ge or 0), most, word)


_NOTHING: Final = Form(lambda node, base: None, {})


def _boolean(node: Node, _: Base) -> bool:
    # The words of YAML 1.1 are read too, because many programs' files use them.
    if isinstance(node, Scalar) and node.plain and node.text.lower() in (*_TRUE, *_FALSE):
        return node.text.lower() in _TRUE
    raise expected(node, "true or false")


_BOOLEAN: Final = Form(_boolean, {"type": "boolean"})


def _one_of(words: tuple[str, ...]) -> Form:
    said = " or ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]

    def read(node: Node, _: Base) -> str:
        text = read_text(node, said)
        if text not in words:
            raise Invalid(node, f"{text!r} is not {said}")
        return text

    return Form(read, {"enum": list(words)})


def _number(least: int, most: int, word: str | None) -> Form:
    kind = "a whole number" + (f" from {least} on" if least else "")
    if most != _MOST:
        kind = f"a whole number from {least} to {most}"
    said = f"{kind}, or {word}" if word else kind

    def read(node: Node, _: Base) -> int | None:
        if word is not None and isinstance(node, Scalar) and node.text == word:
            return None
        if not isinstance(node, Scalar) or not node.plain or node.value is None:
            raise expected(node, said)
        try:
            number: int = msgspec.convert(node.value, _limited(least, most))
            return number
        except msgspec.ValidationError:
            raise expected(node, said) from None

    limits = {"type": "integer", "minimum": least, "maximum": most}
    schema = {"anyOf": [{"const": word}, limits]} if word else limits
    return Form(read, schema, lambda value: word if value is None else value)


_MOST: Final = 2**31 - 1  # what a C int holds


@cache
def _limited(least: int, most: int) -> Any:
    return Annotated[int, Meta(ge=least, le=most)]


def spelled_default(key: Key) -> Any:
    """Return a key's default as YAML spells it; NODEFAULT if the key is required."""
    return key.default if key.required or key.record else key.form.spell(key.default)


_WAYS: Final = ("model", "hf", "cmd")
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of the configuration file, for editors."""
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
    if default is not None:  # an editor should not insert null
        schema["default"] = default
    return schema


def _or_variable(schema: Schema) -> Schema:
    """Return the schema of a value that may also be written with variables."""
    if schema.get("type") in ("object", "array") or (
        schema.get("type") == "string" and ("pattern" not in schema)
    ):
        return schema  # it takes any text, or its parts take variables
    return {"anyOf": [*schema.get("anyOf", [schema]), _VARIABLE]}


_VARIABLE: Final[Schema] = {"title": "variable", "type": "string", "pattern": r"\$\{"}
_COLLECTIONS: Final[dict[str, Callable[[Schema], Schema]]] = {
    "": lambda record: record,
    "list": lambda record: {"type": "array", "minItems": 1, "items": record},
    "mapping": lambda record: {"type": "object", "additionalProperties": record},
}
