"""llama-swap's matrix of models that may run together -> exclusive groups. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Final, TypeAlias

Sets: TypeAlias = "frozenset[frozenset[str]]"

_TOKEN: Final = re.compile(r"\s*([()&|]|\+?[^\s()&|+]+)")
_MOST: Final = 4_096
"""Combinations one expression may expand to."""


def allowed_sets(sets: Mapping[str, str], names: Mapping[str, str]) -> list[frozenset[str]]:
    """Return every combination that the expressions allow; `names` maps short names to models.

    Raises ValueError for an expression that cannot be read.
    """
    found: list[frozenset[str]] = []
    for name in sets:
        found += [each for each in _Reader(sets, names).set(name, ()) if each not in found]
    return found


def exclusive_groups(models: Sequence[str], allowed: Sequence[frozenset[str]]) -> list[list[str]]:
    """Return groups that keep apart every two models which no combination holds together."""
    together = {pair for each in allowed for pair in combinations(sorted(each), 2)}
    apart = [pair for pair in combinations(sorted(models), 2) if pair not in together]
    never: dict[str, set[str]] = {model: set() for model in models}
    for one, other in apart:
        never[one].add(other)
        never[other].add(one)
    covered: set[tuple[str, str]] = set()
    groups: list[list[str]] = []
    for pair in apart:
        if pair in covered:
            continue
        group = list(pair)
        others = never[pair[0]] & never[pair[1]]
        for model in sorted(others):
            if model in others:  # still apart from all that came in before it
                group.append(model)
                others &= never[model]
        covered |= set(combinations(sorted(group), 2))
        groups.append(sorted(group))
    return groups


def loosened(allowed: Sequence[frozenset[str]], models: Sequence[str]) -> list[frozenset[str]]:
    """Return triples of which every two may run together but no combination holds all three."""
    beside: dict[str, set[str]] = {model: set() for model in models}
    for each in allowed:
        for model in each & beside.keys():
            beside[model] |= each - {model}
    return [
        frozenset((first, second, third))
        for first in sorted(models)
        for second in sorted(one for one in beside[first] & beside.keys() if one > first)
        for third in sorted(one for one in beside[first] & beside[second] if one > second)
        if third in beside and not any({first, second, third} <= each for each in allowed)
    ]


class _Reader:
    """Reads `a & (b | c)`, `+other & d`: AND binds closer than OR."""

    def __init__(self, sets: Mapping[str, str], names: Mapping[str, str]) -> None:
        self._sets = sets
        self._names = names
        self._tokens: list[str] = []

    def set(self, name: str, above: tuple[str, ...]) -> list[frozenset[str]]:
        """Return the combinations of a named set; `above` are those being read."""
        if name in above or name not in self._sets:
            raise ValueError(f"+{name} means itself" if name in above else f"no set named {name}")
        reader = _Reader(self._sets, self._names)
        reader._tokens = list(_tokens(self._sets[name]))
        found = reader._either((*above, name))
        if reader._tokens:
            raise ValueError(f"{self._sets[name]!r}: unexpected {reader._tokens[0]!r}")
        return found

    def _either(self, above: tuple[str, ...]) -> list[frozenset[str]]:
        found = self._both(above)
        while self._tokens[:1] == ["|"]:
            del self._tokens[0]
            found = found + self._both(above)
        return list(dict.fromkeys(found))

    def _both(self, above: tuple[str, ...]) -> list[frozenset[str]]:
        found = self._one(above)
        while self._tokens[:1] == ["&"]:
            del self._tokens[0]
            right = self._one(above)
            if len(found) * len(right) > _MOST:
                raise ValueError(f"more than {_MOST} combinations")
            found = [one | other for one in found for other in right]
        return found

    def _one(self, above: tuple[str, ...]) -> list[frozenset[str]]:
        token = self._tokens.pop(0) if self._tokens else ""
        if token == "(":
            found = self._either(above)
            if self._tokens[:1] != [")"]:
                raise ValueError("a ) is missing")
            del self._tokens[0]
            return found
        if token in ("", ")", "&", "|"):
            raise ValueError(f"a model is missing before {token or 'the end'!r}")
        if token.startswith("+"):
            return self.set(token[1:], above)
        return [frozenset({self._names.get(token, token)})]


def _tokens(text: str) -> Iterator[str]:
    at = 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"{text!r}: unexpected {text[at:].strip()[:10]!r}")
        yield match[1]
        at = match.end()
