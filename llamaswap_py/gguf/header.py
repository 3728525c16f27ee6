"""A GGUF header: version, metadata, tensor table. Reads as much of the file as that takes.

Source: ggml/include/gguf.h and ggml/src/gguf.cpp of llama.cpp; the checks are those of
gguf_init_from_file, and that every tensor lies within the file (llama-model-loader.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

from llamaswap_py.gguf.cursor import Cursor, ReadAt
from llamaswap_py.gguf.errors import GgufError
from llamaswap_py.gguf.kinds import KINDS
from llamaswap_py.gguf.metadata import ArrayInfo, Value, read_metadata, read_string

MAGIC: Final = b"GGUF"
MAX_TENSORS: Final = 2**18
MAX_NAME: Final = 1024
MAX_ELEMENTS: Final = 2**50
_VERSIONS: Final = (2, 3)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: `shape` as in the file (fastest first), `offset` from the start of the file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says of itself."""

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    data_start: int
    file_size: int

    @property
    def architecture(self) -> str:
        """`llama`, `gemma3`, `clip`, …; empty if it does not say."""
        value = self.metadata.get("general.architecture", "")
        return value if isinstance(value, str) else ""

    def get(self, key: str) -> Value | None:
        """Return a value of the architecture's own keys: get("block_count")."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int = 0) -> int:
        """Return a whole number of the architecture's keys; of a list its largest."""
        value = self.get(key)
        if isinstance(value, ArrayInfo):
            value = max(value.values, default=default) if value.values else default
        return int(value) if isinstance(value, int | float) else default

    def per_layer(self, key: str, layers: int, default: int = 0) -> tuple[int, ...]:
        """Return a number for each of `layers`, whether the file gives one or a list."""
        value = self.get(key)
        if isinstance(value, ArrayInfo) and value.values is not None:
            listed = tuple(int(each) for each in value.values[:layers])
            return listed + (default,) * (layers - len(listed))
        return (self.integer(key, default),) * layers


def read_header(read_at: ReadAt, file_size: int) -> Header:
    """Read the header of a file of `file_size` bytes.

    Raises GgufError when it is not a GGUF, is cut off (in the header or in the weights), or claims
    what cannot be.
    """
    cursor = Cursor(read_at, file_size)
    if file_size < 4 or (magic := cursor.take(4, "the magic number")) != MAGIC:
        shown = magic if file_size >= 4 else b""
        raise GgufError(
            f"is not a GGUF file (it begins with {shown!r})", remedy="name a .gguf file of a model"
        )
    version = _read_version(cursor)
    tensors = cursor.count("the number of tensors")
    if tensors > MAX_TENSORS:
        raise GgufError(f"claims {tensors:,} tensors, more than any model has")
    metadata = read_metadata(cursor, cursor.count("the number of metadata keys"))
    table = [_read_tensor(cursor, number) for number in range(tensors)]
    alignment = _alignment(metadata)
    start = cursor.position + -cursor.position % alignment
    names = {tensor.name for tensor in table}
    if len(names) != len(table):
        raise GgufError("has two tensors of the same name")
    placed = tuple(_place(tensor, start, alignment, file_size) for tensor in table)
    return Header(version, metadata, placed, start, file_size)


def _read_version(cursor: Cursor) -> int:
    version = int(cursor.number("I", "the version"))
    if version & 0xFFFF == 0 and version:
        raise GgufError("is a big-endian file", remedy="convert it for this kind of machine")
    if version not in _VERSIONS:
        raise GgufError(
            f"has GGUF version {version}; this reads {_VERSIONS[0]} and {_VERSIONS[-1]}",
            remedy="convert it again with a current llama.cpp",
        )
    return version


def _read_tensor(cursor: Cursor, number: int) -> Tensor:
    name = read_string(cursor, f"the name of tensor {number}", MAX_NAME)
    dimensions = int(cursor.number("I", f"the dimensions of {name}"))
    if not 1 <= dimensions <= 4:
        raise GgufError(f"the tensor {name} has {dimensions} dimensions")
    shape = tuple(cursor.count(f"the shape of {name}") for _ in range(dimensions))
    kind = KINDS.get(type_id := int(cursor.number("I", f"the type of {name}")))
    if kind is None:
        raise GgufError(
            f"the tensor {name} has the unknown type {type_id}",
            remedy="this lswap does not know it; declare the preset's memory",
        )
    elements = prod(shape)
    if not 0 < elements <= MAX_ELEMENTS:
        raise GgufError(f"the tensor {name} has an impossible shape: {shape}")
    if shape[0] % kind.block:
        raise GgufError(f"rows of {name} are no whole blocks of {kind.name}: {shape[0]}")
    offset = cursor.count(f"the offset of {name}")
    return Tensor(name, shape, kind.name, elements // kind.block * kind.size, offset)


def _alignment(metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", 32)
    good = isinstance(value, int) and 0 < value <= 2**24 and value & (value - 1) == 0
    if not good:
        raise GgufError(f"general.alignment is {value}, no power of two")
    return int(value)  # type: ignore[arg-type]


def _place(tensor: Tensor, start: int, alignment: int, file_size: int) -> Tensor:
    if tensor.offset % alignment:
        raise GgufError(f"the tensor {tensor.name} is not aligned to {alignment} bytes")
    offset = start + tensor.offset
    if offset + tensor.size > file_size:
        missing = offset + tensor.size - file_size
        raise GgufError(
            f"the weights are cut off: {tensor.name} ends {missing:,} bytes after the file"
        )
    return Tensor(tensor.name, tensor.shape, tensor.kind, tensor.size, offset)
