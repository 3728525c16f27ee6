"""How an engine sees the devices: what of its environment and arguments decides that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from llamaswap_py.llamacpp.backends import DEVICE_VARIABLES
from llamaswap_py.llamacpp.memory_settings import rpc_endpoints

if TYPE_CHECKING:
    from llamaswap_py.llamacpp.binaries import Engine


class View(NamedTuple):
    """An engine in an environment: what decides which devices it lists."""

    engine: Engine
    own_env: tuple[tuple[str, str], ...] = ()
    rpc: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its name in the devices' lists of who sees them."""
        return json.dumps([str(self.engine.path), self.own_env, self.rpc])


def view_of(engine: Engine, env: Mapping[str, str], args: Sequence[str]) -> View:
    """Return how a preset with these variables and arguments sees the devices."""
    own = tuple(sorted((name, value) for name, value in env.items() if name in DEVICE_VARIABLES))
    return View(engine, own, rpc_endpoints(args))
