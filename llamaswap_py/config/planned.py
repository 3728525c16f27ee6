"""Keys of the design that this version does not have: refused by name, so nobody relies on them."""

from __future__ import annotations

from typing import Final

from llamaswap_py.config.records import Config, Defaults, Log, Policy, Preset, Record

_PRESET: Final = frozenset(
    {
        "hf",
        "cmd",
        "ready",
        "variants",
        "prefer",
        "fit",
        "sleep",
        "keep_kv",
        "resume",
        "request",
        "priority",
        "when_full",
        "liveness",
    }
)

PLANNED: Final[dict[type[Record], frozenset[str]]] = {
    Config: frozenset(
        {
            "keys",
            "cors",
            "ui",
            "capture",
            "allow_args",
            "aliases",
            "model_dirs",
            "groups",
            "vars",
        }
    ),
    Policy: frozenset({"when_full"}),
    Log: frozenset({"rotate"}),
    Defaults: _PRESET,
    Preset: _PRESET,
}
