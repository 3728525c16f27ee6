"""Chooses a quantisation of a repository by the context that it would have here. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from llamaswap_py.estimate.contexts import Overheads
from llamaswap_py.hub.refs import Build
from llamaswap_py.units import HOST, format_size

_BESIDE: Final = 1.1
"""Memory of a model as a multiple of its weights, if its header is unknown."""
_UNUSUAL: Final = ("F16", "F32", "FP16", "BF16")
"""Taken only if a repository has no smaller ones."""


class Quant(msgspec.Struct, frozen=True):
    """One quantisation; sizes in bytes, contexts in tokens.

    `needs` is its memory on each device alone with `context` tokens, `fits` has the devices with
    that much memory, `contexts` the largest usual context on each device. Without a header,
    `context` is 0, `contexts` is empty, and `needs` follows a rule of thumb.
    """

    quantisation: str
    size: int
    files: int
    fits: list[str]
    needs: dict[str, int]
    context: int = 0
    contexts: dict[str, int] = {}

    @property
    def where(self) -> str:
        """The devices that it fits, as text: `CUDA0 with 32k context, host with 128k`; or empty."""
        if not self.context:
            return ", ".join(self.fits)
        found = [f"{device} with {short(tokens)}" for device, tokens in self.contexts.items()]
        return ", ".join([f"{one} context" for one in found[:1]] + found[1:])


def judge(build: Build, room: Mapping[str, int], overheads: Overheads | None) -> Quant:
    """Return how a build fits devices that have `room` bytes each."""
    name, count = build.quant or build.files[0].path, len(build.files)
    if overheads is None:
        need = round(build.size * _BESIDE)
        fits = [device for device, size in room.items() if need <= size]
        return Quant(name, build.size, count, fits, dict.fromkeys(room, need))
    needs = {device: overheads.need(build.size, device) for device in room}
    contexts = {
        device: largest
        for device, size in room.items()
        if (largest := overheads.largest(build.size, device, size))
    }
    fits = [device for device, size in room.items() if needs[device] <= size]
    return Quant(name, build.size, count, fits, needs, overheads.asked, contexts)


def best(quants: Sequence[Quant]) -> int | None:
    """Return the index of the largest that fits a card, else the host; None if nothing fits.

    `quants` are sorted by size. Types above 8 bits count only if there are no others.
    """
    usual = [at for at, one in enumerate(quants) if _is_usual(one)] or list(range(len(quants)))
    on_cards = [at for at in usual if set(quants[at].fits) - {HOST}]
    fitting = on_cards or [at for at in usual if quants[at].fits]
    return fitting[-1] if fitting else None


def verdict(quants: Sequence[Quant], chosen: int) -> str:
    """Return text: what `best` has chosen, and why not the next larger one."""
    one = quants[chosen]
    said = described(one)
    larger = next((two for two in quants[chosen + 1 :] if _is_usual(two)), None)
    if larger is None or not one.fits:
        return said
    anywhere = " a card" if larger.fits else ""
    return f"{said}; {larger.quantisation} does not fit{anywhere}{_with(larger)}"


def described(one: Quant) -> str:
    """Return `Q4_K_M: 4.7 GiB, fits CUDA0 with 32k context`."""
    where = one.where or "no device here"
    return f"{one.quantisation}: {format_size(one.size)}, fits {where}"


def least(quants: Sequence[Quant]) -> str:
    """Return the least memory that any would take, as text: `4.1 GiB with 16k`."""
    need = min(size for one in quants for size in one.needs.values())
    return f"{format_size(need)}{_with(quants[0])}"


def short(tokens: int) -> str:
    """Return `32k` for 32768 tokens, and a number that is not a multiple of 1024 as it is."""
    return str(tokens) if tokens % 1024 else f"{tokens // 1024}k"


def _with(one: Quant) -> str:
    return f" with {short(one.context)}" if one.context else ""


def _is_usual(one: Quant) -> bool:
    return not one.quantisation.startswith(_UNUSUAL)
