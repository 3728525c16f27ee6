"""Which quantisation of a repository to take: by the context it would have here. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from llamaswap_py.estimate.contexts import Overheads
from llamaswap_py.hub.refs import Build
from llamaswap_py.units import HOST, format_size

_BESIDE: Final = 1.1
"""What a model takes beside its weights, as a share of them, where its header is not known."""
_UNUSUAL: Final = ("F16", "F32", "FP16", "BF16")
"""Nobody runs these who has the choice."""


class Quant(msgspec.Struct, frozen=True):
    """One quantisation, bytes and tokens.

    `needs` is what it takes of each device alone with `context` tokens, `fits` the devices that
    have so much, `contexts` the largest usual context on each device that has one. Without a
    header `context` is 0, `contexts` is empty and the needs are a rule of thumb.
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
        """The devices it fits, for people: `CUDA0 with 32k context, host with 128k`; or empty."""
        if not self.context:
            return ", ".join(self.fits)
        found = [f"{device} with {short(tokens)}" for device, tokens in self.contexts.items()]
        return ", ".join([f"{one} context" for one in found[:1]] + found[1:])


def judge(build: Build, room: Mapping[str, int], overheads: Overheads | None) -> Quant:
    """Return what a build would have on devices with so many bytes of room each."""
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
    """Return the place of the largest that fits a card, else the host; None if nothing fits.

    `quants` are in the order of their sizes. Above 8 bits only what there is alone.
    """
    usual = [at for at, one in enumerate(quants) if _is_usual(one)] or list(range(len(quants)))
    on_cards = [at for at in usual if set(quants[at].fits) - {HOST}]
    fitting = on_cards or [at for at in usual if quants[at].fits]
    return fitting[-1] if fitting else None


def verdict(quants: Sequence[Quant], chosen: int) -> str:
    """Say what was chosen by `best`, and what of the next larger one kept it from being that."""
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
    """Say what the smallest would take at the least: `4.1 GiB with 16k`."""
    need = min(size for one in quants for size in one.needs.values())
    return f"{format_size(need)}{_with(quants[0])}"


def short(tokens: int) -> str:
    """Return `32k` for 32768 tokens, and a number that is not a multiple of 1024 as it is."""
    return str(tokens) if tokens % 1024 else f"{tokens // 1024}k"


def _with(one: Quant) -> str:
    return f" with {short(one.context)}" if one.context else ""


def _is_usual(one: Quant) -> bool:
    return not one.quantisation.startswith(_UNUSUAL)
