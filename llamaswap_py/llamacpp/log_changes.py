"""What changed between the logs of two llama-servers, and which lines lswap reads. Pure.

A line has a *shape*: its text without times, numbers, addresses and paths. Two runs of one engine
have the same shapes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from llamaswap_py.llamacpp.failures import as_quoted, kind_of
from llamaswap_py.llamacpp.output import OutputLine, Readiness

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["LogChanges", "compare_logs", "rule_of", "shape_of"]

_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_VARIABLE: Final = (
    (re.compile(r"(?:/[\w.@+~-]+){2,}/?"), "PATH"),
    (re.compile(r"\b0x[0-9a-fA-F]+\b"), "#"),
    (re.compile(r"\b[0-9a-f]{8,}\b"), "#"),
    (re.compile(r"[-+]?\d+(?:[.,:]\d+)*"), "#"),
    (re.compile(r"#(?:[ \t]*#)+"), "#"),
    (re.compile(r"\s+"), " "),
)
_LONGEST: Final = 200


@dataclass(frozen=True, slots=True)
class LogChanges:
    """Shapes of lines that only one of two engines writes.

    `added` and `gone` are those that no rule of lswap reads. `unread` are lines of the earlier one
    that a rule reads, and whose rule reads no line of the later one: each with the rule's name.
    """

    added: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)
    same: int = 0


def compare_logs(before: Iterable[str], after: Iterable[str]) -> LogChanges:
    """Return what changed between the lines of two engines that did the same."""
    old, new = dict(_shapes(before)), dict(_shapes(after))
    rules = set(new.values())
    return LogChanges(
        added=[shape for shape, rule in new.items() if shape not in old and not rule],
        gone=[shape for shape, rule in old.items() if shape not in new and not rule],
        unread={shape: rule for shape, rule in old.items() if rule and rule not in rules},
        same=len(old.keys() & new.keys()),
    )


def _shapes(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        if shape := shape_of(line):
            yield shape, rule_of(line)


def shape_of(line: str) -> str:
    """Return a line without what differs from run to run; "" if nothing is left."""
    text = as_quoted(_COLOUR.sub("", line))
    for pattern, instead in _VARIABLE:
        text = pattern.sub(instead, text)
    return text.strip(" .")[:_LONGEST]


def rule_of(line: str) -> str:
    """Return the name of lswap's rule that reads a line; "" if there is none."""
    for sign in Readiness(child_mode=True).feed("stdout", line):
        if not isinstance(sign, OutputLine):
            return type(sign).__name__.removesuffix("Sign").lower()
    kind = kind_of(line)
    return "" if kind is None else kind.value
