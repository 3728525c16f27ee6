"""Embedding models and rerankers: which presets are, and how long a batch they need. Pure.

llama-server cannot split the input of most embedding models and rerankers over several physical
batches (`can_split` of tools/server/server-context.cpp). Its default batch of 512 tokens would then
be the longest input, whatever the context is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.config.context import context_per_request, effective, number
from llamaswap_py.llamacpp.options import switched

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamaswap_py.config.records import Preset
    from llamaswap_py.llamacpp.options import Argument

DEFAULT_BATCH: Final = 512
"""llama-server's own `ubatch-size`."""
LONGEST_UNASKED: Final = 8192
"""Tokens of a batch where the file names no context: the memory of a batch grows with its square,
and few embedding models were trained for more."""
_POOLINGS: Final = dict(enumerate(("none", "mean", "cls", "last", "rank")))
"""enum llama_pooling_type (include/llama.h, b11434)."""
_ON: Final = (True, "on", "yes", "true", "1", 1)


@dataclass(frozen=True, slots=True)
class Trained:
    """What a model file says of reading: the context it was trained for (0: unknown), its pooling
    (llama.cpp's word, "" for none), and whether a token sees only those before it."""

    context: int = 0
    pooling: str = ""
    causal: bool = True


def read_trained(architecture: str, metadata: Mapping[str, object]) -> Trained:
    """Read it from the metadata of a GGUF file."""
    context = metadata.get(f"{architecture}.context_length")
    pooling = metadata.get(f"{architecture}.pooling_type")
    causal = metadata.get(f"{architecture}.attention.causal")
    return Trained(
        context if isinstance(context, int) else 0,
        _POOLINGS.get(pooling, "") if isinstance(pooling, int) else "",
        causal is not False,
    )


def kind_of(preset: Preset) -> str:
    """Return what a preset answers, by its arguments: `chat`, `embedding` or `rerank`.

    Of another program than llama-server nobody knows: `program`.
    """
    if preset.cmd is not None:
        return "program"
    if switched(preset.args.get("reranking", False)) or preset.args.get("pooling") == "rank":
        return "rerank"
    embeds = (
        switched(preset.args.get("embeddings", False))
        or preset.args.get("pooling", "none") != "none"
    )
    return "embedding" if embeds else "chat"


def embeds(preset: Preset) -> bool:
    """Tell whether a preset's child makes embeddings or ranks: it then does nothing else."""
    return any(effective(preset, name) in _ON for name in ("embeddings", "reranking"))


def splits(preset: Preset, trained: Trained) -> bool:
    """Tell whether llama-server can read one input of an embedding model in several batches."""
    pooling = effective(preset, "pooling")
    if pooling is None:
        pooling = "rank" if effective(preset, "reranking") in _ON else trained.pooling
    return trained.causal and pooling in ("last", "rank")


def whole_batch(preset: Preset, trained: Trained) -> dict[str, Argument]:
    """Return the options that make a child's physical batch as long as a request's context.

    Empty where nothing has to change: no embedding model, one whose inputs can be split, a short
    context, or a file that says how long the batch is.
    """
    if not embeds(preset) or number(preset, "ubatch-size") is not None:
        return {}
    size = 0 if splits(preset, trained) else longest_input(preset, trained)
    if context_per_request(preset) is None:
        size = min(size, LONGEST_UNASKED)
    if (batch := number(preset, "batch-size")) is not None:
        size = min(size, batch)
    return {} if size <= DEFAULT_BATCH else {"batch-size": batch or size, "ubatch-size": size}


def longest_input(preset: Preset, trained: Trained) -> int:
    """Return the tokens of context that one input of an embedding model may have; 0: unknown."""
    size = context_per_request(preset)
    if size is None:
        args = {**preset.args, "ctx-size": trained.context}
        size = context_per_request(msgspec.structs.replace(preset, args=args)) or 0
        return min(size, trained.context)
    return min(size, trained.context) if trained.context else size


def most_tokens(preset: Preset, trained: Trained) -> int:
    """Return the tokens that the child takes of one input, 0 where nobody knows."""
    context = longest_input(preset, trained)
    if context == 0 or splits(preset, trained):
        return max(context - 1, 0)  # what is read in pieces must leave a token of the context
    physical = number(preset, "ubatch-size") or DEFAULT_BATCH
    return min(context, physical, number(preset, "batch-size") or physical)
