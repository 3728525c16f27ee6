"""llama-swap's macros: `${name}`, `${env.NAME}`, and those it fills in itself. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from llamaswap_py.importing.draft import Draft

_MACRO: Final = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")
_LEFT: Final = frozenset({"PORT", "PID"})
_DEPTH: Final = 20


@dataclass(slots=True)
class Macros:
    """The macros that are in force at one place, and the environment."""

    values: Mapping[str, Any]
    environment: Mapping[str, str]
    draft: Draft
    place: str
    _unknown: set[str] = field(default_factory=set)

    def inside(self, place: str, values: Mapping[str, Any]) -> Macros:
        """Return the macros of a model: its own win."""
        return Macros({**self.values, **values}, self.environment, self.draft, place)

    def expand(self, value: Any, depth: int = 0) -> Any:
        """Return `value` with all macros in its texts replaced; a lone macro keeps its type.

        `${PORT}` and `${PID}` stay; an unknown one stays too, and is noted.
        """
        if isinstance(value, dict):
            return {str(self.expand(k)): self.expand(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.expand(each) for each in value]
        if not isinstance(value, str) or depth > _DEPTH:
            return value
        if (whole := _MACRO.fullmatch(value)) and whole[1] in self.values:
            return self.expand(self.values[whole[1]], depth + 1)
        return _MACRO.sub(lambda match: self._text(match, depth), value)

    def _text(self, match: re.Match[str], depth: int) -> str:
        name = match[1]
        if name in self.values:
            return _as_text(self.expand(self.values[name], depth + 1))
        if name.startswith("env.") and name[4:] in self.environment:
            return self.environment[name[4:]]
        if name not in _LEFT and name not in self._unknown:
            self._unknown.add(name)
            self.draft.note(self.place, f"{match[0]} is not known here and was left as it is")
        return match[0]


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).strip("\n")
