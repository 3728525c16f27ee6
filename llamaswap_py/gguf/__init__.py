"""Read what a GGUF file says of itself: metadata and tensor table, never the weights. Pure."""

from __future__ import annotations

from llamaswap_py.gguf.errors import GgufError
from llamaswap_py.gguf.header import Header, Tensor, read_header
from llamaswap_py.gguf.metadata import ArrayInfo, Value
from llamaswap_py.gguf.shards import is_first_shard, shard_paths

__all__ = [
    "ArrayInfo",
    "GgufError",
    "Header",
    "Tensor",
    "Value",
    "is_first_shard",
    "read_header",
    "shard_paths",
]
