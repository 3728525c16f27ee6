"""What an estimate is asked for: a preset made ready to run, and where. Keys of what is cached."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.llamacpp.memory_settings import deciding_words
from llamaswap_py.units import HOST

if TYPE_CHECKING:
    from llamaswap_py.estimate.files import FileIdentity

SCHEMA: Final = 1
"""Of the keys; raise it when the formulas change, and old cached estimates are forgotten."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A preset (or a variant of it) on a placement. `args` are the words after llama-server.

    `gpus` are the devices a child may use, in the order in which it sees them. `machine` names
    devices by what does not change with their order: UUIDs. Of a program that is not a llama-server
    only what was measured is known.
    """

    preset: str
    model: str
    args: tuple[str, ...]
    files: tuple[str, ...]
    gpus: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    variant: str = ""
    engine: str = ""
    fit_params: Path | None = None
    machine: tuple[str, ...] = ()
    declared: Mapping[str, int] | None = None
    cache_ram: int = 0
    is_program: bool = False

    def key(self, files: Sequence[FileIdentity], *, exact: bool) -> str:
        """Return a name for what is known of it.

        `exact` also tells apart copies of a file and times of it, for what can be worked out again;
        what was learned survives a `touch` or a move to another disk.
        """
        told = [tuple(one) if exact else (one.path, one.size) for one in files]
        content = {
            "schema": SCHEMA,
            "args": deciding_words(self.args),
            "env": sorted(self.env.items()),
            "files": told,
            "variant": self.variant,
            "placement": list(self.gpus) or [HOST],
            "engine": self.engine,
            "machine": list(self.machine),
        }
        return hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:32]
