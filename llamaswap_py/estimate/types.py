"""An estimate: the memory a preset takes of each device, part by part, and its source. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

import msgspec

from llamaswap_py.errors import LswapError
from llamaswap_py.scheduler.ledger import spread
from llamaswap_py.units import HOST, format_size

PROMPT_CACHE: Final = "prompt cache"
WEIGHTS: Final = "weights"
MOVED: Final = "rearranged weights"
LOCKED: Final = "locked pages of moved weights"
TOLERANCE: Final = 0.05
"""If an estimate was wrong by more than this share, a line in the log says so."""


class EstimateError(LswapError):
    """Raised if one way of estimating does not work; then the next one is tried."""


class DoesNotRunError(EstimateError):
    """Raised if the engine aborts with the options of a preset, whatever memory there is.

    `tensor` is the engine's name of a tensor that is too large for the device `device` of lswap;
    both are "" if the reason is another one.
    """

    def __init__(self, message: str, *, tensor: str = "", device: str = "") -> None:
        super().__init__(message)
        self.tensor = tensor
        self.device = device


class Source(StrEnum):
    """How an estimate is known, the most reliable first."""

    DECLARED = "declared"
    MEASURED = "measured"
    DRY_RUN = "dry-run"
    ANALYTIC = "analytic"


class Part(msgspec.Struct, frozen=True):
    """Bytes of one device for one purpose.

    `grows`: the process takes them with use, after it is ready (buffers that only a full batch
    touches, the prompt cache, checkpoints). Where memory is reserved at once, as on GPUs, a compute
    buffer does not grow.
    """

    device: str
    what: str
    size: int
    grows: bool = False


class Estimate(msgspec.Struct, frozen=True):
    """The memory of a preset; `notes` tell users the assumptions, and why a better way failed."""

    source: Source
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()

    @property
    def footprint(self) -> dict[str, int]:
        """Bytes per device."""
        return total(self.parts)

    @property
    def in_place(self) -> int:
        """Bytes of the host that may be pages of the model's files, and must stay there.

        The model computes from them where the files are mapped, or has locked them.
        """
        host = (part for part in self.parts if part.device == HOST)
        return sum(part.size for part in host if part.what in (WEIGHTS, LOCKED))

    @property
    def growth(self) -> dict[str, int]:
        """Bytes per device that are taken with use only."""
        return total(part for part in self.parts if part.grows)

    def explain(self, device: str) -> str:
        """Return `4.1 GiB weights + 512 MiB context + …` for one device."""
        sizes: dict[str, int] = {}
        for part in self.parts:
            if part.device == device and part.size:
                sizes[part.what] = sizes.get(part.what, 0) + part.size
        return " + ".join(f"{format_size(size)} {named(what)}" for what, size in sizes.items())


def named(what: str) -> str:
    """Return the name of a part, with the key of the file that sets it where there is one."""
    return f"{what} (memory.cache_ram)" if what == PROMPT_CACHE else what


def total(parts: Iterable[Part]) -> dict[str, int]:
    """Return the sum of sizes per device."""
    sizes: dict[str, int] = {}
    for part in parts:
        sizes[part.device] = sizes.get(part.device, 0) + part.size
    return sizes


def fits_in(
    footprint: Mapping[str, int], room: Mapping[str, int], within: Mapping[str, str | None]
) -> bool:
    """Return whether every device has room for its part; both in bytes per device.

    `within` names the device in whose memory another one computes: it needs the room, too.
    """
    whole = spread(footprint, within)
    return all(size <= room.get(device, 0) for device, size in whole.items() if size)


def surprise(estimate: Estimate, measured: Mapping[str, int]) -> str:
    """Say by how much an estimate was wrong, if it was by more than TOLERANCE; else "".

    It compares only devices that were measured.
    """
    wrong = []
    for device, real in measured.items():
        said = estimate.footprint.get(device, 0)
        if real and abs(said - real) > TOLERANCE * real:
            off = (said - real) / real
            wrong.append(
                f"{device}: {format_size(said)} were expected ({estimate.source}), "
                f"the model takes {format_size(real)} ({off:+.0%})"
            )
    return "; ".join(wrong)
