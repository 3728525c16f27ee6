"""`${name}` and `${env.NAME}`: put in wherever the file says them, before anything else is read.

A value that is one reference, or has no quotes, is read as if what it comes to had been written
there without quotes: `max_loaded: ${n}` is a number, as is `{max_loaded: "${n}"}`, where YAML wants
the quotes. `$${` stands for `${`. What comes from the environment may be a secret, so the tree
remembers how such a value was written, and `redaction.hide()` takes it out of messages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from llamaswap_py.config.document import plain_of
from llamaswap_py.config.names import Problem, Spot, nearest
from llamaswap_py.config.nodes import Entry, Listing, Node, Scalar, Table

_REFERENCE: Final = re.compile(r"\$\$\{|\$\{([^{}]*)(\}?)")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)
_ENV: Final = "env."


def expand(
    root: Table, env: Mapping[str, str], problem: Problem, spot: Spot
) -> tuple[Table, dict[str, str]]:
    """Return the tree with every reference replaced, and what came from `env`.

    The latter maps values to how they are written: `{"hunter2": "${env.TOKEN}"}`. Mistakes are
    told to `problem`; a value with one stays as it is written.
    """
    variables = _Variables(root, env, problem, spot)
    expanded = _Walk(variables).table(root, "")
    return expanded, {value: f"${{{name}}}" for name, value in variables.from_env.items() if value}


class _Variables:
    """What names stand for: the entries of `vars`, and the environment."""

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
                    f"{name!r} is not a name of a variable",
                    "letters, digits, _ and -",
                )
                problem(one.line, f"vars.{name}", message, remedy)

    def text(self, text: str, line: int, place: str) -> str:
        """Return `text` with what its references stand for."""

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
            self.problem(line, place, f"${{{name}}} needs itself: {chain}", "write a value out")
            return None
        entry = self._vars.get(name)
        if entry is None:
            remedy = nearest(name, self._vars) or _remedy(name, self._vars)
            self.problem(line, place, f"there is no variable ${{{name}}}", remedy)
            return None
        if not isinstance(entry.value, Scalar):
            return None  # it has its own error
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
    """Rebuilds a tree where it has references; what aliases share is built once."""

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
        return f"known are {', '.join(list(known)[:20])}; ${{env.{name}}} is of the environment"
    return f"write it under vars: {{{name}: …}}, ${{env.{name}}} for the environment, or $${{"
