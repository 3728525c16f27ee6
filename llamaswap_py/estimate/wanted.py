"""The question to the estimator: a preset ready to run, and its devices; also its cache key."""

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

SCHEMA: Final = 3
"""The version in the keys. Raise it when the formulas or the meaning of measured figures change.

Older records are then not used any more. An older lswap goes on with them, and sees no newer ones.
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A preset (or a variant of it) on a placement. `args` are the words after llama-server.

    `gpus` are the devices a child may use, in the order in which it sees them. `machine` names
    devices by UUIDs, which do not change with their order. For a program that is not a llama-server
    only measured figures are known.
    """

    preset: str
    model: str
    args: tuple[str, ...]
    files: tuple[str, ...]
    gpus: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    """The child's names of devices -> ours; without them it numbers `gpus` from zero."""
    variant: str = ""
    engine: str = ""
    fit_params: Path | None = None
    machine: tuple[str, ...] = ()
    declared: Mapping[str, int] | None = None
    cache_ram: int = 0
    is_program: bool = False

    def key(self, files: Sequence[FileIdentity], *, exact: bool) -> str:
        """Return the key under which its figures are kept.

        An `exact` key also tells apart copies of a file and their times; it is for figures that can
        be worked out again. Learned figures survive a `touch` or a move to another disk.
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
