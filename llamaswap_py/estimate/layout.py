"""Which device holds which tensor. Pure.

Source: src/llama-model.cpp (load_tensors: input on the CPU, `n_gpu_layers` counted from the last,
the output as one more layer), common/arg.cpp (--n-cpu-moe) and ggml-cpu/repack.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from llamaswap_py.estimate.records import HOST
from llamaswap_py.estimate.settings import Settings
from llamaswap_py.gguf.header import Header, Tensor

_BLOCK: Final = re.compile(r"blk\.(\d+)\.")
_EXPERTS: Final = re.compile(r"\.ffn_(up|down|gate|gate_up)_(ch|)exps")
_INPUT: Final = ("token_embd", "token_types", "position_embd", "per_layer_token_embd")
_REPACK_ROWS: Final = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """Bytes of weights per device, and what a mapped file costs the host beyond them.

    `repacked` is the part of the host's weights that is rearranged into memory of its own;
    `mapped_again` are pages of the files that stay mapped though no tensor is used from them.
    """

    weights: dict[str, int]
    repacked: int
    mapped_again: int
    layer_devices: tuple[str, ...]
    """The device of each layer; one more at the end, for the output."""


def lay_out(
    headers: Sequence[Header],
    settings: Settings,
    gpus: Sequence[str],
    repackable: Collection[str],
) -> Layout:
    """Place every tensor of the shards `headers`; `repackable` are types this CPU rearranges."""
    devices = layer_devices(headers[0], settings, gpus)
    weights: dict[str, int] = {HOST: 0}
    repacked = again = 0
    tied = not any(tensor.name == "output.weight" for one in headers for tensor in one.tensors)
    for header in headers:
        held: list[Tensor] = []
        for tensor in header.tensors:
            device = _device(tensor, devices, settings)
            weights[device] = weights.get(device, 0) + tensor.size
            if tied and tensor.name == "token_embd.weight" and devices[-1] != HOST:
                weights[devices[-1]] = weights.get(devices[-1], 0) + tensor.size
            if device != HOST:
                continue
            if not gpus and settings.repack and _is_repacked(tensor, repackable):
                repacked += tensor.size
            else:
                held.append(tensor)
        if settings.mapped:
            again += _span(held) - sum(tensor.size for tensor in held)
    return Layout(weights, repacked, again, devices)


def layer_devices(header: Header, settings: Settings, gpus: Sequence[str]) -> tuple[str, ...]:
    """Return the device of each layer and of the output."""
    count = header.integer("block_count") + 1
    if not gpus or settings.gpu_layers == 0:
        return (HOST,) * count
    first = max(count - settings.gpu_layers, 0)
    if settings.split_mode == "none":
        chosen = gpus[min(settings.main_gpu, len(gpus) - 1)]
        return (HOST,) * first + (chosen,) * (count - first)
    shares = [*settings.tensor_split, *[0.0] * len(gpus)][: len(gpus)]
    if not any(shares):
        shares = [1.0] * len(gpus)
    bounds = [sum(shares[: at + 1]) / sum(shares) for at in range(len(gpus))]
    on_gpu = count - first
    placed = tuple(
        gpus[next(at for at, bound in enumerate(bounds) if (layer + 0.5) / on_gpu <= bound + 1e-9)]
        for layer in range(on_gpu)
    )
    return (HOST,) * first + placed


def _device(tensor: Tensor, devices: tuple[str, ...], settings: Settings) -> str:
    block = _BLOCK.match(tensor.name)
    if block is None:
        return HOST if tensor.name.startswith(_INPUT) else devices[-1]
    layer = int(block[1])
    if layer < settings.cpu_expert_layers and _EXPERTS.search(tensor.name):
        return HOST
    return devices[min(layer, len(devices) - 1)]


def _is_repacked(tensor: Tensor, repackable: Collection[str]) -> bool:
    """Matrices only; the embedding is read by rows and stays as it is."""
    return (
        tensor.kind in repackable
        and len(tensor.shape) > 1
        and tensor.shape[1] % _REPACK_ROWS == 0
        and not tensor.name.startswith(_INPUT)
    )


def _span(tensors: Iterable[Tensor]) -> int:
    """Return the bytes from the first to the last tensor: the part of a mapping that is kept."""
    held = list(tensors)
    if not held:
        return 0
    return max(one.offset + one.size for one in held) - min(one.offset for one in held)


def repackable_kinds(cpu_flags: Collection[str]) -> frozenset[str]:
    """Return the tensor types that a CPU with these flags (/proc/cpuinfo) gets rearranged.

    Source: ggml_repack_get_optimal_repack_type in ggml/src/ggml-cpu/repack.cpp; on CPUs with AMX
    ggml-cpu/amx takes more. Other architectures than x86 and Arm: none.
    """
    kinds: set[str] = set()
    if "avx2" in cpu_flags:
        kinds |= {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}
    if "avx512f" in cpu_flags:
        kinds |= {"Q2_K"}
    if "amx_int8" in cpu_flags:
        kinds |= {"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"}
    if "asimddp" in cpu_flags:
        kinds |= {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4", "Q8_0", "Q1_0"}
    return frozenset(kinds)
