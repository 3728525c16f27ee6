"""Works out how large a model would be in another quantisation, by its header. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Final, NamedTuple

from llamaswap_py.gguf.header import Header, Tensor


class Quantisation(NamedTuple):
    """A way to write weights: bits of one weight, and the type of most tensors."""

    name: str
    bits: float
    kind: str


# Bits of a weight as tools/quantize/README.md gives them, of an 8B model; the largest first.
USUAL: Final = (
    Quantisation("Q8_0", 8.5008, "Q8_0"),
    Quantisation("Q6_K", 6.5633, "Q6_K"),
    Quantisation("Q5_K_M", 5.7036, "Q5_K"),
    Quantisation("Q4_K_M", 4.8944, "Q4_K"),
    Quantisation("IQ4_XS", 4.4597, "IQ4_XS"),
    Quantisation("Q3_K_M", 3.9960, "Q3_K"),
    Quantisation("Q2_K", 3.1593, "Q2_K"),
    Quantisation("IQ2_XS", 2.5882, "IQ2_XS"),
)
_SMALLER: Final = 0.95
"""A quantisation is worth naming if its weights take at most this share of the present ones."""


def smaller(headers: Sequence[Header]) -> Iterator[tuple[Quantisation, tuple[Header, ...]]]:
    """Yield quantisations that make a model smaller, the largest first, with its headers then."""
    now = weights_of(headers)
    for quantisation in USUAL:
        changed = tuple(requantised(header, quantisation) for header in headers)
        if weights_of(changed) <= _SMALLER * now:
            yield quantisation, changed


def weights_of(headers: Sequence[Header]) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.size for header in headers for tensor in header.tensors)


def requantised(header: Header, quantisation: Quantisation) -> Header:
    """Return a header as it would be with every matrix in this quantisation."""
    changed: dict[str, Tensor] = {}
    offset = header.data_start
    for tensor in sorted(header.tensors, key=lambda one: one.offset):
        changed[tensor.name] = smaller = replace(_requantised(tensor, quantisation), offset=offset)
        offset += smaller.size
    return replace(header, tensors=tuple(changed[tensor.name] for tensor in header.tensors))


def _requantised(tensor: Tensor, quantisation: Quantisation) -> Tensor:
    """Return a tensor with its new size; vectors keep theirs, because they stay as they are."""
    if len(tensor.shape) < 2:
        return tensor
    size = min(round(prod(tensor.shape) * quantisation.bits / 8), tensor.size)
    return replace(tensor, size=size, kind=quantisation.kind)
