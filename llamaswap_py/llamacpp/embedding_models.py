"""Embedding models and rerankers: how they are recognised, how long a batch they need. Pure.

llama-server cannot split the input of most embedding models and rerankers over several physical
batches (`can_split` of tools/server/server-context.cpp). Its default batch of 512 tokens would then
be the longest input, whatever the context is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llamaswap_py.llamacpp.command_line import Options, effective, number
from llamaswap_py.llamacpp.context_size import context_per_request
from llamaswap_py.llamacpp.options import switched

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamaswap_py.llamacpp.options import Argument, Given

DEFAULT_BATCH: Final = 512
"""llama-server's own `ubatch-size`."""
LONGEST_UNASKED: Final = 8192
"""Tokens of a batch where the file names no context: the memory of a batch grows with its square,
and few embedding models were trained for more."""
_POOLINGS: Final = dict(enumerate(("none", "mean", "cls", "last", "rank")))
"""enum llama_pooling_type (include/llama.h, b11434)."""
_SPLITS_RANKING: Final = 11434
_ON: Final = (True, "on", "yes", "true", "1", 1)


@dataclass(frozen=True, slots=True)
class Trained:
    """A model file's values for reading: the context it was trained for (0: unknown), its pooling
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


def kind_of(given: Given) -> str:
    """Return the kind of requests of a llama-server's arguments: `chat`, `embedding`, `rerank`."""
    if switched(given.args.get("reranking", False)) or given.args.get("pooling") == "rank":
        return "rerank"
    embeds = (
        switched(given.args.get("embeddings", False)) or given.args.get("pooling", "none") != "none"
    )
    return "embedding" if embeds else "chat"


def embeds(given: Given) -> bool:
    """Tell whether a child makes embeddings or ranks: it then does nothing else."""
    return any(effective(given, name) in _ON for name in ("embeddings", "reranking"))


def ranks_whole(build: int | None) -> bool:
    """Tell whether a build reads the input of every reranker in one batch.

    b11434 splits the input of a causal one, b10456 does not. A build without a number counts as
    new.
    """
    return build is not None and build < _SPLITS_RANKING


def splits(given: Given, trained: Trained, *, ranks_whole: bool = False) -> bool:
    """Tell whether llama-server can read one input of an embedding model in several batches.

    `ranks_whole`: as ranks_whole() says of the build.
    """
    pooling = effective(given, "pooling")
    if pooling is None:
        pooling = "rank" if effective(given, "reranking") in _ON else trained.pooling
    return trained.causal and pooling in (("last",) if ranks_whole else ("last", "rank"))


def whole_batch(
    given: Given, trained: Trained, *, ranks_whole: bool = False
) -> dict[str, Argument]:
    """Return the options that make a child's physical batch as long as a request's context.

    Empty if nothing has to change: the model does not make embeddings, its inputs can be split, its
    context is short, or the configuration sets the batch.
    """
    if not embeds(given) or number(given, "ubatch-size") is not None:
        return {}
    size = 0 if splits(given, trained, ranks_whole=ranks_whole) else longest_input(given, trained)
    if context_per_request(given) is None:
        size = min(size, LONGEST_UNASKED)
    if (batch := number(given, "batch-size")) is not None:
        size = min(size, batch)
    return {} if size <= DEFAULT_BATCH else {"batch-size": batch or size, "ubatch-size": size}


def longest_input(given: Given, trained: Trained) -> int:
    """Return the tokens of context that one input of an embedding model may have; 0: unknown."""
    size = context_per_request(given)
    if size is None:
        whole = Options({**given.args, "ctx-size": trained.context}, given.extra)
        size = context_per_request(whole) or 0
        return min(size, trained.context)
    return min(size, trained.context) if trained.context else size


def most_tokens(given: Given, trained: Trained) -> int:
    """Return the most tokens of one input that the child takes, 0 if unknown."""
    context = longest_input(given, trained)
    if context == 0 or splits(given, trained):
        return max(context - 1, 0)  # what is read in pieces must leave a token of the context
    physical = number(given, "ubatch-size") or DEFAULT_BATCH
    return min(context, physical, number(given, "batch-size") or physical)
