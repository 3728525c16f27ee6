"""YAML text -> a tree of values with their lines, or an error that explains the mistake.

The scalars are those of YAML 1.2, not 1.1: `on`, `off`, `yes` and `no` stay words (`--flash-attn
on` of llama-server takes the word), `1:30` is not a number in base 60, `2024-01-01` is not a date,
`007` is not 7. Aliases and merge keys (`<<`) work. A node that many aliases share is built once,
and its size is counted once per alias, so an alias bomb is refused early.

The tree is built from parser events, one by one. The parser is libyaml if PyYAML has it (ten
thousand presets take half a second), else PyYAML's own. Only PyYAML's own explains mistakes well.
So when libyaml refuses a text of usual size, PyYAML reads it once more.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, TypeAlias

import yaml
from msgspec import Struct
from yaml.composer import ComposerError
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.scanner import Scanner

from llamaswap_py.errors import ConfigError

Problem: TypeAlias = Callable[[int, str, str, str], None]
"""Reports a mistake: line, place, message, remedy."""
Spot: TypeAlias = Callable[[int], str]
"""Returns the name of a line: `line 3`, with the file if there are several."""


Plain: TypeAlias = bool | int | float | str | None

UNKNOWN_KEY: Final = "unknown key"
"""The message for an unknown key; such a key anywhere makes the whole file invalid."""


class Scalar(Struct, frozen=True, gc=False):
    """One value; `text` is how it was written, `plain` says that it had no quotes.

    `shown` is how a value with variables was written, which is what errors show.
    """

    line: int
    text: str
    value: Plain
    plain: bool = True
    shown: str = ""


class Listing(Struct, frozen=True):
    """A YAML sequence."""

    line: int
    items: tuple[Node, ...]


class Entry(Struct, frozen=True):
    """One `key: value` of a table; `line` is the key's."""

    line: int
    value: Node


class Table(Struct, frozen=True):
    """A YAML mapping, keys as text."""

    line: int
    entries: dict[str, Entry]

    def without(self, key: str) -> Table:
        """Return the same mapping without one key."""
        return Table(self.line, {name: one for name, one in self.entries.items() if name != key})


Node: TypeAlias = Scalar | Listing | Table


class Invalid(ValueError):
    """A value that cannot be used; `key` is added to the place where the reader is."""

    def __init__(
        self, node: Node | Entry, message: str, remedy: str = "", *, key: str = ""
    ) -> None:
        super().__init__(message)
        self.line = node.line
        self.message = message
        self.remedy = remedy
        self.key = key


def plain_value(node: Node) -> Any:
    """Return a tree as plain Python values."""
    match node:
        case Table():
            return {name: plain_value(entry.value) for name, entry in node.entries.items()}
        case Listing():
            return [plain_value(item) for item in node.items]
    return node.text if node.value is None and not node.plain else node.value


def describe(node: Node) -> str:
    """Return what an error calls a value: `a list`, `nothing`, `'abc'`."""
    match node:
        case Listing():
            return "a list"
        case Table():
            return "a mapping"
        case Scalar(value=None):
            return "nothing"
    text = node.shown or node.text
    text = text if len(text) <= 60 else text[:57] + "..."
    return text if node.plain and not isinstance(node.value, str) else repr(text)


def join_errors(problems: list[ConfigError]) -> ConfigError:
    """Return one error with a line for each problem; its `where` is that of the first."""
    if len(problems) == 1:
        return problems[0]
    joined = ConfigError("\n".join(str(problem) for problem in problems))
    joined.where = problems[0].where
    return joined


# Part of a message of PyYAML or libyaml -> the remedy; the first match wins. If a release words a
# message differently, only the remedy is lost.
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
    ("nesting depth", "the values are nested too deeply: check the brackets"),
    ("special characters are not allowed", "save the file as UTF-8 text"),
)


def syntax_error(error: yaml.YAMLError, text: str, source: str) -> ConfigError:
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
    if isinstance(error, yaml.MarkedYAMLError) and _names_variable(error, text):
        remedy = 'between { } and [ ] a value with ${…} is quoted: "${name}"'
    return ConfigError(f"this is not YAML: {message}", where=place, remedy=remedy)


def _names_variable(error: yaml.MarkedYAMLError, text: str) -> bool:
    """Return whether the mistake is the brace of an unquoted `${`."""
    mark = error.problem_mark
    if mark is None or "${" not in text:
        return False
    line = text.split("\n")[mark.line] if mark.line < text.count("\n") + 1 else ""
    return line[max(mark.column - 1, 0) : mark.column + 1] == "${"


def _character(character: object) -> str:
    return f"U+{character:04X}" if isinstance(character, int) else repr(character)


_libyaml: Callable[[str], _Events] | None
try:
    from yaml.cyaml import CParser as _libyaml  # type: ignore[attr-defined]
except ImportError:  # a PyYAML that was built without libyaml
    _libyaml = None

