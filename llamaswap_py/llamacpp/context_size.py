"""Works out how much context one request gets, by the given options. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llamaswap_py.llamacpp.command_line import effective, number
from llamaswap_py.llamacpp.memory_settings import PAD

if TYPE_CHECKING:
    from llamaswap_py.llamacpp.options import Given

# `--parallel` left open means four slots that share one context (tools/server/server.cpp).
AUTO_SLOTS: Final = 4


def slots(given: Given) -> int:
    """Return how many requests the child generates at once."""
    parallel = number(given, "parallel")
    return AUTO_SLOTS if parallel is None or parallel < 1 else parallel


def context_asked(given: Given) -> int:
    """Return the requested tokens of context; 0 means those the model was trained for."""
    return max(number(given, "ctx-size") or 0, 0)


def gives_context(given: Given) -> bool:
    """Return whether the options say how much context there is, be it all of it."""
    return effective(given, "ctx-size") is not None


def context_per_request(given: Given) -> int | None:
    """Return the tokens one request may use, None when the model file decides.

    Without `kv-unified` the slots divide `ctx-size`: -c 2048 -np 2 gives 1024 each.
    """
    size = context_asked(given)
    per_slot = number(given, "kv-unified-per-slot") or 0
    if size <= 0:
        return per_slot if per_slot > 0 else None
    share = size if _is_unified(given) else size // slots(given)
    padded = -(-share // PAD) * PAD
    return min(padded, per_slot) if per_slot > 0 else padded


def _is_unified(given: Given) -> bool:
    parallel = number(given, "parallel")
    if parallel is None or parallel < 1:
        return True
    return effective(given, "kv-unified") in (True, "on", "yes") or parallel == 1


def least_context(given: Given) -> int | None:
    """Return the smallest context that `fit` may choose, where `fit-ctx` says one."""
    least = number(given, "fit-ctx")
    return least if least is not None and least > 0 else None
