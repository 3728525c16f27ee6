"""Reads the metadata and the tensor table of GGUF files, never the weights. Pure."""

from __future__ import annotations

from llamaswap_py.gguf.header import ArrayInfo, GgufError, Header, Tensor, Value, read_header
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
