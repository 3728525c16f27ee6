"""Write GGUF models of chosen shapes, all weights zero: big to the engine, small on the disk.

A hole in a file costs as much memory as data does once it is read or mapped: the kernel fills
page-cache pages with zeros. So what a process takes is the same as with real weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

BLOCK = gguf.GGML_QUANT_SIZES


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A transformer. `kind` is the type of all matrices; `experts` 0 makes it dense."""

    arch: str = "llama"
    layers: int = 8
    width: int = 1024
    heads: int = 8
    kv_heads: int = 8
    head_size: int = 128
    feed_forward: int = 4096
    vocabulary: int = 32000
    experts: int = 0
    experts_used: int = 0
    window: int = 0
    kind: str = "F16"
    tied: bool = False
    alignment: int = 32
    trailing: int = 0
    """Bytes after the last tensor that belong to none."""


def write_model(path: Path, shape: ModelShape) -> None:
    """Write the model sparsely."""
    writer = gguf.GGUFWriter(None, shape.arch)
    _add_metadata(writer, shape)
    tensors = [(name, dimensions, _kind_of(shape, name)) for name, dimensions in _tensors(shape)]
    write_sparsely(path, writer, tensors, shape.alignment, shape.trailing)


def _kind_of(shape: ModelShape, name: str) -> str:
    return "F32" if "gate_inp" in name else shape.kind


def write_sparsely(
    path: Path,
    writer: Any,
    tensors: Iterable[tuple[str, tuple[int, ...], str]],
    alignment: int = 32,
    trailing: int = 0,
) -> None:
    """Write a file with the metadata of a writer. `tensors` are (name, rows and columns, type).

    A tensor of one dimension is F32 and has ones; all others are holes.
    """
    end = 0
    data: list[tuple[int, Any]] = []
    for name, dimensions, type_name in tensors:
        kind = gguf.GGMLQuantizationType[type_name if len(dimensions) > 1 else "F32"]
        block, size = BLOCK[kind]
        length = math.prod(dimensions) // block * size
        stored = (
            dimensions if kind in (0, 1) else (*dimensions[:-1], dimensions[-1] // block * size)
        )
        dtype = {0: np.float32, 1: np.float16}.get(kind, np.uint8)
        raw = None if kind in (0, 1) else kind
        writer.add_tensor_info(name, stored, np.dtype(dtype), length, raw_dtype=raw)
        end += -end % alignment
        if len(dimensions) == 1:
            data.append((end, np.ones(dimensions, np.float32)))
        end += length
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        start = file.seek(0, 2)
        start += -start % alignment
        for offset, values in data:
            file.seek(start + offset)
            file.write(values.tobytes())
        file.truncate(start + end + -end % alignment + trailing)


def _tensors(shape: ModelShape) -> list[tuple[str, tuple[int, ...]]]:
    width = shape.width
    found: list[tuple[str, tuple[int, ...]]] = []
    found.append(("token_embd.weight", (shape.vocabulary, width)))
    found.append(("output_norm.weight", (width,)))
    if not shape.tied:
        found.append(("output.weight", (shape.vocabulary, width)))
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        rows = shape.heads * shape.head_size
        kv_rows = shape.kv_heads * shape.head_size
        found += [
            (block + "attn_norm.weight", (width,)),
            (block + "attn_q.weight", (rows, width)),
            (block + "attn_k.weight", (kv_rows, width)),
            (block + "attn_v.weight", (kv_rows, width)),
            (block + "attn_output.weight", (width, rows)),
            (block + "ffn_norm.weight", (width,)),
        ]
        if shape.arch == "gemma3":
            found += [
                (block + "post_attention_norm.weight", (width,)),
                (block + "attn_q_norm.weight", (shape.head_size,)),
                (block + "attn_k_norm.weight", (shape.head_size,)),
                (block + "post_ffw_norm.weight", (width,)),
            ]
        wide = (shape.feed_forward, width)
        experts, suffix = ((shape.experts,), "_exps") if shape.experts else ((), "")
        if experts:
            found.append((block + "ffn_gate_inp.weight", (shape.experts, width)))
        found += [
            (block + f"ffn_gate{suffix}.weight", (*experts, *wide)),
            (block + f"ffn_up{suffix}.weight", (*experts, *wide)),
            (block + f"ffn_down{suffix}.weight", (*experts, *wide[::-1])),
        ]
    return found


def _add_metadata(writer: Any, shape: ModelShape) -> None:
    writer.add_context_length(65536)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape.vocabulary)
    if shape.window:
        writer.add_sliding_window(shape.window)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
    if shape.alignment != 32:
        writer.add_custom_alignment(shape.alignment)
    add_vocabulary(writer, shape.vocabulary)


def add_vocabulary(writer: Any, size: int) -> None:
    """Add a tokenizer of so many words, with a token for each byte."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [f"▁word{number}" for number in range(size - len(special))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*special, *words])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(words)])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
