"""The tree that YAML text is read into: values that remember their lines."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from msgspec import Struct

from llamaswap_py.errors import ConfigError

Plain: TypeAlias = bool | int | float | str | None

UNKNOWN_KEY: Final = "unknown key"
"""What is said of a key that nobody knows: wherever it stands, the whole file is refused."""


class Scalar(Struct, frozen=True, gc=False):
    """One value; `text` is how it was written, `plain` says that it had no quotes.

    `shown` is what errors show of a value with variables: how it was written before.
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
    """A value that cannot be used; `key` is added to the place the reader is at."""

    def __init__(
        self, node: Node | Entry, message: str, remedy: str = "", *, key: str = ""
    ) -> None:
        super().__init__(message)
        self.line = node.line
        self.message = message
        self.remedy = remedy
        self.key = key


def plain_value(node: Node) -> Any:
    """Return a tree as Python's own values."""
    match node:
        case Table():
            return {name: plain_value(entry.value) for name, entry in node.entries.items()}
        case Listing():
            return [plain_value(item) for item in node.items]
    return node.text if node.value is None and not node.plain else node.value


def describe(node: Node) -> str:
    """Return how to name a value in an error: `a list`, `nothing`, `'abc'`."""
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
    """Return one error with a line for each problem; `.where` is that of the first."""
    if len(problems) == 1:
        return problems[0]
    joined = ConfigError("\n".join(str(problem) for problem in problems))
    joined.where = problems[0].where
    return joined
