"""Works out the largest context of a model on a device, before it is downloaded. Pure.

The header of one quantisation gives the shapes of all of them. Only their weights differ, and those
are as large as their files. The figures are for one process alone, started as `lswap up` starts it
without a file: two requests share one context.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from llamaswap_py.config.sections import Memory
from llamaswap_py.estimate.formula import analytic_parts, process_parts
from llamaswap_py.estimate.types import WEIGHTS
from llamaswap_py.gguf.header import Header
from llamaswap_py.llamacpp.memory_settings import Settings
from llamaswap_py.units import HOST

USUAL: Final = tuple(thousands * 1024 for thousands in (4, 8, 16, 32, 64, 128))
"""Contexts that are tried, in tokens."""
_SLOTS: Final = 2


@dataclass(frozen=True, slots=True)
class Overheads:
    """The memory of a model without its weights: bytes by device and context (tokens, ascending).

    `asked` is the context that was asked for, or the longest it was trained for.
    """

    asked: int
    by_device: Mapping[str, Mapping[int, int]]

    def need(self, weights: int, device: str) -> int:
        """Return the bytes it takes of a device with the context asked for."""
        return weights + self.by_device[device][self.asked]

    def largest(self, weights: int, device: str, room: int) -> int:
        """Return the largest context with which it fits into `room` bytes; 0 without any."""
        fitting = [
            context for context, more in self.by_device[device].items() if weights + more <= room
        ]
        return max(fitting, default=0)


def overheads_of(
    header: Header, devices: Iterable[str], *, asked: int, projector: int = 0
) -> Overheads:
    """Return what a model of this header takes beside its weights on each device alone.

    `asked` in tokens, `projector` the bytes of its file. Of a split model the first shard's header
    is enough. Raises EstimateError for a file that is not a language model.
    """
    trained = header.integer("context_length")
    asked = min(asked, trained) if trained else asked
    contexts = sorted({asked, *(one for one in USUAL if one <= trained or not trained)})
    return Overheads(
        asked,
        {
            device: {context: _beside(header, context, device, projector) for context in contexts}
            for device in devices
        },
    )


def _beside(header: Header, context: int, device: str, projector: int) -> int:
    settings = Settings(context=context, slots=_SLOTS, prompt_cache=Memory().cache_ram)
    gpus = () if device == HOST else (device,)
    parts = analytic_parts([header], settings, gpus, repackable=())
    parts += process_parts(settings, gpus, projector=projector, adapters=0)
    return sum(part.size for part in parts if part.device == device and part.what != WEIGHTS)
