"""The parts of `python -m bench`, in the order of the summary."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bench.run import Run, Section


@dataclass(frozen=True, slots=True)
class Part:
    """A part: `where` is module:function, of a function that takes a Run and yields Sections."""

    name: str
    where: str
    about: str
    default: bool = True

    def measure(self, run: Run) -> Iterable[Section]:
        """Import the part and start it."""
        module, _, function = self.where.partition(":")
        sections: Iterable[Section] = getattr(importlib.import_module(module), function)(run)
        return sections


PARTS: Final = (
    Part("relay", "bench.relay:measure_relay", "requests, latency, streams before a stub"),
    Part("real_relay", "bench.relay:measure_real_relay", "requests before a real tiny model"),
    Part("leaving", "bench.leaving:measure_leaving", "clients that leave"),
    Part("footprint", "bench.footprint:measure_footprint", "memory, and wake-ups when idle"),
    Part("big_body", "bench.big_body:measure_beside", "50 MB beside 100 streams"),
    Part(
        "uploads",
        "bench.big_body:measure_big_body",
        "the same in several forms, and the longest turn of lswap's loop",
    ),
    Part("scale", "bench.scale:measure_scale", "5,000 idle connections, 1,000 streams"),
    Part("presets", "bench.presets:measure_presets", "10,000 presets against 10"),
    Part("commands", "bench.commands:measure_commands", "CPU of commands"),
    Part("swap", "bench.swap:measure_swaps", "one swap, and crowds of clients"),
    Part("hot", "bench.hot:measure_hot", "one request for B while A is kept busy"),
    Part("read_ahead", "bench.swap_savings:measure_read_ahead", "a large file after a drain"),
    Part("keep_kv", "bench.swap_savings:measure_keep_kv", "a long prompt after a swap"),
    Part("day", "bench.day:measure_day", "memory promises in a simulated day"),
)
