"""What a saved slot of a model takes, and whether it is of any use; from the header of its file."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from llamaswap_py.estimate.attention import has_windows, token_bytes
from llamaswap_py.estimate.files import open_header
from llamaswap_py.estimate.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Sequence


class SlotShape(NamedTuple):
    """`token_bytes` are what a token takes, at most.

    With `windows` a slot cannot be gone on with: llama-server saves one token too few of a sliding
    window, and no checkpoint (b11434, server-context.cpp: pos_min >= pos_min_thold), and reads the
    whole prompt again.
    """

    token_bytes: int
    windows: bool


def read_slot_shape(model: str, args: Sequence[str]) -> SlotShape:
    """Read the header of a model; `args` are llama-server's words. Blocks; raises EstimateError."""
    header, settings = open_header(model), read_settings(args)
    return SlotShape(token_bytes(header, settings), has_windows(header, settings))
