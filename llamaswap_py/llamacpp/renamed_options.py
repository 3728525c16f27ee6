"""Translates options that llama-server renamed or merged into those that one binary has.

A file may be older or newer than the llama-server that reads it. An option that the binary has
stays as it is written. Any other is replaced by the option that means the same in this binary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llamaswap_py.llamacpp.options import SPECULATION, OptionTable, switched

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from llamaswap_py.llamacpp.options import Argument


@dataclass(frozen=True, slots=True)
class GivenOption:
    """One option as it is given: its name here, how it was written, its value.

    `origin` is the name under which the source has it, if another one takes its place.
    """

    name: str
    value: Argument
    written: str = ""
    origin: str = ""

    @property
    def place(self) -> str:
        """The name that the source has."""
        return self.origin or self.name

    @property
    def names(self) -> tuple[str, ...]:
        """Its names to look it up by, the written spelling first."""
        return (self.written, self.name) if self.written else (self.name,)


def carry_over(args: Iterable[GivenOption], table: OptionTable) -> list[GivenOption]:
    """Return options in words that the binary knows; one without such words stays unchanged."""
    given = list(args)
    if not table.is_known:
        return given
    kinds = _kinds(given)
    found: list[GivenOption] = []
    load: list[GivenOption] = []
    for one in given:
        if one.name in LOADING:
            load.append(one)
        elif table.usable(*one.names) is not None:
            found.append(one)
        else:
            found += _renamed(one, kinds, table) or [one]
    return [*found, *_loading(load, table)]


# Speculative decoding: each of its kinds got options of its own.

_RENAMED: Final[dict[str, tuple[str, ...]]] = {
    "draft-max": ("spec-draft-n-max",),
    "draft-min": ("spec-draft-n-min",),
}
"""An option's name before and after, both ways; a list has the best first."""

_ALSO: Final = {"draft": "draft-max", "draft-n": "draft-max", "draft-n-min": "draft-min"}
_OF_KIND: Final = {
    "draft-max": "n-max",
    "draft-min": "n-min",
    "spec-ngram-size-n": "size-n",
    "spec-ngram-size-m": "size-m",
    "spec-ngram-min-hits": "min-hits",
}
"""Options that once applied to all kinds -> the end of the name that each kind has now."""
_MATCH: Final = {"spec-ngram-mod-size-n": "spec-ngram-mod-n-match"}


def _kinds(given: Iterable[GivenOption]) -> list[str]:
    for one in given:
        if one.name == SPECULATION:
            values = one.value if isinstance(one.value, tuple) else (one.value,)
            return [kind.strip() for value in values for kind in str(value).split(",")]
    return []


def _renamed(one: GivenOption, kinds: list[str], table: OptionTable) -> list[GivenOption]:
    found = [
        GivenOption(new, one.value, origin=one.place)
        for new in _new_names(_ALSO.get(one.name, one.name), kinds)
        if table.knows(new)
    ]
    return found or _opposite(one, table)


def _opposite(one: GivenOption, table: OptionTable) -> list[GivenOption]:
    """Return a switch that the binary has only in its other form: `--no-context-shift`."""
    other = one.name[3:] if one.name.startswith("no-") else f"no-{one.name}"
    found, on = table.usable(other), switched(one.value)
    if found is None or found[0].values or on is None:
        return []
    return [GivenOption(other, not on, origin=one.place)]


def _new_names(name: str, kinds: list[str]) -> Iterator[str]:
    if name in _OF_KIND and (counted := [kind for kind in kinds if kind.startswith("ngram-")]):
        for kind in counted:
            new = f"spec-{kind}-{_OF_KIND[name]}"
            yield _MATCH.get(new, new)
        if len(counted) == len(kinds):
            return
    yield from _RENAMED.get(name, ())
    yield from (old for old, new in _RENAMED.items() if name in new)


# How the file comes into memory: three switches became one mode.

_SWITCHES: Final = {
    "mmap": ("mmap", True),
    "no-mmap": ("mmap", False),
    "mlock": ("mlock", True),
    "no-mlock": ("mlock", False),
    "direct-io": ("direct-io", True),
    "dio": ("direct-io", True),
    "no-direct-io": ("direct-io", False),
    "ndio": ("direct-io", False),
}
_MODES: Final[dict[str, dict[str, bool]]] = {
    "auto": {},
    "none": {"mmap": False},
    "mmap": {"mmap": True},
    "mlock": {"mmap": False, "mlock": True},
    "mmap+mlock": {"mlock": True},
    "dio": {"direct-io": True},
}
_MODE: Final = "load-mode"
LOADING: Final = frozenset({_MODE, *_SWITCHES})


def _loading(given: list[GivenOption], table: OptionTable) -> list[GivenOption]:
    """Return the same in the binary's own options; the last one for each setting counts."""
    if not given:
        return []
    merged = table.knows(_MODE)
    unknown = [one for one in given if not table.knows(one.name)]
    if not unknown or not (merged or any(map(table.knows, _SWITCHES))):
        return given
    points: dict[str, bool] = {}
    for one in given:
        if one.name == _MODE:
            if (mode := _MODES.get(str(one.value))) is None:
                return given
            points = dict(mode)
        elif (on := switched(one.value)) is None:
            return given
        else:
            point, positive = _SWITCHES[one.name]
            points[point] = on is positive
    origin = given[-1].place
    if merged:
        return [GivenOption(_MODE, _mode(points), origin=origin)]
    return [GivenOption(*_switch(point, on, table), origin=origin) for point, on in points.items()]


def _mode(points: Mapping[str, bool]) -> str:
    mapped = points.get("mmap")
    if points.get("direct-io"):
        return "dio"
    if points.get("mlock"):
        return "mlock" if mapped is False else "mmap+mlock"
    return "auto" if mapped is None else "mmap" if mapped else "none"


def _switch(point: str, on: bool, table: OptionTable) -> tuple[str, bool]:
    """Return a switch and its value as the binary has it: some have only the negative form."""
    if not table.knows(point) and table.knows(f"no-{point}"):
        return f"no-{point}", not on
    return point, on
