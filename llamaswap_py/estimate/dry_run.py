"""Turns the figures that llama-fit-params prints into the memory llama-server will take. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from llamaswap_py.estimate.formula import (
    Context,
    context_of,
    growing_parts,
    is_recurrent,
    lay_out,
    locked_parts,
    without_spare_logits,
)
from llamaswap_py.estimate.types import (
    MOVED,
    WEIGHTS,
    DoesNotRunError,
    EstimateError,
    Part,
    total,
)
from llamaswap_py.gguf.header import Header
from llamaswap_py.llamacpp.fit_params import Refusal, has_table, read_figures
from llamaswap_py.llamacpp.memory_settings import PAD, Settings
from llamaswap_py.units import HOST


def parse_answer(output: str) -> list[Part]:
    """Return the parts that llama-fit-params printed, under the engine's names of devices.

    Memory of extra buffer types (weights rearranged for the CPU) belongs to the host, as a separate
    part. Raises FitParamsError if the output has no figures, or impossible ones.
    """
    return [
        Part(
            figure.device or HOST,
            MOVED if figure.moved else WEIGHTS if figure.purpose == "model" else figure.purpose,
            figure.size,
            grows=figure.purpose == "compute" and figure.device is None,
        )
        for figure in read_figures(output)
    ]


def window_correction(settings: Settings, header: Header, context: Context) -> int:
    """Return the bytes of sliding-window cache that a dry run with one slot leaves out.

    Slots that share a cache each need a window in it (llama-kv-cache-iswa.cpp).
    """
    if not settings.unified or settings.slots == 1 or is_recurrent(header):
        return 0
    if settings.whole_window or not context.window_layer_bytes:
        return 0
    window = header.integer("attention.sliding_window")
    tokens = min(settings.micro_batch, settings.batch, context.cells)
    alone = -(-min(context.cells, window + tokens) // PAD) * PAD
    return max(context.window_cells - alone, 0) * context.window_layer_bytes


_NUMBER: Final = re.compile(r"(\D+)(\d+)")


def dry_parts(
    output: str,
    headers: Sequence[Header],
    settings: Settings,
    gpus: Sequence[str],
    repackable: Collection[str],
    names: Mapping[str, str] = MappingProxyType({}),
) -> list[Part]:
    """Return the parts of one model from a dry run's output and its shards' headers.

    `names` are the engine's names of devices -> ours; without them it numbers `gpus` from zero.

    Without headers (a file that only the engine can read) the output is used unchanged.
    Raises EstimateError if the output cannot be used.
    """
    parts = [_renamed(part, gpus, names) for part in parse_answer(output)]
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
    if not has_table(output) and layout.repacked:
        corrected.append(Part(HOST, MOVED, layout.repacked))
    corrected += locked_parts(corrected, layout, settings)
    return corrected + growing_parts(header, settings, context, gpus=gpus)


def as_does_not_run(
    message: str,
    refusal: Refusal | None,
    gpus: Sequence[str],
    names: Mapping[str, str] = MappingProxyType({}),
) -> DoesNotRunError:
    """Return the error for a dry run that aborted, with lswap's name of the device."""
    try:
        device = "" if refusal is None else _named(refusal.device, gpus, names)
    except EstimateError:  # a buffer that no device of lswap stands for
        device = ""
    tensor = refusal.tensor if refusal is not None and device else ""
    return DoesNotRunError(message, tensor=tensor, device=device)


def _renamed(part: Part, gpus: Sequence[str], names: Mapping[str, str]) -> Part:
    """Give a device lswap's name."""
    if part.device == HOST:
        return part
    return Part(_named(part.device, gpus, names), part.what, part.size, part.grows)


def _named(device: str, gpus: Sequence[str], names: Mapping[str, str]) -> str:
    """Return lswap's name of a device: a child that sees some GPUs numbers them from zero."""
    if device in names:
        return names[device]
    match = _NUMBER.fullmatch(device)
    number = int(match[2]) if match else len(gpus)
    if match is None or number >= len(gpus) or not gpus[number].startswith(match[1]):
        known = ", ".join(gpus) or "the host only"
        raise EstimateError(f"llama-fit-params counts on {device}, but there is {known}")
    return gpus[number]
