"""Tries whether an RPC server (`ggml-rpc-server`) is there: llama-server aborts if one is not.

Even `--list-devices` does, so each server is connected to before an engine is told of it. A server
serves one client at a time, and has a queue of two connections. When that is full, connecting to it
fails as if it were gone. So a server that a child of lswap uses is left alone.
"""

from __future__ import annotations

import socket
from typing import Final

from llamaswap_py.errors import EngineError

CONNECT: Final = 1.0
"""Seconds in which an RPC server has to take a connection."""
START_IT: Final = "start ggml-rpc-server there, or take the endpoint out of `rpc`"


def connect(endpoint: str, timeout: float = CONNECT) -> None:
    """Raise EngineError unless something listens at HOST:PORT. Blocks."""
    host, _, port = endpoint.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout):
            pass
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EngineError(
            f"the RPC server {endpoint} does not answer ({reason})", remedy=START_IT
        ) from error
