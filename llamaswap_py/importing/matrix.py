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
    forbidden = {frozenset(pair) for pair in apart}
    covered: set[frozenset[str]] = set()
    groups: list[list[str]] = []
    for pair in apart:
        if frozenset(pair) in covered:
            continue
        group = list(pair)
        for model in sorted(models):
            if model not in group and all(frozenset((model, one)) in forbidden for one in group):
                group.append(model)
        covered |= {frozenset(each) for each in combinations(group, 2)}
        groups.append(sorted(group))
    return groups


def loosened(allowed: Sequence[frozenset[str]], models: Sequence[str]) -> list[frozenset[str]]:
    """Return triples of which every two may run together but no combination holds all three."""
    together = {frozenset(pair) for each in allowed for pair in combinations(each, 2)}
    return [
        frozenset(three)
        for three in combinations(sorted(models), 3)
        if all(frozenset(pair) in together for pair in combinations(three, 2))
        and not any(set(three) <= each for each in allowed)
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
