"""How llama-server's options, environments and free data are written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from llamaswap_py.config.forms import Form, at_key, expected, read_list, read_text
from llamaswap_py.config.nodes import Invalid, Listing, Node, Scalar, Table, describe
from llamaswap_py.config.options import PATH_LISTS, PATH_OPTIONS, long_name

if TYPE_CHECKING:
    from llamaswap_py.config.forms import Base, Schema
    from llamaswap_py.config.values import Argument

_SCALAR: Final[Schema] = {"type": ["string", "number", "boolean"]}


def _table(node: Node, what: str) -> Table:
    if not isinstance(node, Table):
        raise expected(node, what)
    return node


# args


def _args(node: Node, base: Base) -> dict[str, Argument]:
    what = "a mapping like {ctx-size: 8192, jinja: true}"
    if isinstance(node, Listing) or (isinstance(node, Scalar) and isinstance(node.value, str)):
        remedy = "write each option as NAME: VALUE; words as they are go into `extra`"
        raise Invalid(node, f"{describe(node)} is not {what}", remedy)
    table = _table(node, what)
    args: dict[str, Argument] = {}
    spelled: dict[str, str] = {}
    for key, entry in table.entries.items():
        name = long_name(key)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name, re.ASCII):
            raise Invalid(
                entry, "this is not an option name", "write it as in --help, without --", key=key
            )
        if name in args:
            message = f"the same option as {spelled[name]}"
            raise Invalid(entry, message, f"keep one: {name}", key=key)
        spelled[name] = key
        try:
            args[name] = _argument(name, entry.value, base)
        except Invalid as error:
            error.key = key
            raise
    return args


def _argument(name: str, node: Node, base: Base) -> Argument:
    if isinstance(node, Listing):
        return tuple(_one(name, item, base) for item in node.items)
    return _one(name, node, base)


def _one(name: str, node: Node, base: Base) -> bool | int | float | str:
    if isinstance(node, Table):
        raise Invalid(node, "an option takes no mapping", "write JSON between single quotes")
    if not isinstance(node, Scalar):
        raise Invalid(node, "an option takes no list of lists", "one list repeats the option")
    if node.value is None and node.plain:
        raise expected(node, "a value (true for an option that takes none)")
    if name in PATH_OPTIONS and not isinstance(node.value, bool):
        return base.path(node.text, node)
    if name in PATH_LISTS and not isinstance(node.value, bool):
        return ",".join(base.path(part, node) for part in node.text.split(","))
    return node.text if node.value is None else node.value


ARGS: Final = Form(
    _args,
    {
        "type": "object",
        "propertyNames": {"pattern": "^-{0,2}[A-Za-z0-9][A-Za-z0-9._-]*$"},
        "additionalProperties": {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR}]},
    },
)


# extra


def _extra(node: Node, _: Base) -> tuple[str, ...]:
    words = []
    for item in read_list(node, "words like [--flag, value]"):
        if (
            not isinstance(item, Scalar)
            or isinstance(item.value, bool)
            or (item.value is None and item.plain)
        ):
            raise Invalid(item, f"{describe(item)} is not a word of a command line", "quote it")
        words.append(item.text)
    return tuple(words)


EXTRA: Final = Form(_extra, {"type": "array", "items": {"type": ["string", "number"]}}, list)


# env

_NOT_ENV: Final = {
    "LLAMA_ARG_": "use `args`: options from the environment would bypass the checks",
    "LLAMA_API_KEY": "children are private and need no key",
    "LLAMA_SERVER_": "lswap sets it",
    "XDG_CONFIG_HOME": "lswap sets it, so that no other configuration is read",
}


def _env(node: Node, base: Base) -> dict[str, str]:
    table = _table(node, "a mapping like {NAME: value}")
    env: dict[str, str] = {}
    for name, entry in table.entries.items():
        if not name or "=" in name:
            raise Invalid(entry, f"{name!r} is not a name of a variable", key=name)
        if why := next((why for start, why in _NOT_ENV.items() if name.startswith(start)), None):
            raise Invalid(entry, "this variable cannot be set here", why, key=name)
        env[name] = at_key(name, _VARIABLE, entry.value, base)
    return env


def _variable(node: Node, _: Base) -> str:
    if isinstance(node, Scalar) and node.text == "" and (not node.plain or node.shown):
        return ""  # written so, or what a variable comes to
    return read_text(node, 'a value ("" for an empty one)')


_VARIABLE: Final = Form(_variable, {})
_NOT_ENV_PATTERN: Final = "|".join(_NOT_ENV)
ENV: Final = Form(
    _env,
    {
        "type": "object",
        "propertyNames": {"pattern": f"^(?!{_NOT_ENV_PATTERN})[^=]+$"},
        "additionalProperties": _SCALAR,
    },
)


# metadata


def _metadata(node: Node, _: Base) -> dict[str, Any]:
    table = _table(node, "a mapping like {note: for the team}")
    found: dict[str, Any] = {}
    for name, entry in table.entries.items():
        value = entry.value
        if not isinstance(value, Scalar) or (value.value is None and value.plain):
            raise Invalid(
                value, f"{describe(value)} is not a text, a number, true or false", key=name
            )
        found[name] = value.value
    return found


METADATA: Final = Form(_metadata, {"type": "object", "additionalProperties": _SCALAR})
