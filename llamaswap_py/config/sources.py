"""Several files read as one: their trees merged, their lines numbered on."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from llamaswap_py.config.document import read_yaml
from llamaswap_py.config.forms import is_null
from llamaswap_py.config.nodes import Entry, Listing, Node, Scalar, Table, describe
from llamaswap_py.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamaswap_py.config.names import Problem

_NAMED: Final = ("models", "groups", "aliases", "vars")
"""Mappings whose entries belong to one file each."""
_JOINED: Final = ("model_dirs",)
"""Lists that each file adds to."""


class SourceText(Struct, frozen=True):
    """One file: how it is named in errors, its folder (where relative paths start), its text."""

    name: str
    dir: str
    text: str


class Sources(Struct, frozen=True):
    """Whose a line is: those of the second file begin after those of the first, and so on."""

    starts: tuple[int, ...]
    names: tuple[str, ...]
    dirs: tuple[str, ...]

    def where(self, line: int) -> str:
        """Return `10-models.yaml:3`."""
        file = self._file(line)
        return f"{self.names[file]}:{line - self.starts[file]}"

    def spot(self, line: int) -> str:
        """Return `line 3`, or where that is if there are several files."""
        return f"line {line}" if len(self.names) == 1 else self.where(line)

    def file(self, line: int) -> str:
        """Return the file that a line is of, by the name it has in errors."""
        return self.names[self._file(line)]

    def dir(self, line: int) -> str:
        """Return the folder of the file that a line is of."""
        return self.dirs[self._file(line)]

    def _file(self, line: int) -> int:
        return max(bisect_right(self.starts, line - 1) - 1, 0)


def sources_of(files: Sequence[SourceText]) -> Sources:
    """Return how the lines of files are numbered together."""
    starts, start = [], 0
    for file in files:
        starts.append(start)
        start += file.text.count("\n") + 1
    names, dirs = tuple(file.name for file in files), tuple(file.dir for file in files)
    return Sources(tuple(starts), names, dirs)


def read_together(files: Sequence[SourceText], sources: Sources, problem: Problem) -> Table | None:
    """Return one tree of all files; None when nothing is said. Raises ConfigError.

    Presets, groups, aliases and variables are each said once, which is told to `problem`
    otherwise. Of other keys what a later file says wins, mappings key by key; lists of model
    folders add up.
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
    """Rebuilds a tree with other line numbers; what aliases share is built once."""

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
    """Return `other`, with the keys that only `one` has where both are mappings."""
    if not (isinstance(one, Table) and isinstance(other, Table)):
        return other
    entries = dict(one.entries)
    for name, entry in other.entries.items():
        known = entries.get(name)
        value = entry.value if known is None else _over(known.value, entry.value)
        entries[name] = Entry(entry.line, value)
    return Table(other.line, entries)
