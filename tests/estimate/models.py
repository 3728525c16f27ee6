"""Headers of models that exist, as far as memory goes, without their weights."""

from __future__ import annotations

from typing import Any

from llamaswap_py.gguf.header import BY_NAME, ArrayInfo, Header, Tensor, Value


def model(
    architecture: str = "llama",
    *,
    layers: int = 32,
    kind: str = "Q4_K",
    vocabulary: int = 128256,
    tied: bool = False,
    experts: int = 0,
    **keys: Any,
) -> Header:
    """Return a header with the tensors that decide: Llama 3 8B unless told otherwise."""
    width = keys.setdefault("embedding_length", 4096)
    hidden = keys.setdefault("feed_forward_length", 14336)
    keys.setdefault("context_length", 8192)
    keys.setdefault("block_count", layers)
    metadata: dict[str, Value] = {
        "general.architecture": architecture,
        "tokenizer.ggml.tokens": ArrayInfo(vocabulary),
    }
    keys.setdefault("attention__head_count", 32)
    keys.setdefault("attention__head_count_kv", 8)
    if experts:
        keys["expert_count"] = experts
    for key, value in keys.items():
        kept = ArrayInfo(len(value), tuple(value)) if isinstance(value, list) else value
        metadata[f"{architecture}.{key.replace('__', '.')}"] = kept
    rows: list[tuple[str, tuple[int, ...], str]] = [
        ("token_embd.weight", (width, vocabulary), kind)
    ]
    for layer in range(layers):
        rows.append((f"blk.{layer}.attn_q.weight", (width, width), kind))
        stack = (experts,) if experts else ()
        suffix = "_exps" if experts else ""
        rows.append((f"blk.{layer}.ffn_up{suffix}.weight", (width, hidden, *stack), kind))
        rows.append((f"blk.{layer}.ffn_norm.weight", (width,), "F32"))
    rows.append(("output_norm.weight", (width,), "F32"))
    if not tied:
        rows.append(("output.weight", (width, vocabulary), "Q6_K"))
    return Header(3, metadata, tuple(_placed(rows)), 0, 1 << 50)


def _placed(rows: list[tuple[str, tuple[int, ...], str]]) -> list[Tensor]:
    found: list[Tensor] = []
    offset = 4096
    for name, shape, kind in rows:
        elements = 1
        for each in shape:
            elements *= each
        block = BY_NAME[kind.lower()]
        size = elements // block.block * block.size
        found.append(Tensor(name, shape, kind, size, offset))
        offset += size
    return found
