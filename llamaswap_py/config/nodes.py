"""YAML text -> a tree that remembers its lines.

Read with the scalars of YAML 1.2, not 1.1: `on`, `off`, `yes` and `no` stay words (llama-server's
`--flash-attn on` means them), `1:30` is no number in base 60, `2024-01-01` no date, `007` no 7.
Aliases and merge keys (`<<`) work; a node shared by many aliases is built once and measured, so an
alias bomb costs nothing.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from llamaswap_py.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

# A thousand presets are 100 to 300 kB, and PyYAML reads about 200 kB a second.
MAX_TEXT: Final = 512 << 10
MAX_VALUES: Final = 100_000
MAX_DEPTH: Final = 40

Plain: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value; `text` is how it was written, `plain` says that it had no quotes."""

    line: int
    text: str
    value: Plain
    plain: bool = True


@dataclass(frozen=True, slots=True)
class Listing:
    """A YAML sequence."""

    line: int
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key: value` of a table; `line` is the key's."""

    line: int
    value: Node


@dataclass(frozen=True, slots=True)
class Table:
    """A YAML mapping, keys as text."""

    line: int
    entries: dict[str, Entry]


Node: TypeAlias = Scalar | Listing | Table


class Invalid(ValueError):
    """A value that cannot be used; `key` is added to the place the reader is at."""

    def __init__(
        self, node: Node | Entry, message: str, remedy: str = "", *, key: str = ""
    ) -> None:
        super().__init__(message)
        self.line = node.line
        self.message = message
        self.remedy = remedy
        self.key = key


def describe(node: Node) -> str:
    """Return how to name a value in an error: `a list`, `nothing`, `'abc'`."""
    match node:
        case Listing():
            return "a list"
        case Table():
            return "a mapping"
        case Scalar(value=None):
            return "nothing"
    text = node.text if len(node.text) <= 60 else node.text[:57] + "..."
    return text if node.plain and not isinstance(node.value, str) else repr(text)


_TAG: Final = "tag:yaml.org,2002:"
_SCALARS: Final[dict[str, tuple[re.Pattern[str], Callable[[str], Plain]]]] = {
    "null": (re.compile(r"~|null|Null|NULL|", re.ASCII), lambda _: None),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE", re.ASCII), lambda t: t[0] in "tT"),
    "int": (re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})", re.ASCII), int),
    "float": (
        re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?", re.ASCII),
        float,
    ),
}
_MERGE: Final = _TAG + "merge"


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML up to the node graph; nothing is ever constructed from a tag."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)


def _register_scalars() -> None:
    # A number like 007 or 1e5000 must stay the text it is: the float pattern takes no leading zero.
    leading_zero = re.compile(r"[-+]?0[0-9]")
    for name, (pattern, _) in _SCALARS.items():
        source = pattern.pattern
        if name == "float":
            source = f"(?!{leading_zero.pattern}){source}"
        _Loader.add_implicit_resolver(_TAG + name, re.compile(rf"(?:{source})\Z", re.ASCII), None)
    _Loader.add_implicit_resolver(_MERGE, re.compile(r"<<\Z"), ["<"])


_register_scalars()

# (part of PyYAML's message, what to do about it), first match wins.
_REMEDIES: Final = (
    ("found character '\\t'", "YAML indents with spaces: replace the tab"),
    (
        "mapping values are not allowed",
        "quote the value if it contains ': ', else check the indentation",
    ),
    ("could not find expected ':'", "every key is followed by ': ' and its value"),
    ("found unexpected end of stream", "a quote, bracket or brace is not closed"),
    ("found unexpected ':'", "quote the value"),
    ("unknown escape", "inside \"…\" a backslash must be doubled; in '…' it stands for itself"),
    ("escape sequence", "inside \"…\" a backslash must be doubled; in '…' it stands for itself"),
    ("found undefined alias", "a value that starts with * names an anchor: quote it"),
    ("found duplicate anchor", "give each anchor (&name) its own name"),
    ("expected alphabetic or numeric character", "a value that starts with * or & must be quoted"),
    ("cannot start any token", "a value that starts with this character must be quoted"),
    ("but found another document", "one file is one document: remove the '---' lines"),
    ("expected <block end>", "check the indentation: keys of one level start in the same column"),
    ("expected ',' or", "a bracket or brace is not closed, or a comma is missing"),
    ("special characters are not allowed", "save the file as UTF-8 text"),
)


def _syntax_error(error: yaml.YAMLError, text: str, source: str) -> ConfigError:
    message, place = str(error), source
    if isinstance(error, yaml.MarkedYAMLError):
        message = error.problem or error.context or message
        mark = error.problem_mark or error.context_mark
        if mark is not None:
            place = f"{source}:{mark.line + 1}:{mark.column + 1}"
        if error.context and error.context_mark is not None and error.context != message:
            message = f"{message} ({error.context} from line {error.context_mark.line + 1})"
    elif isinstance(error, ReaderError):
        message = f"{error.reason} ({_character(error.character)})"
        before = text[: error.position]
        place = f"{source}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
    remedy = next((remedy for part, remedy in _REMEDIES if part in message), "")
    return ConfigError(f"this is not YAML: {message}", where=place, remedy=remedy)


def _character(character: object) -> str:
    return f"U+{character:04X}" if isinstance(character, int) else repr(character)


def read_yaml(text: str, source: str) -> Node | None:
    """Return the document's root, or None when there is only white space and comments.

    Raises ConfigError naming `source`, line and column; a file with several duplicate keys gets
    one line for each.
    """
    if len(text) > MAX_TEXT:
        raise ConfigError("the file is larger than 512 KiB", where=source, remedy="is it a model?")
    try:
        root = _Loader(text).get_single_node()
    except yaml.YAMLError as error:
        raise _syntax_error(error, text, source) from None
    except RecursionError:
        raise _too_deep(source) from None
    except (ValueError, OverflowError) as error:  # "\U7fffffff": not a character, PyYAML tries it
        raise ConfigError(f"this is not YAML: {error}", where=source) from None
    if root is None:
        return None
    builder = _Builder(source)
    try:
        tree = builder.build(root, "")
    except Invalid as error:
        raise ConfigError(
            error.message, where=f"{source}:{error.line}", remedy=error.remedy
        ) from None
    if builder.problems:
        raise join_errors(builder.problems)
    return tree


def _too_deep(source: str) -> ConfigError:
    return ConfigError(
        "the values are nested too deeply", where=source, remedy="check the brackets"
    )


def join_errors(problems: list[ConfigError]) -> ConfigError:
    """Return one error with a line for each problem; `.where` is that of the first."""
    if len(problems) == 1:
        return problems[0]
    joined = ConfigError("\n".join(str(problem) for problem in problems))
    joined.where = problems[0].where
    return joined


class _Builder:
    """Turns PyYAML's node graph into our tree, each shared node once."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[ConfigError] = []
        self._done: dict[int, tuple[Node, int, int]] = {}  # id -> node, values, depth
        self._open: set[int] = set()

    def build(self, node: yaml.Node, path: str) -> Node:
        return self._visit(node, path)[0]

    def _visit(self, node: yaml.Node, path: str) -> tuple[Node, int, int]:
        if (done := self._done.get(id(node))) is not None:
            return done
        here = Scalar(node.start_mark.line + 1, "", None)
        if id(node) in self._open:
            raise Invalid(here, "an anchor contains itself", "write the value out")
        self._open.add(id(node))
        match node:
            case yaml.ScalarNode():
                built: tuple[Node, int, int] = _scalar(node), 1, 1
            case yaml.SequenceNode():
                built = self._listing(node, path)
            case _:
                assert isinstance(node, yaml.MappingNode)
                built = self._table(node, path)
        self._open.discard(id(node))
        if built[1] > MAX_VALUES:
            raise Invalid(here, f"more than {MAX_VALUES} values, aliases expanded")
        if built[2] > MAX_DEPTH:
            raise Invalid(here, "the values are nested too deeply", "check the brackets")
        self._done[id(node)] = built
        return built

    def _listing(self, node: yaml.SequenceNode, path: str) -> tuple[Node, int, int]:
        _plain_tag(node, "seq")
        visited = [self._visit(item, f"{path}[{i}]") for i, item in enumerate(node.value)]
        listing = Listing(node.start_mark.line + 1, tuple(item for item, _, _ in visited))
        return listing, 1 + sum(v[1] for v in visited), 1 + max((v[2] for v in visited), default=0)

    def _table(self, node: yaml.MappingNode, path: str) -> tuple[Node, int, int]:
        _plain_tag(node, "map")
        own: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        values, depth = 1, 1
        for key_node, value_node in node.value:
            key = _key(key_node)
            line = key_node.start_mark.line + 1
            place = f"{path}.{key}" if path else key
            value, inner_values, inner_depth = self._visit(value_node, place)
            values, depth = values + inner_values, max(depth, 1 + inner_depth)
            if key_node.tag == _MERGE:
                for entries in _merge_sources(value):
                    merged = entries | merged
            elif (first := own.get(key)) is not None:
                where = f"{self.source}:{line}: {place}"
                message = f"this key is already on line {first.line}"
                self.problems.append(ConfigError(message, where=where, remedy="keep one of them"))
            else:
                own[key] = Entry(line, value)
        kept = {key: entry for key, entry in merged.items() if key not in own}
        return Table(node.start_mark.line + 1, kept | own), values + len(kept), depth


def _merge_sources(value: Node) -> list[dict[str, Entry]]:
    """Return the tables that `<<` names; the first wins, as YAML's merge type says."""
    tables = value.items if isinstance(value, Listing) else (value,)
    found: list[dict[str, Entry]] = []
    for table in tables:
        if not isinstance(table, Table):
            raise Invalid(table, "<< merges mappings only", "write <<: *anchor, of a mapping")
        found.append(table.entries)
    return found


def _key(node: yaml.Node) -> str:
    line = Scalar(node.start_mark.line + 1, "", None)
    if not isinstance(node, yaml.ScalarNode):
        raise Invalid(line, "a key cannot be a list or a mapping", "quote a key with { or [")
    scalar = _scalar(node)
    if scalar.value is None and scalar.plain:
        raise Invalid(line, "a key is empty", "write a name before the colon, or quote it")
    return scalar.text


def _scalar(node: yaml.ScalarNode) -> Scalar:
    line = node.start_mark.line + 1
    text: str = node.value
    here = Scalar(line, text, text)
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
        raise Invalid(
            here, "a value contains a character that no program accepts (NUL or half of one)"
        )
    name = node.tag.removeprefix(_TAG)
    plain = not node.style
    if name in ("str", "merge"):
        return Scalar(line, text, text, plain)
    if name not in _SCALARS:
        raise Invalid(here, f"the tag {node.tag} is not used here", "remove it")
    pattern, convert = _SCALARS[name]
    if not pattern.fullmatch(text):
        raise Invalid(here, f"{text!r} is not of type {name}", "remove the tag")
    value = convert(text)
    if isinstance(value, float) and not math.isfinite(value):
        value = text
    return Scalar(line, text, value, plain)


def _plain_tag(node: yaml.Node, name: str) -> None:
    if node.tag != _TAG + name:
        here = Scalar(node.start_mark.line + 1, "", None)
        raise Invalid(here, f"the tag {node.tag} is not used here", "remove it")