# Ten thousand presets are 1 to 3 MB.
MAX_TEXT: Final = 8 << 20
MAX_VALUES: Final = 1_000_000
MAX_DEPTH: Final = 40
# What PyYAML itself reads in a few seconds.
_EXPLAINED: Final = 512 << 10

_TAG: Final = "tag:yaml.org,2002:"
_SCALARS: Final[dict[str, tuple[re.Pattern[str], Callable[[str], Plain]]]] = {
    "null": (re.compile(r"~|null|Null|NULL|", re.ASCII), lambda _: None),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE", re.ASCII), lambda t: t[0] in "tT"),
    "int": (re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})", re.ASCII), int),
    "float": (
        # A number like 007 stays the text it is.
        re.compile(
            r"(?![-+]?0[0-9])[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?",
            re.ASCII,
        ),
        float,
    ),
}
_FIRST: Final = "~nNtTfF+-.0123456789"  # what begins a scalar that is not a text
_UNFIT: Final = re.compile("[\0\ud800-\udfff]")


def read_yaml(text: str, source: str) -> Node | None:
    """Return the document's root, or None when there is only white space and comments.

    Raises ConfigError naming `source`, line and column; a file with several duplicate keys gets
    one line for each.
    """
    if len(text) > MAX_TEXT:
        raise ConfigError("the file is larger than 8 MiB", where=source, remedy="is it a model?")
    try:
        builder = _built(text, source)
    except yaml.YAMLError as error:
        raise syntax_error(error, text, source) from None
    except Invalid as error:
        where = f"{source}:{error.line}"
        raise ConfigError(error.message, where=where, remedy=error.remedy) from None
    except (ValueError, OverflowError) as error:  # "\U7fffffff" is not a character
        raise ConfigError(f"this is not YAML: {error}", where=source) from None
    if builder.problems:
        raise join_errors(builder.problems)
    return builder.root


def plain_of(text: str) -> Plain:
    """Return what an unquoted scalar with this text is: a number, true, null, or the text."""
    for pattern, convert in _SCALARS.values():
        if pattern.fullmatch(text):
            value = convert(text)
            return text if isinstance(value, float) and not math.isfinite(value) else value
    return text


def _built(text: str, source: str) -> _Builder:
    if _libyaml is not None:
        try:
            return _Builder(_libyaml(text), source)
        except Invalid:
            raise
        except (yaml.YAMLError, ValueError):
            Reader(text)  # of a text with forbidden characters PyYAML has the better message
            if len(text) > _EXPLAINED:
                raise
    return _Builder(_Slow(text), source)


class _Slow(Reader, Scanner, Parser):
    """PyYAML up to the events."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)


class _Events(Protocol):
    """PyYAML's parser, or libyaml's."""

    def get_event(self) -> Any: ...


class _Builder:
    """Turns one document's events into a tree; `root` is None when there is no document."""

    def __init__(self, events: _Events, source: str) -> None:
        self.source = source
        self.problems: list[ConfigError] = []
        self._next = events.get_event
        self._anchors: dict[str, tuple[Node, int, int] | None] = {}  # None: not complete yet
        self._place: list[str] = []
        self.root = self._document()

    def _document(self) -> Node | None:
        self._next()  # the stream's start
        start = self._next()
        if isinstance(start, yaml.StreamEndEvent):
            return None
        root = self._visit(self._next())[0]
        self._next()  # the document's end
        after = self._next()
        if not isinstance(after, yaml.StreamEndEvent):
            expected = "expected a single document in the stream"
            found = "but found another document"
            raise ComposerError(expected, start.start_mark, found, after.start_mark)
        return root

    def _visit(self, event: Any) -> tuple[Node, int, int]:
        """Return the node that begins with `event`, its number of values and its depth."""
        kind = type(event)
        if kind is yaml.AliasEvent:
            return self._alias(event)
        anchor = event.anchor
        if anchor is not None:
            if anchor in self._anchors:
                raise ComposerError(None, None, "found duplicate anchor", event.start_mark)
            self._anchors[anchor] = None
        built: tuple[Node, int, int]
        if kind is yaml.ScalarEvent:
            built = _scalar(event), 1, 1
        else:
            if len(self._place) >= MAX_DEPTH:
                raise _too_deep(event)
            is_table = kind is yaml.MappingStartEvent
            _check_tag(event, "map" if is_table else "seq")
            built = self._table(event) if is_table else self._listing(event)
            if built[1] > MAX_VALUES:
                raise Invalid(_here(event), f"more than {MAX_VALUES} values, aliases expanded")
            if built[2] > MAX_DEPTH:
                raise _too_deep(event)
        if anchor is not None:
            self._anchors[anchor] = built
        return built

    def _alias(self, event: Any) -> tuple[Node, int, int]:
        name: str = event.anchor
        if name not in self._anchors:
            raise ComposerError(None, None, f"found undefined alias {name!r}", event.start_mark)
        if (done := self._anchors[name]) is None:
            raise Invalid(_here(event), "an anchor contains itself", "write the value out")
        return done

    def _listing(self, start: Any) -> tuple[Node, int, int]:
        items: list[Node] = []
        values = depth = 1
        self._place.append("")
        while type(event := self._next()) is not yaml.SequenceEndEvent:
            self._place[-1] = f"[{len(items)}]"
            item, inner_values, inner_depth = self._visit(event)
            items.append(item)
            values += inner_values
            depth = max(depth, 1 + inner_depth)
        self._place.pop()
        return Listing(start.start_mark.line + 1, tuple(items)), values, depth

    def _table(self, start: Any) -> tuple[Node, int, int]:
        own: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        values = depth = 1
        self._place.append("")
        while type(event := self._next()) is not yaml.MappingEndEvent:
            line = event.start_mark.line + 1
            key = self._key(event)
            self._place[-1] = key
            value, inner_values, inner_depth = self._visit(self._next())
            values += inner_values
            depth = max(depth, 1 + inner_depth)
            if key == "<<" and _is_merge(event):
                for entries in _merge_sources(value):
                    merged = entries | merged
            elif key in own:
                self._duplicate(line, own[key].line)
            else:
                own[key] = Entry(line, value)
        self._place.pop()
        kept = {key: entry for key, entry in merged.items() if key not in own} if merged else {}
        return Table(start.start_mark.line + 1, kept | own), values + len(kept), depth

    def _key(self, event: Any) -> str:
        node = self._visit(event)[0]
        if not isinstance(node, Scalar):
            raise Invalid(node, "a key cannot be a list or a mapping", "quote a key with { or [")
        if node.value is None and node.plain:
            remedy = "write a name before the colon, or quote it"
            raise Invalid(_here(event), "a key is empty", remedy)
        return node.text

    def _duplicate(self, line: int, first: int) -> None:
        place = ".".join(self._place).replace(".[", "[")
        message = f"this key is already on line {first}"
        where = f"{self.source}:{line}: {place}"
        self.problems.append(ConfigError(message, where=where, remedy="keep one of them"))


