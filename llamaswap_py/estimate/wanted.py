"""What an estimate is asked for: a preset made ready to run, and where. Keys of what is cached."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.estimate.types import HOST
from llamaswap_py.llamacpp.memory_settings import deciding_words

if TYPE_CHECKING:
    from llamaswap_py.devices import Device
    from llamaswap_py.estimate.files import FileIdentity
    from llamaswap_py.supervisor.prepare import Prepared

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


def wanted_of(
    prepared: Prepared,
    devices: Sequence[Device],
    *,
    cache_ram: int,
    placement: Sequence[str] | None = None,
    variant: str = "",
) -> Wanted | None:
    """Return what to estimate for a preset; None for one that needs an engine and has none.

    `placement` are device names and overrules what the preset says; both may leave it open.
    """
    engine, command = prepared.engine, prepared.preset.cmd
    if engine is None and command is None:
        return None
    on_cpu = engine is not None and engine.backend == "cpu"
    gpus = tuple(one for one in devices if one.id != HOST and not on_cpu)
    named = placement
    if named is None and prepared.preset.device != "auto":
        named = prepared.preset.device
    if named is not None:
        by_name = {one.id: one for one in gpus}
        gpus = tuple(by_name[name] for name in named if name in by_name)
    return Wanted(
        preset=prepared.preset.id,
        model=prepared.preset.model,
        args=prepared.args,
        files=prepared.files,
        gpus=tuple(one.id for one in gpus),
        env=dict(prepared.env),
        variant=variant,
        engine="program" if engine is None else f"{engine.label}:{_binary_identity(engine.path)}",
        fit_params=None if engine is None else engine.fit_params,
        machine=tuple(f"{one.id}={one.uuid or one.source}:{one.total}" for one in gpus),
        declared=prepared.preset.memory,
        cache_ram=cache_ram if command is None else 0,
        is_program=command is not None,
    )


def _binary_identity(path: Path) -> str:
    """A rebuilt engine of the same number is another engine."""
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size}-{status.st_mtime_ns}"
