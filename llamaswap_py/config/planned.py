"""Keys of the design that this version does not have: refused by name, so nobody relies on them."""

from __future__ import annotations

from typing import Final

from llamaswap_py.config.records import Defaults, Preset, Record

_PRESET: Final = frozenset(
    {
        "keep_kv",
    }
)

PLANNED: Final[dict[type[Record], frozenset[str]]] = {
    Defaults: _PRESET,
    Preset: _PRESET,
}
