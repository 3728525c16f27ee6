"""Divides the layers of a model among several devices, so that they are filled alike. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_ROUNDS: Final = 40


def divide_layers(
    layers: Sequence[int], fixed: Sequence[int], rooms: Sequence[int]
) -> tuple[int, ...]:
    """Return how many of `layers` each device takes, one after the other.

    `layers` are bytes; `fixed` is what each device holds beside them, `rooms` what each has. The
    fullest device is then as empty as it can be. It may be more than full if the layers do not fit.
    """
    low, high = 0.0, 1.0
    while (found := _filled(layers, fixed, rooms, high)) is None:
        low, high = high, high * 2
        if high > 2**_ROUNDS:  # no device has any room
            return (len(layers), *(0 for _ in rooms[1:]))
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        if (better := _filled(layers, fixed, rooms, middle)) is None:
            low = middle
        else:
            found, high = better, middle
    return found


def _filled(
    layers: Sequence[int], fixed: Sequence[int], rooms: Sequence[int], level: float
) -> tuple[int, ...] | None:
    """Fill each device up to `level` of its room; None if layers are left over."""
    counts: list[int] = []
    at = 0
    for held, room in zip(fixed, rooms, strict=True):
        start, left = at, room * level - held
        while at < len(layers) and layers[at] <= left:
            left -= layers[at]
            at += 1
        counts.append(at - start)
    return tuple(counts) if at == len(layers) else None
