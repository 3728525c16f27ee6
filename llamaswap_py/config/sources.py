"""Several files read as one, and the variables in them: `${name}` and `${env.NAME}`.

The files become one tree; the lines of the second file are numbered after those of the first, and
so on. Variables are replaced before anything else is read. A value that has no quotes, or is one
reference, can become a number: `max_loaded: ${n}` does, and so does `{max_loaded: "${n}"}`, where
YAML wants the quotes. `$${` stands for `${`. A value from the environment may be a secret. So the
tree stores how such a value was written, and `redaction.hide()` removes it from messages.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from llamaswap_py.config.forms import is_null
from llamaswap_py.config.yaml_tree import (
    Entry,
    Listing,
    Node,
    Problem,
    Scalar,
    Spot,
    Table,
    describe,
    nearest,
    plain_of,
    read_yaml,
)
from llamaswap_py.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


_NAMED: Final = ("models", "groups", "aliases", "vars")
"""Mappings in which two files must not have the same entry."""
_JOINED: Final = ("model_dirs",)
"""Lists to which each file adds."""


class SourceText(Struct, frozen=True):
    """One file: its name in errors, its folder (where relative paths start), and its text."""

    name: str
    dir: str
    text: str


class Sources(Struct, frozen=True):
    """Which file a line number belongs to: those of the second file follow those of the first."""

    starts: tuple[int, ...]
    names: tuple[str, ...]
    dirs: tuple[str, ...]

    def where(self, line: int) -> str:
        """Return `10-models.yaml:3`."""
        file = self._file(line)
        return f"{self.names[file]}:{line - self.starts[file]}"

    def spot(self, line: int) -> str:
        """Return `line 3`, with the file if there are several."""
        return f"line {line}" if len(self.names) == 1 else self.where(line)

    def file(self, line: int) -> str:
        """Return the name in errors of the file that has a line."""
        return self.names[self._file(line)]

    def dir(self, line: int) -> str:
        """Return the folder of the file that has a line."""
        return self.dirs[self._file(line)]

    def _file(self, line: int) -> int:
        return max(bisect_right(self.starts, line - 1) - 1, 0)


def sources_of(files: Sequence[SourceText]) -> Sources:
    """Return the numbering of the lines of several files."""
    starts, start = [], 0
    for file in files:
        starts.append(start)
        start += file.text.count("\n") + 1
    names, dirs = tuple(file.name for file in files), tuple(file.dir for file in files)
    return Sources(tuple(starts), names, dirs)


def read_together(files: Sequence[SourceText], sources: Sources, problem: Problem) -> Table | None:
    """Return one tree of all files; None if they are all empty. Raises ConfigError.

    Two presets, groups, aliases or variables of one name are a mistake, reported to `problem`. For
    other keys the later file wins, in mappings key by key. Lists of model folders are joined.
    """
    root: Table | None = None
    for file, start in zip(files, sources.starts, strict=True):
        node = read_yaml(file.text, file.name)
        if node is None or is_null(node):
            continue
        if not isinstance(node, Table):
            where = f"{file.name}:{node.line}"
            raise ConfigError(f"the file is {describe(node)}, not a mapping of keys", where=where)
        if start:
            node = _Shifted(start).table(node)
        root = node if root is None else _merged(root, node, sources, problem)
    return root


class _Shifted:
    """Rebuilds a tree with other line numbers; a node that aliases share is built once."""

    def __init__(self, by: int) -> None:
        self._by = by
        self._done: dict[int, Node] = {}

    def table(self, table: Table) -> Table:
        entries = {
            name: Entry(entry.line + self._by, self._node(entry.value))
            for name, entry in table.entries.items()
        }
        return Table(table.line + self._by, entries)

    def _node(self, node: Node) -> Node:
        if isinstance(node, Scalar):
            return Scalar(node.line + self._by, node.text, node.value, node.plain, node.shown)
        if (done := self._done.get(id(node))) is None:
            if isinstance(node, Table):
                done = self.table(node)
            else:
                done = Listing(node.line + self._by, tuple(map(self._node, node.items)))
            self._done[id(node)] = done
        return done


def _merged(one: Table, other: Table, sources: Sources, problem: Problem) -> Table:
    entries = dict(one.entries)
    for name, entry in other.entries.items():
        here = entries.get(name)
        if here is None or is_null(here.value):
            entries[name] = entry
        elif name in _NAMED and isinstance(here.value, Table) and isinstance(entry.value, Table):
            for inner, twice in entry.value.entries.items():
                if (first := here.value.entries.get(inner)) is not None:
                    message = f"{inner!r} is already in {sources.where(first.line)}"
                    problem(twice.line, f"{name}.{inner}", message, "keep one of them")
            both = here.value.entries | entry.value.entries
            entries[name] = Entry(here.line, Table(here.value.line, both))
        elif name in _JOINED and isinstance(here.value, Listing):
            items = entry.value.items if isinstance(entry.value, Listing) else (entry.value,)
            entries[name] = Entry(here.line, Listing(here.value.line, here.value.items + items))
        elif not is_null(entry.value):
            entries[name] = Entry(entry.line, _over(here.value, entry.value))
    return Table(one.line, entries)


def _over(one: Node, other: Node) -> Node:
    """Return `other`; if both are mappings, with the keys that only `one` has."""
    if not (isinstance(one, Table) and isinstance(other, Table)):
        return other
    entries = dict(one.entries)
    for name, entry in other.entries.items():
        known = entries.get(name)
        value = entry.value if known is None else _over(known.value, entry.value)
        entries[name] = Entry(entry.line, value)
    return Table(other.line, entries)


_REFERENCE: Final = re.compile(r"\$\$\{|\$\{([^{}]*)(\}?)")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)
_ENV: Final = "env."


def expand(
    root: Table, env: Mapping[str, str], problem: Problem, spot: Spot
) -> tuple[Table, dict[str, str]]:
    """Return the tree with every reference replaced, and the values that came from `env`.

    The latter maps a value to its reference: `{"hunter2": "${env.TOKEN}"}`. Mistakes are reported
    to `problem`; a value with a mistake stays as it is written.
    """
    variables = _Variables(root, env, problem, spot)
    expanded = _Walk(variables).table(root, "")
    return expanded, {value: f"${{{name}}}" for name, value in variables.from_env.items() if value}


class _Variables:
    """The values of variables: the entries of `vars`, and the environment."""

    def __init__(self, root: Table, env: Mapping[str, str], problem: Problem, spot: Spot) -> None:
        self.spot = spot
        entry = root.entries.get("vars")
        self._vars = entry.value.entries if entry and isinstance(entry.value, Table) else {}
        self._env = env
        self.problem = problem
        self._known: dict[str, str] = {}
        self._open: list[str] = []
        self.from_env: dict[str, str] = {}
        for name, one in self._vars.items():
            if not _NAME.fullmatch(name):
                message, remedy = (
                    f"{name!r} is not the name of a variable",
                    "use letters, digits, _ and -",
                )
                problem(one.line, f"vars.{name}", message, remedy)

    def text(self, text: str, line: int, place: str) -> str:
        """Return `text` with its references replaced."""

        def replaced(match: re.Match[str]) -> str:
            if match[1] is None:
                return "${"
            if not match[2]:
                self.problem(line, place, f"{match[0]} is not closed", "add a }, or write $${")
                return match[0]
            value = self._value(match[1].strip(), line, place)
            return match[0] if value is None else value

        return _REFERENCE.sub(replaced, text)

    def _value(self, name: str, line: int, place: str) -> str | None:
        if name.startswith(_ENV):
            return self._from_env(name, line, place)
        if name in self._known:
            return self._known[name]
        if name in self._open:
            chain = " -> ".join([*self._open[self._open.index(name) :], name])
            message = f"${{{name}}} refers to itself: {chain}"
            self.problem(line, place, message, "write one of the values out")
            return None
        entry = self._vars.get(name)
        if entry is None:
            remedy = nearest(name, self._vars) or _remedy(name, self._vars)
            self.problem(line, place, f"there is no variable ${{{name}}}", remedy)
            return None
        if not isinstance(entry.value, Scalar):
            return None  # already reported where it is defined
        self._open.append(name)
        self._known[name] = self.text(entry.value.text, entry.line, f"vars.{name}")
        self._open.pop()
        return self._known[name]

    def _from_env(self, name: str, line: int, place: str) -> str | None:
        variable = name.removeprefix(_ENV)
        value = self._env.get(variable)
        if value is None:
            message = f"the environment has no {variable}"
            remedy = nearest(variable, self._env) or f"set it where lswap starts: {variable}=…"
            self.problem(line, place, message, remedy)
            return None
        self.from_env[name] = value
        return value


class _Walk:
    """Rebuilds a tree with references replaced; a node that aliases share is built once."""

    def __init__(self, variables: _Variables) -> None:
        self._variables = variables
        self._done: dict[int, Node] = {}

    def table(self, table: Table, place: str) -> Table:
        entries: dict[str, Entry] = {}
        for name, entry in table.entries.items():
            here = f"{place}.{name}" if place else name
            key = self._variables.text(name, entry.line, here) if "${" in name else name
            if key in entries:
                message = f"this key is already on {self._variables.spot(entries[key].line)}"
                self._variables.problem(entry.line, here, message, "keep one of them")
            entries[key] = Entry(entry.line, self.node(entry.value, here))
        return Table(table.line, entries)

    def node(self, node: Node, place: str) -> Node:
        if isinstance(node, Scalar):
            return self._scalar(node, place) if "${" in node.text else node
        if (done := self._done.get(id(node))) is None:
            if isinstance(node, Table):
                done = self.table(node, place)
            else:
                items = [self.node(item, f"{place}[{n}]") for n, item in enumerate(node.items)]
                done = Listing(node.line, tuple(items))
            self._done[id(node)] = done
        return done

    def _scalar(self, node: Scalar, place: str) -> Scalar:
        text = self._variables.text(node.text, node.line, place)
        plain = node.plain or _REFERENCE.fullmatch(node.text) is not None
        return Scalar(node.line, text, plain_of(text) if plain else text, plain, node.text)


def _remedy(name: str, known: Mapping[str, object]) -> str:
    if known:
        return f"known: {', '.join(list(known)[:20])}; from the environment: ${{env.{name}}}"
    return (
        f"define it under vars: {{{name}: …}}; from the environment: ${{env.{name}}}; "
        "for ${ itself write $${"
    )
