"""Forms of the changes to a request (`request`), and of an alias's shares (`split`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llamaswap_py.config.forms import Filters, Form, expected, read_list, read_text
from llamaswap_py.config.yaml_tree import UNKNOWN_KEY, Invalid, Node, Scalar, Table, plain_value

if TYPE_CHECKING:
    from llamaswap_py.config.forms import Base, Schema

_KEPT: Final = frozenset({"model", "stream"})
"""Members that no filter may change: they decide where a request goes and how it is answered.

One exception: `set` may change `model`, to the name by which a program of `cmd` knows its model.
"""
_VALUES: Final[Schema] = {"type": "object"}


def _filters(node: Node, base: Base) -> Filters:
    return _one(node, base, inner=False)


def _one(node: Node, base: Base, *, inner: bool) -> Filters:
    if not isinstance(node, Table):
        raise expected(node, "a mapping like {set: {temperature: 0.7}, strip: [seed]}")
    found: dict[str, Any] = {}
    for name, entry in node.entries.items():
        try:
            if name in ("set", "default"):
                found[name] = _members(entry.value, renames=name == "set")
            elif name == "strip":
                found[name] = tuple(
                    _member(read_text(each, "a name"), each)
                    for each in read_list(entry.value, "names like [seed]")
                )
            elif name == "per_name" and not inner:
                found[name] = _per_name(entry.value, base)
            else:
                raise Invalid(entry, UNKNOWN_KEY, "known here: set, default, strip, per_name")
        except Invalid as error:
            error.key = f"{name}.{error.key}" if error.key else name
            raise
    return Filters(**found)


def _members(node: Node, *, renames: bool) -> dict[str, Any]:
    """Read members and their values; `renames`: `model` is among those that may be changed."""
    if not isinstance(node, Table):
        raise expected(node, "a mapping like {temperature: 0.7}")
    return {
        name if renames and name == "model" else _member(name, entry.value): plain_value(
            entry.value
        )
        for name, entry in node.entries.items()
    }


def _member(name: str, node: Node) -> str:
    if name in _KEPT:
        raise Invalid(node, f"`{name}` cannot be changed", "remove it")
    return name


def _per_name(node: Node, base: Base) -> dict[str, Filters]:
    if not isinstance(node, Table):
        raise expected(node, "a mapping of names")
    found: dict[str, Filters] = {}
    for name, entry in node.entries.items():
        try:
            found[name] = _one(entry.value, base, inner=True)
        except Invalid as error:
            error.key = f"{name}.{error.key}" if error.key else name
            raise
    return found


_INNER: Final[Schema] = {
    "type": "object",
    "properties": {
        "set": _VALUES,
        "default": _VALUES,
        "strip": {"type": "array", "items": {"type": "string"}},
    },
    "additionalProperties": False,
}
FILTERS: Final = Form(
    _filters,
    {
        **_INNER,
        "properties": {
            **_INNER["properties"],
            "per_name": {"type": "object", "additionalProperties": _INNER},
        },
    },
    lambda filters: {} if filters == Filters() else filters,
)


def _shares(node: Node, _: Base) -> dict[str, int]:
    if not isinstance(node, Table) or not node.entries:
        raise expected(node, "a mapping like {qwen3-8b: 90, gemma: 10}")
    found: dict[str, int] = {}
    for name, entry in node.entries.items():
        value = entry.value
        share = value.value if isinstance(value, Scalar) else None
        if not isinstance(share, int) or isinstance(share, bool) or share < 0:
            raise Invalid(entry, "a share must be a whole number, 0 or more", key=name)
        found[name] = share
    if not sum(found.values()):
        raise Invalid(node, "no share is above 0", "give one name a share of 1 or more")
    return found


SHARES: Final = Form(
    _shares,
    {
        "type": "object",
        "additionalProperties": {"type": "integer", "minimum": 0},
        "minProperties": 1,
    },
)
