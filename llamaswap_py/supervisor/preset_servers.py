"""The RPC servers that a preset needs, and which of them do not answer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from llamaswap_py.config.argv import PresetProblem, place_of
from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.device_list import OPTION
from llamaswap_py.llamacpp.memory_settings import rpc_endpoints
from llamaswap_py.llamacpp.rpc_connect import START_IT, connect
from llamaswap_py.scheduler.types import RPC_LOST

if TYPE_CHECKING:
    from llamaswap_py.config.sections import Config, Preset
    from llamaswap_py.llamacpp.binaries import Engine


class ServerTries:
    """Tries each RPC server once; it is used for one look at all presets. Blocks.

    Those that are `in_use` by our children are there.
    """

    def __init__(self, in_use: Collection[str] = ()) -> None:
        self._known: dict[str, str] = dict.fromkeys(in_use, "")

    def failure(self, endpoint: str) -> str:
        """Return why a server cannot be used; "" if it answers."""
        if endpoint not in self._known:
            try:
                connect(endpoint)
                self._known[endpoint] = ""
            except EngineError as error:
                self._known[endpoint] = error.message
        return self._known[endpoint]


def endpoints_of(command_lines: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Return the endpoints of all RPC servers that these arguments name, each once."""
    return tuple(dict.fromkeys(one for args in command_lines for one in rpc_endpoints(args)))


def server_problems(
    preset: Preset,
    args: Sequence[str],
    engine: Engine,
    config: Config,
    tries: ServerTries,
) -> list[PresetProblem]:
    """Return which RPC servers of a preset do not answer.

    It is asked where the engine could not list its devices. Where it could, the servers were there,
    and each is tried before a load.
    """
    if OPTION not in engine.help_text:
        return []
    where = config.where(place_of(config, preset, "args.rpc"))
    return [
        PresetProblem(preset.id, where, reason, START_IT, RPC_LOST)
        for one in rpc_endpoints(args)
        if (reason := tries.failure(one))
    ]


def kind_of_problems(problems: Iterable[PresetProblem]) -> str:
    """Return the kind of failure that these problems are: theirs, if they have one in common."""
    kinds = {one.kind for one in problems}
    return kinds.pop() if len(kinds) == 1 else "config"
