"""Turn what llama-fit-params answered into what llama-server will take. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final

from llamaswap_py.estimate.analytic import growing_parts
from llamaswap_py.estimate.attention import context_of
from llamaswap_py.estimate.compute import without_spare_logits
from llamaswap_py.estimate.fitargs import MOVED, has_table, parse_answer, window_correction
from llamaswap_py.estimate.layout import lay_out
from llamaswap_py.estimate.records import HOST, EstimateError, Part, total
from llamaswap_py.estimate.settings import Settings
from llamaswap_py.gguf.header import Header

_NUMBER: Final = re.compile(r"(\D+)(\d+)")
_ALIKE: Final = 0.02


def dry_parts(
    output: str,
    headers: Sequence[Header],
    settings: Settings,
    gpus: Sequence[str],
    repackable: Collection[str],
) -> list[Part]:
    """Return the parts of one model from a dry run's output and its shards' headers.

    Without headers (a file that only the engine can read) the answer is taken as it is.
    Raises EstimateError when the answer is no good.
    """
    parts = [_renamed(part, gpus) for part in parse_answer(output)]
    if not headers:
        return parts
    header = headers[0]
    context = context_of(header, settings)
    layout = lay_out(headers, settings, gpus, repackable)
    output_device = layout.layer_devices[-1]
    corrected: list[Part] = []
    for part in parts:
        size = part.size
        if part.what == "compute" and part.device == output_device:
            size = without_spare_logits(size, header, settings, context)
        corrected.append(Part(part.device, part.what, size, part.grows))
    if extra := window_correction(settings, header, context):
        held = total(part for part in parts if part.what == "context")
        corrected.append(Part(max(held, key=held.__getitem__, default=HOST), "context", extra))
    moved = sum(part.size for part in parts if part.what == MOVED)
    if not has_table(output) and layout.repacked:
        moved = layout.repacked
        corrected.append(Part(HOST, MOVED, moved))
    if settings.mapped:
        as_thought = abs(moved - layout.repacked) <= _ALIKE * moved
        again = layout.mapped_again if as_thought else moved
        corrected.append(Part(HOST, "mapped pages of moved weights", again))
    return corrected + growing_parts(header, settings, context, gpus=gpus)


def _renamed(part: Part, gpus: Sequence[str]) -> Part:
    """Give a device its own name: a child numbers the GPUs that it sees from zero."""
    if part.device == HOST:
        return part
    match = _NUMBER.fullmatch(part.device)
    number = int(match[2]) if match else len(gpus)
    if match is None or number >= len(gpus) or not gpus[number].startswith(match[1]):
        known = ", ".join(gpus) or "the host only"
        raise EstimateError(f"llama-fit-params counts on {part.device}, but there is {known}")
    return Part(gpus[number], part.what, part.size, part.grows)
