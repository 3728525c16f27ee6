"""Write the shapes of tests/estimate/shapes.py as files that llama.cpp opens: sparse ones.

A shape has the tensors that decide about memory. The engine wants all tensors of an architecture,
so this adds the small ones. What is recurrent gets the tensors of its state instead of attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeAlias

import gguf

from bench.estimate_models import add_vocabulary, write_sparsely
from tests.estimate.shapes import HEAD, SHAPES, Shape

DRAFT: Final = "dense-1b"
"""The shape that is the draft model of `with-draft`."""
_Tensor: TypeAlias = tuple[str, tuple[int, ...], str]


def write_shape(path: Path, shape: Shape) -> None:
    """Write a shape: metadata, a tokenizer, and the holes of its tensors."""
    header = shape.header
    writer = gguf.GGUFWriter(None, shape.architecture)
    numbers = {
        name: value
        for name, value in header.metadata.items()
        if isinstance(value, int) and name.startswith(f"{shape.architecture}.")
    }
    numbers |= {f"{shape.architecture}.{name}": value for name, value in _more_keys(shape).items()}
    for name, value in numbers.items():
        writer.add_uint32(name, value)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape.vocabulary)
    add_vocabulary(writer, shape.vocabulary)
    write_sparsely(path, writer, _all_tensors(shape))


def write_projector(path: Path, shape: Shape) -> None:
    """Write a file of the size of a shape's projector; it is counted, and cannot be loaded."""
    with path.open("wb") as file:
        file.truncate(shape.projector)


def files_beside(name: str) -> tuple[str, ...]:
    """Return the names of the shapes whose files run with this one."""
    return (DRAFT,) if DRAFT in SHAPES[name].args else ()


def _more_keys(shape: Shape) -> dict[str, int]:
    keys: dict[str, int] = {}
    if shape.experts:
        keys["expert_feed_forward_length"] = shape.hidden
    if shape.architecture == "qwen3next":
        keys["ssm.time_step_rank"] = _state_heads(shape)
    return keys


def _all_tensors(shape: Shape) -> Iterator[_Tensor]:
    dropped = "attn_" if shape.architecture == "qwen3next" else "-"
    for tensor in shape.header.tensors:
        place = tensor.name.removeprefix("blk.").partition(".")[2]
        if not (place.startswith(dropped) and place != "attn_norm.weight"):
            yield tensor.name, tuple(reversed(tensor.shape)), tensor.kind
    for layer in range(shape.layers):
        for name, dimensions, kind in _more_tensors(shape, layer):
            yield f"blk.{layer}.{name}", dimensions, kind


def _more_tensors(shape: Shape, layer: int) -> Iterator[_Tensor]:
    width = shape.width
    if shape.experts:
        yield "ffn_gate_inp.weight", (shape.experts, width), "F32"
    if shape.architecture == "qwen3next":
        yield from _of_hybrid(shape, layer)
        return
    yield "ffn_norm.weight", (width,), "F32"
    if shape.architecture == "gemma3":
        yield "post_attention_norm.weight", (width,), "F32"
        yield "post_ffw_norm.weight", (width,), "F32"
        yield "attn_q_norm.weight", (HEAD,), "F32"
        yield "attn_k_norm.weight", (HEAD,), "F32"


def _of_hybrid(shape: Shape, layer: int) -> Iterator[_Tensor]:
    """Yield the tensors of a layer with a recurrent state, or of every fourth with attention."""
    width, kind = shape.width, shape.kind
    yield "post_attention_norm.weight", (width,), "F32"
    yield "ffn_gate_inp_shexp.weight", (width,), "F32"
    yield "ffn_gate_shexp.weight", (shape.hidden, width), kind
    yield "ffn_up_shexp.weight", (shape.hidden, width), kind
    yield "ffn_down_shexp.weight", (width, shape.hidden), kind
    if (layer + 1) % shape.keys["full_attention_interval"] == 0:
        rows = shape.query_heads * HEAD
        yield "attn_q.weight", (2 * rows, width), kind
        yield "attn_k.weight", (shape.kv_heads * HEAD, width), kind
        yield "attn_v.weight", (shape.kv_heads * HEAD, width), kind
        yield "attn_output.weight", (width, rows), kind
        yield "attn_q_norm.weight", (HEAD,), "F32"
        yield "attn_k_norm.weight", (HEAD,), "F32"
        return
    state, inner = shape.keys["ssm.state_size"], shape.keys["ssm.inner_size"]
    keys, heads = state * shape.keys["ssm.group_count"], _state_heads(shape)
    yield "attn_qkv.weight", (2 * keys + inner, width), kind
    yield "attn_gate.weight", (inner, width), kind
    yield "ssm_conv1d.weight", (2 * keys + inner, shape.keys["ssm.conv_kernel"]), "F32"
    yield "ssm_dt.bias", (heads,), "F32"
    yield "ssm_a", (heads,), "F32"
    yield "ssm_ba.weight", (2 * heads, width), kind
    yield "ssm_norm.weight", (state,), "F32"
    yield "ssm_out.weight", (width, inner), kind


def _state_heads(shape: Shape) -> int:
    return shape.keys["ssm.inner_size"] // shape.keys["ssm.state_size"]
