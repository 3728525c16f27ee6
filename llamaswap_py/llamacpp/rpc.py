"""What is known not to work with RPC servers (`ggml-rpc-server`), which lend devices. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llamaswap_py.llamacpp.memory_settings import read_settings, rpc_endpoints

MOST: Final = 2
"""With three or more, llama-server waits for ever (a known fault of llama.cpp)."""
_MTP: Final = "draft-mtp"


def known_fault(args: Sequence[str]) -> tuple[str, str] | None:
    """Return what does not work with these RPC servers, and the remedy; None if nothing is known.

    Both are faults of llama.cpp b11434.
    """
    count = len(rpc_endpoints(args))
    if count > MOST:
        return (
            f"llama-server hangs with more than {MOST} RPC servers, and `rpc` names {count}",
            f"name at most {MOST}",
        )
    if count and _MTP in read_settings(args).speculation.split(","):
        return (
            f"llama-server crashes with `spec-type: {_MTP}` on RPC servers",
            "remove `rpc` or `spec-type` from `args`",
        )
    return None
