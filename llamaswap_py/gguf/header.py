"""The header of a GGUF file: version, metadata, tensor table. No more of the file is read.

The format is that of ggml/include/gguf.h and ggml/src/gguf.cpp of llama.cpp. The checks are those
of gguf_init_from_file, and that every tensor lies within the file (llama-model-loader.cpp).

A vocabulary holds hundreds of thousands of strings, which lswap does not need: of a long array it
keeps only the length. It checks counts and lengths against the bytes left in the file before it
allocates memory for them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Final, NamedTuple

from llamaswap_py.errors import LswapError


class GgufError(LswapError):
    """Raised when a file is not a GGUF, is cut off, or has an impossible header."""

    def __init__(self, message: str, *, remedy: str = "download the file again") -> None:
        super().__init__(message, remedy=remedy)


ReadAt = Callable[[int, int], bytes]
"""(offset, size) -> at most `size` bytes from there; fewer only at the end of the file."""

_WINDOW: Final = 256 * 1024


class Cursor:
    """A position in a file of `size` bytes, with a window of read-ahead."""

    def __init__(self, read_at: ReadAt, size: int) -> None:
        self.position = 0
        self.size = size
        self._read_at = read_at
        self._window = b""
        self._start = 0

    @property
    def left(self) -> int:
        """Bytes between here and the end of the file."""
        return self.size - self.position

    def take(self, count: int, what: str) -> bytes:
        """Return the next `count` bytes; `what` names them in the error when they are not there."""
        if count > self.left:
            raise GgufError(
                f"cut off at byte {self.size:,}: {what} would need {count - self.left:,} more"
            )
        inside = self.position - self._start
        if inside < 0 or inside + count > len(self._window):
            self._window = self._read_at(self.position, max(count, min(_WINDOW, self.left)))
            self._start, inside = self.position, 0
            if len(self._window) < count:
                raise GgufError(f"became shorter while it was read ({what})")
        self.position += count
        return self._window[inside : inside + count]

    def skip(self, count: int, what: str) -> None:
        """Skip `count` bytes without reading them."""
        if count > self.left:
            raise GgufError(
                f"cut off at byte {self.size:,}: {what} would need {count - self.left:,} more"
            )
        self.position += count

    def number(self, form: str, what: str) -> int | float:
        """Return one little-endian number of a struct format character."""
        value: int | float = struct.unpack("<" + form, self.take(struct.calcsize(form), what))[0]
        return value

    def count(self, what: str) -> int:
        """Return an unsigned 64-bit number."""
        return int(self.number("Q", what))


class Kind(NamedTuple):
    """A tensor type; `size` bytes hold `block` elements."""

    name: str
    block: int
    size: int


KINDS: Final[dict[int, Kind]] = {
    0: Kind("F32", 1, 4),
    1: Kind("F16", 1, 2),
    2: Kind("Q4_0", 32, 18),
    3: Kind("Q4_1", 32, 20),
    6: Kind("Q5_0", 32, 22),
    7: Kind("Q5_1", 32, 24),
    8: Kind("Q8_0", 32, 34),
    9: Kind("Q8_1", 32, 36),
    10: Kind("Q2_K", 256, 84),
    11: Kind("Q3_K", 256, 110),
    12: Kind("Q4_K", 256, 144),
    13: Kind("Q5_K", 256, 176),
    14: Kind("Q6_K", 256, 210),
    15: Kind("Q8_K", 256, 292),
    16: Kind("IQ2_XXS", 256, 66),
    17: Kind("IQ2_XS", 256, 74),
    18: Kind("IQ3_XXS", 256, 98),
    19: Kind("IQ1_S", 256, 50),
    20: Kind("IQ4_NL", 32, 18),
    21: Kind("IQ3_S", 256, 110),
    22: Kind("IQ2_S", 256, 82),
    23: Kind("IQ4_XS", 256, 136),
    24: Kind("I8", 1, 1),
    25: Kind("I16", 1, 2),
    26: Kind("I32", 1, 4),
    27: Kind("I64", 1, 8),
    28: Kind("F64", 1, 8),
    29: Kind("IQ1_M", 256, 56),
    30: Kind("BF16", 1, 2),
    34: Kind("TQ1_0", 256, 54),
    35: Kind("TQ2_0", 256, 66),
    39: Kind("MXFP4", 32, 17),
    40: Kind("NVFP4", 64, 36),
    41: Kind("Q1_0", 128, 18),
}

BY_NAME: Final[dict[str, Kind]] = {kind.name.lower(): kind for kind in KINDS.values()}
"""The same by the names that --cache-type-k takes: `f16`, `q8_0`."""


def row_bytes(name: str, elements: int) -> int:
    """Return the bytes of `elements` in the type of this name; F16 where the name is unknown."""
    kind = BY_NAME.get(name.lower(), KINDS[1])
    return -(-elements // kind.block) * kind.size


MAX_KEYS: Final = 65536
MAX_KEY_LENGTH: Final = 65535
MAX_STRING: Final = 16 * 1024**2
MAX_ELEMENTS: Final = 2**24
KEPT_ELEMENTS: Final = 4096
"""An array that is longer than any list of layers is a vocabulary."""
MAX_DEPTH: Final = 4

_STRING: Final = 8
_ARRAY: Final = 9
_BOOL: Final = 7
_NUMBERS: Final[dict[int, str]] = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "B",
    10: "Q",
    11: "q",
    12: "d",
}


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """An array; `values` is None where only its length was kept."""

    length: int
    values: tuple[int | float | bool, ...] | None = None


Value = int | float | bool | str | ArrayInfo


def read_metadata(cursor: Cursor, keys: int) -> dict[str, Value]:
    """Read `keys` pairs; raises GgufError."""
    if keys > MAX_KEYS:
        raise GgufError(f"claims {keys:,} keys of metadata, more than any model has")
    found: dict[str, Value] = {}
    for number in range(keys):
        key = read_string(cursor, f"metadata key {number}", MAX_KEY_LENGTH)
        if key in found:
            raise GgufError(f"has the key {key} twice")
        kind = int(cursor.number("I", f"the type of {key}"))
        found[key] = _read_value(cursor, kind, key)
    return found


def read_string(cursor: Cursor, what: str, limit: int = MAX_STRING) -> str:
    """Read a length and that many bytes of UTF-8; odd bytes are replaced."""
    length = cursor.count(f"the length of {what}")
    if length > limit:
        raise GgufError(f"{what} claims to be {length:,} bytes long")
    return cursor.take(length, what).decode(errors="replace")


def _read_value(cursor: Cursor, kind: int, key: str) -> Value:
    if kind == _STRING:
        return read_string(cursor, f"the value of {key}")
    if kind == _ARRAY:
        return _read_array(cursor, key, 1)
    form = _NUMBERS.get(kind)
    if form is None:
        raise GgufError(f"{key} has the unknown type {kind}")
    value = cursor.number(form, f"the value of {key}")
    return bool(value) if kind == _BOOL else value


def _read_array(cursor: Cursor, key: str, depth: int) -> ArrayInfo:
    kind = int(cursor.number("I", f"the element type of {key}"))
    length = cursor.count(f"the length of {key}")
    if length > MAX_ELEMENTS:
        raise GgufError(f"{key} claims {length:,} elements")
    if kind == _STRING:
        _skip_strings(cursor, length, key)
        return ArrayInfo(length)
    if kind == _ARRAY:
        if depth == MAX_DEPTH:
            raise GgufError(f"{key} nests arrays {depth} deep")
        # Each of them is at least its type and its length: that many must still be in the file.
        if length * 12 > cursor.left:
            raise GgufError(f"{key} claims {length:,} arrays, more than the file can hold")
        for _ in range(length):
            _read_array(cursor, key, depth + 1)
        return ArrayInfo(length)
    form = _NUMBERS.get(kind)
    if form is None:
        raise GgufError(f"{key} has elements of the unknown type {kind}")
    size = length * struct.calcsize(form)
    if length > KEPT_ELEMENTS:
        cursor.skip(size, f"the elements of {key}")
        return ArrayInfo(length)
    values = struct.unpack(f"<{length}{form}", cursor.take(size, f"the elements of {key}"))
    return ArrayInfo(length, tuple(map(bool, values)) if kind == _BOOL else values)


def _skip_strings(cursor: Cursor, length: int, key: str) -> None:
    if length * 8 > cursor.left:
        raise GgufError(f"{key} claims {length:,} strings, more than the file can hold")
    what = f"the elements of {key}"
    for _ in range(length):
        cursor.skip(cursor.count(what), what)


MAGIC: Final = b"GGUF"
MAX_TENSORS: Final = 2**18
MAX_NAME: Final = 1024
MAX_TENSOR_ELEMENTS: Final = 2**50
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
    """The header of one file."""

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
        """Return a whole number of the architecture's keys; of a list the largest."""
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

    Raises GgufError when it is not a GGUF, is cut off (in the header or in the weights), or has
    impossible values.
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
    if not 0 < elements <= MAX_TENSOR_ELEMENTS:
        raise GgufError(f"the tensor {name} has an impossible shape: {shape}")
    if shape[0] % kind.block:
        raise GgufError(f"rows of {name} are not whole blocks of {kind.name}: {shape[0]}")
    offset = cursor.count(f"the offset of {name}")
    return Tensor(name, shape, kind.name, elements // kind.block * kind.size, offset)


def _alignment(metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", 32)
    good = isinstance(value, int) and 0 < value <= 2**24 and value & (value - 1) == 0
    if not good:
        raise GgufError(f"general.alignment is {value}, which is not a power of two")
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
