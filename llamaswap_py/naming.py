"""What a model name means: a preset, by its id or an alias; and which names look like it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from llamaswap_py.errors import ApiError


class Names:
    """Every name that a client may use, and the preset behind it."""

    def __init__(self, names: Mapping[str, Iterable[str]]) -> None:
        """Take the names of each preset, its id among them."""
        self._presets = {name: preset for preset, own in names.items() for name in own}

    def resolve(self, name: str) -> str | None:
        """Return the preset that a model name or alias means."""
        return self._presets.get(name)

    def resolve_substitute(self, when_full: str) -> str:
        """Return `substitute:NAME` with the preset that NAME means; raises ApiError."""
        kind, _, name = when_full.partition(":")
        if kind != "substitute" or name == "loaded":
            return when_full
        preset = self.resolve(name)
        if preset is None:
            raise ApiError("bad_request", f"x-lswap-when-full: there is no model {name!r}")
        return f"substitute:{preset}"

    def nearest(self, name: str) -> list[str]:
        """Return up to three known names that look like `name`."""
        folded = {known.lower(): known for known in self._presets}
        close = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)
        return [folded[one] for one in close]