def _here(event: Any) -> Scalar:
    return Scalar(event.start_mark.line + 1, "", None)


def _too_deep(event: Any) -> Invalid:
    return Invalid(_here(event), "the values are nested too deeply", "check the brackets")


def _merge_sources(value: Node) -> list[dict[str, Entry]]:
    """Return the tables that `<<` names; the first wins, as YAML's merge type says."""
    tables = value.items if isinstance(value, Listing) else (value,)
    found: list[dict[str, Entry]] = []
    for table in tables:
        if not isinstance(table, Table):
            raise Invalid(table, "<< merges mappings only", "write <<: *anchor, of a mapping")
        found.append(table.entries)
    return found


def _is_merge(key: Any) -> bool:
    if type(key) is not yaml.ScalarEvent:
        return False
    return key.tag == f"{_TAG}merge" or (key.tag is None and not key.style)


def _scalar(event: Any) -> Scalar:
    line = event.start_mark.line + 1
    text: str = event.value
    plain = not event.style
    if not text.isascii() or "\0" in text:
        _check_characters(line, text)
    if event.tag is None and (not plain or text[:1] not in _FIRST):
        return Scalar(line, text, text, plain)
    here = Scalar(line, text, text)
    name = _name(event)
    if name in ("str", "merge"):
        return Scalar(line, text, text, plain)
    if name not in _SCALARS:
        raise Invalid(here, f"the tag {event.tag} is not used here", "remove it")
    pattern, convert = _SCALARS[name]
    if not pattern.fullmatch(text):
        raise Invalid(here, f"{text!r} is not of type {name}", "remove the tag")
    value = convert(text)
    if isinstance(value, float) and not math.isfinite(value):
        value = text
    return Scalar(line, text, value, plain)


def _check_characters(line: int, text: str) -> None:
    if _UNFIT.search(text):
        here = Scalar(line, text, text)
        message = "a value contains a character that no program accepts (NUL or a lone surrogate)"
        raise Invalid(here, message, "remove it")


def _name(event: Any) -> str:
    """Return the type of a scalar, by its tag or else by its text."""
    tag: str | None = event.tag
    if tag is not None and tag != "!":
        return tag.removeprefix(_TAG)
    if event.implicit[0]:
        for name, (pattern, _) in _SCALARS.items():
            if pattern.fullmatch(event.value):
                return name
    return "str"


def _check_tag(event: Any, name: str) -> None:
    if event.tag not in (None, "!", _TAG + name):
        raise Invalid(_here(event), f"the tag {event.tag} is not used here", "remove it")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean NAME?` with the most similar name; "" if none is similar."""
    simple = {each.replace("_", "").replace("-", "").lower(): each for each in known}
    wanted = name.replace("_", "").replace("-", "").lower()
    close = difflib.get_close_matches(wanted, simple, n=1, cutoff=0.6)
    return f"did you mean {simple[close[0]]}?" if close else ""
