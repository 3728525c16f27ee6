"""The compute buffer: what one batch needs besides weights and context. Pure.

A graph of llama.cpp reuses memory, so its buffer is what lives all along plus the widest moment.
All along: five rows of the model's width per token (embedding, residual, norm, input, output) and
the attention masks. The widest moment is the feed-forward part, the attention, or the logits. These
forms were fitted to build 11434 (`bench/estimates.py` checks them).

llama-fit-params reserves logits for every token of a batch, llama-server only for the few it
samples from (server_output_limits): with 128 k words and batches of 512 that alone is 250 MiB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from llamaswap_py.estimate.attention import Context, is_recurrent, window_layers
from llamaswap_py.estimate.settings import Settings
from llamaswap_py.gguf.header import Header
from llamaswap_py.gguf.metadata import ArrayInfo

_FLOAT: Final = 4
_HALF: Final = 2
_ROWS: Final = 5


@dataclass(frozen=True, slots=True)
class Compute:
    """Bytes: `buffer` in all, `work` of the CPU backend's threads beside it."""

    buffer: int
    work: int


def compute_of(header: Header, settings: Settings, context: Context) -> Compute:
    """Return what llama-server reserves for its batches."""
    tokens = batch_tokens(header, settings)
    steady = _FLOAT * tokens * _ROWS * header.integer("embedding_length")
    steady += _masks(header, settings, context, tokens)
    logits = _FLOAT * settings.outputs * vocabulary(header)
    widest = max(_FLOAT * tokens * widest_row(header, settings, context), logits)
    return Compute(steady + widest, work_bytes(header, settings, context))


def without_spare_logits(
    measured: int, header: Header, settings: Settings, context: Context
) -> int:
    """Correct the compute buffer of a dry run for the logits that only it reserves.

    Where logits are the widest moment they are taken out exactly, and the next widest, from the
    formulas, is put in. Graphs that the formulas do not know (recurrent ones) are left alone, and
    so are embedding models, whose every token is an output.
    """
    if settings.embedding or is_recurrent(header):
        return measured
    tokens = batch_tokens(header, settings)
    logits = vocabulary(header)
    widest = widest_row(header, settings, context)
    if logits <= widest or measured < _FLOAT * tokens * logits:
        return measured
    kept = max(_FLOAT * tokens * widest, _FLOAT * settings.outputs * logits)
    return measured - max(_FLOAT * tokens * logits - kept, 0)


def batch_tokens(header: Header, settings: Settings) -> int:
    """Return the most tokens of one pass through the model."""
    context = settings.context or header.integer("context_length", 4096)
    return max(min(settings.micro_batch, settings.batch, context), 1)


def vocabulary(header: Header) -> int:
    """Return the number of words."""
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return tokens.length if isinstance(tokens, ArrayInfo) else header.integer("vocab_size")


def widest_row(header: Header, settings: Settings, context: Context) -> int:
    """Return the floats per token at the widest moment before the logits."""
    heads = header.integer("attention.head_count", 1)
    width = header.integer("embedding_length")
    head = header.integer("attention.key_length", width // max(heads, 1))
    kv_heads = header.integer("attention.head_count_kv", heads)
    attention = 2 * (heads + kv_heads) * head
    if not settings.flash:
        attention = 2 * heads * head + heads * context.cells
    dense = 3 * header.integer("feed_forward_length")
    used = header.integer("expert_used_count")
    expert = header.integer("expert_feed_forward_length", header.integer("feed_forward_length"))
    # The experts' output fits where gate and up were, or needs room of its own.
    experts = 3 * used * expert + (used * width if width > 2 * expert else 0)
    shared = 3 * header.integer("expert_shared_feed_forward_length")
    if used and not header.integer("leading_dense_block_count"):
        dense = 0
    return max(attention, dense, experts, shared)


def work_bytes(header: Header, settings: Settings, context: Context) -> int:
    """Return what the CPU backend converts of a batch before it multiplies (ggml_graph_plan)."""
    tokens = batch_tokens(header, settings)
    heads = header.integer("attention.head_count", 1)
    rows = header.integer("feed_forward_length")
    if used := header.integer("expert_used_count"):
        rows = used * header.integer("expert_feed_forward_length", rows)
    if not settings.flash:
        rows = max(rows, heads * context.cells)
    return _HALF * tokens * rows


def _masks(header: Header, settings: Settings, context: Context, tokens: int) -> int:
    size = _HALF if settings.flash else _FLOAT
    windowed = window_layers(header, header.integer("block_count"))
    cells = 0 if all(windowed) and windowed else context.cells
    if any(windowed):
        cells += context.window_cells
    return size * tokens * cells
