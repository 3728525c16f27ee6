"""Sets single keys in YAML text; every other character stays as it is. Pure.

A file that is read and written again as a whole would lose blank lines and the place of comments.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import yaml

from llamaswap_py.errors import LswapError
from llamaswap_py.llamacpp.options import long_name, plain_name

Place: TypeAlias = tuple[str, ...]
"""Where a key stands: the names of the mappings around it, then its own."""
_PLAIN: Final = re.compile(r"[A-Za-z~/][\w./+@~-]*", re.ASCII)
_WORDS: Final = ("true", "false", "null", "yes", "no", "on", "off", "y", "n", "~")
_ALIAS: Final = re.compile(r"\s*\*[^\s,\]}]+")
_STEP: Final = 2
"""Columns by which a new mapping is indented."""


class UneditableError(LswapError):
    """Raised for a place that cannot be set without changing something else."""


class _Pair(NamedTuple):
    """A key and its value in the text; `end` is the index after the value."""

    key: Any
    value: Any
    end: int
    is_alias: bool


def with_key(text: str, place: Place, value: str | int | bool) -> str:
    """Return the text with a key set to a value; makes the mappings around it that are missing.

    An option that is there in another spelling keeps that spelling. In a list, as of variants, a
    name means the item with that `name`. Raises UneditableError, and yaml.YAMLError for no YAML.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        return f"{_ended(text)}{_block(place, value, 0)}\n"
    node = root
    for at, step in enumerate(place):
        if isinstance(node, yaml.SequenceNode):
            node = _item(node, step, place[:at])
            continue
        if not isinstance(node, yaml.MappingNode):
            raise UneditableError(f"`{'.'.join(place[:at])}` is not a mapping")
        pairs = _pairs(text, node)
        pair = _find(pairs, step, is_option=place[at - 1 : at] == ("args",))
        if pair is None:
            return _added(text, node, pairs, place[at:], value)
        if at == len(place) - 1:
            return _replaced(text, pair, value)
        if pair.is_alias:
            said = ".".join(place[: at + 1])
            raise UneditableError(f"`{said}` stands elsewhere in the file (*), for several entries")
        if _is_null(pair.value):
            return _filled(text, node, pair, place[at + 1 :], value)
        node = pair.value
    raise UneditableError(f"`{'.'.join(place)}` is not a key")


def scalar(value: str | int | bool) -> str:
    """Return a value as YAML, with quotes where it needs them."""
    if isinstance(value, str):
        is_plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
        return value if is_plain else msgspec.json.encode(value).decode()
    return str(value).lower()


def _pairs(text: str, node: Any) -> list[_Pair]:
    found = []
    for key, value in node.value:
        start = text.index(":", key.end_mark.index) + 1
        alias = _ALIAS.match(text, start) if value.start_mark.index < start else None
        if alias is not None:
            found.append(_Pair(key, value, alias.end(), is_alias=True))
        else:
            found.append(_Pair(key, value, max(_end(text, value), start), is_alias=False))
    return found


def _end(text: str, node: Any) -> int:
    """Return the index after the last character of a node, without what follows a block."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return _pairs(text, node)[-1].end
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return max(_end(text, last), node.start_mark.index)
    end: int = node.end_mark.index
    return len(text[:end].rstrip()) if end > node.start_mark.index else end


def _find(pairs: list[_Pair], step: str, *, is_option: bool) -> _Pair | None:
    for one in pairs:
        name = str(one.key.value)
        if name == step or (is_option and long_name(plain_name(name)) == long_name(step)):
            return one
    return None


def _item(node: Any, name: str, place: Place) -> Any:
    for item in node.value:
        if isinstance(item, yaml.MappingNode) and ("name", name) in (
            (key.value, value.value) for key, value in item.value
        ):
            return item
    raise UneditableError(f"`{'.'.join(place)}` has no {name!r} of its own")


def _is_null(node: Any) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _added(text: str, node: Any, pairs: list[_Pair], place: Place, value: str | int | bool) -> str:
    """Return the text with a key behind the others of a mapping."""
    if node.flow_style:
        end = pairs[-1].end if pairs else node.start_mark.index + 1
        comma = ", " if pairs else ""
        return f"{text[:end]}{comma}{_flow(place, value)}{text[end:]}"
    line_end = _line_end(text, pairs[-1].end)
    new = _block(place, value, node.value[0][0].start_mark.column)
    return f"{_ended(text[:line_end])}{new}\n{text[line_end + 1 :]}"


def _filled(text: str, node: Any, pair: _Pair, place: Place, value: str | int | bool) -> str:
    """Return the text with keys below a key that has no value yet."""
    start = pair.value.start_mark.index
    empty = pair.value.end_mark.index == start
    begin = text[: pair.end] if empty else text[:start].rstrip()
    rest = text[pair.end :]
    if node.flow_style:
        return f"{begin} {{{_flow(place, value)}}}{rest}"
    line_end = _line_end(text, pair.end)
    new = _block(place, value, pair.key.start_mark.column + _STEP)
    return f"{begin}{text[pair.end : line_end]}\n{new}\n{text[line_end + 1 :]}"


def _replaced(text: str, pair: _Pair, value: str | int | bool) -> str:
    start = text.index(":", pair.key.end_mark.index) + 1
    if isinstance(pair.value, yaml.ScalarNode) and not pair.is_alias:
        start = max(start, pair.value.start_mark.index)
    space = "" if text[start - 1] == " " else " "
    return f"{text[:start]}{space}{scalar(value)}{text[pair.end :]}"


def _line_end(text: str, at: int) -> int:
    found = text.find("\n", at)
    return len(text) if found < 0 else found


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"


def _block(place: Place, value: str | int | bool, column: int) -> str:
    lines = [f"{' ' * (column + _STEP * at)}{scalar(step)}:" for at, step in enumerate(place)]
    return "\n".join(lines) + f" {scalar(value)}"


def _flow(place: Place, value: str | int | bool) -> str:
    text = f"{scalar(place[-1])}: {scalar(value)}"
    for step in reversed(place[:-1]):
        text = f"{scalar(step)}: {{{text}}}"
    return text
