"""What changed between the options of two llama-servers, by their `--help`. Pure.

llama.cpp adds, renames and removes options every week. For an option that the later one lacks, this
says whether lswap writes another one in its place (renamed_options.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from llamaswap_py.llamacpp.options import OWNED, owned, plain_name, table_of
from llamaswap_py.llamacpp.renamed_options import GivenOption, carry_over

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llamaswap_py.llamacpp.options import Argument, Option

__all__ = ["Gone", "OptionChanges", "Respelled", "Revalued", "compare_options"]

_DEFAULT: Final = re.compile(r"\(default: ([^)]*)\)")
_CHOICES: Final = re.compile(r"[\[{<]?([\w.+-]+(?:[|,][\w.+-]+)+)[\]}>]?")


@dataclass(frozen=True, slots=True)
class Gone:
    """An option that the later engine does not take.

    `instead` are the words that lswap writes for it, empty if there are none. `said` is what the
    later engine says of it, "" if it does not know the name.
    """

    name: str
    instead: tuple[str, ...] = ()
    said: str = ""
    passed: bool = False
    """Whether a file may not set it: lswap passes it, or never does."""


@dataclass(frozen=True, slots=True)
class Respelled:
    """An option that lost or got spellings."""

    name: str
    lost: tuple[str, ...]
    gained: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Revalued:
    """An option that takes other values, or has another default; `what` says which."""

    name: str
    what: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class OptionChanges:
    """The differences, each list in the order of `--help`."""

    added: list[str] = field(default_factory=list)
    gone: list[Gone] = field(default_factory=list)
    respelled: list[Respelled] = field(default_factory=list)
    revalued: list[Revalued] = field(default_factory=list)


def compare_options(before: Mapping[str, Option], after: Mapping[str, Option]) -> OptionChanges:
    """Return what changed; both tables map every spelling, with dashes, to its option."""
    changes = OptionChanges()
    known = set[int]()
    by_env = {option.env: option for option in _usable(after) if option.env}
    for option in _usable(before):
        now = _same(option, after) or by_env.get(option.env or "")
        if now is None:
            changes.gone.append(_gone(option, after))
            continue
        known.add(id(now))
        _compare(option, now, changes)
    changes.added.extend(option.name for option in _usable(after) if id(option) not in known)
    return changes


def _usable(table: Mapping[str, Option]) -> Iterable[Option]:
    """Return each option once, without those that are known only to be refused."""
    return [one for one in {id(one): one for one in table.values()}.values() if not one.removed]


def _same(option: Option, table: Mapping[str, Option]) -> Option | None:
    """Return the option of a table that has one of an option's spellings, its long name first."""
    for spelling in (option.name, *option.names, *option.negated):
        found = table.get(spelling)
        if found is not None and not found.removed:
            return found
    return None


def _compare(before: Option, after: Option, changes: OptionChanges) -> None:
    old, new = ((*one.names, *one.negated) for one in (before, after))
    lost = tuple(one for one in old if one not in new)
    gained = tuple(one for one in new if one not in old)
    if lost or gained:
        changes.respelled.append(Respelled(before.name, lost, gained))
    for what, was, now in (
        ("values", before.hint, after.hint),
        ("default", _default(before), _default(after)),
    ):
        if was != now:
            changes.revalued.append(Revalued(after.name, what, was, now))


def _default(option: Option) -> str:
    found = _DEFAULT.search(option.description)
    return found[1].strip("'\"") if found else ""


def _gone(option: Option, after: Mapping[str, Option]) -> Gone:
    refused = next((after[one] for one in option.names if one in after), None)
    name = plain_name(option.name)
    return Gone(
        option.name,
        _instead(name, option, after),
        "" if refused is None else refused.description,
        owned(name) is not None and name in OWNED,
    )


def _instead(name: str, option: Option, after: Mapping[str, Option]) -> tuple[str, ...]:
    """Return the options that lswap writes for one, with their values."""
    table = table_of(after)
    found = carry_over([GivenOption(name, _sample(option))], table)
    return tuple(
        f"--{one.name}" + ("" if isinstance(one.value, bool) else f" {one.value}")
        for one in found
        if one.name != name and table.usable(one.name) is not None
    )


def _sample(option: Option) -> Argument:
    """Return a value that an option takes."""
    if not option.values:
        return True
    choices = _CHOICES.search(option.hint)
    return choices[1].replace(",", "|").split("|")[0] if choices else option.hint
