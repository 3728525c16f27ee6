"""The sizes of single layers and of their cache tensors, which decide where they can be. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llamaswap_py.estimate.formula import (
    cell_rows,
    context_of,
    devices_used,
    lay_out,
    layer_devices,
    window_layers,
)
from llamaswap_py.gguf.header import Header
from llamaswap_py.llamacpp.memory_settings import ALL, Settings
from llamaswap_py.units import HOST


def layers_with_experts(header: Header) -> tuple[int, ...]:
    """Return the layers that consist of experts, of which a token uses a few."""
    if not header.integer("expert_count"):
        return ()
    dense = header.integer("leading_dense_block_count")
    return tuple(range(dense, header.integer("block_count")))


def layer_bytes(headers: Sequence[Header], settings: Settings) -> list[int]:
    """Return the bytes of each layer on a device, the output as the last: weights and cache."""
    context = context_of(headers[0], settings)
    sizes = [*(context.layers if settings.cache_on_gpu else [0] * len(context.layers)), 0]
    places = tuple(str(at) for at in range(len(sizes)))
    each_apart = replace(settings, gpu_layers=ALL, split_mode="layer", tensor_split=())
    for place, size in lay_out(headers, each_apart, places, ()).weights.items():
        if place != HOST:
            sizes[int(place)] += size
    return sizes


def largest_cache_tensors(
    header: Header, settings: Settings, gpus: Sequence[str]
) -> dict[str, int]:
    """Return the bytes of the largest K or V tensor on each device.

    llama.cpp makes one of each for a layer, with the cells of all streams in it. A device may limit
    the size of one tensor.
    """
    if not settings.cache_on_gpu:
        return {}
    layers = header.integer("block_count")
    context, windowed = context_of(header, settings), window_layers(header, layers)
    found: dict[str, int] = {}
    devices = layer_devices(header, settings, gpus)
    for at, rows in enumerate(cell_rows(header, settings, layers)):
        cells = context.streams * (context.window_cells if windowed[at] else context.cells)
        found[devices[at]] = max(found.get(devices[at], 0), max(rows) * cells)
    found.pop(HOST, None)
    return found


def refused_devices(
    header: Header, settings: Settings, gpus: Sequence[str], refused: Mapping[str, int]
) -> dict[str, int]:
    """Return the devices that a cache tensor is too large for, and its bytes.

    `refused` is the smallest size that a device did not take.
    """
    largest = largest_cache_tensors(header, settings, devices_used(settings, gpus))
    return {gpu: size for gpu, size in largest.items() if gpu in refused and size >= refused[gpu]}
