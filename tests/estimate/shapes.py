"""Twelve models that people run, as headers: from 1B to 70B, dense and MoE, and what is special."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llamaswap_py.gguf.header import BY_NAME, ArrayInfo, Header, Tensor
from llamaswap_py.units import MIB

if TYPE_CHECKING:
    from llamaswap_py.gguf.header import Value

HEAD = 128


@dataclass(frozen=True)
class Shape:
    """A model: sizes as its file says them; `beside` are files that run with it."""

    layers: int
    width: int
    kv_heads: int
    hidden: int
    vocabulary: int = 128256
    trained: int = 131072
    kind: str = "Q4_K"
    architecture: str = "llama"
    experts: int = 0
    used: int = 0
    keys: dict[str, int] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    projector: int = 0
    heads: int = 0
    """0: as many as the width has room for."""

    @property
    def query_heads(self) -> int:
        """How many heads ask; a multiple of those with keys, or the engine aborts."""
        return self.heads or max(self.width // HEAD, 1)

    @property
    def header(self) -> Header:
        """The header of its file."""
        numbers: dict[str, int] = {
            "block_count": self.layers,
            "context_length": self.trained,
            "embedding_length": self.width,
            "feed_forward_length": self.hidden,
            "attention.head_count": self.query_heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.key_length": HEAD,
            "attention.value_length": HEAD,
            **self.keys,
        }
        if self.experts:
            numbers |= {"expert_count": self.experts, "expert_used_count": self.used}
        metadata: dict[str, Value] = {
            f"{self.architecture}.{key}": value for key, value in numbers.items()
        }
        metadata["general.architecture"] = self.architecture
        metadata["tokenizer.ggml.tokens"] = ArrayInfo(self.vocabulary)
        return Header(3, metadata, tuple(self._tensors()), 0, 1 << 60)

    def _tensors(self) -> list[Tensor]:
        width, kv, query = self.width, self.kv_heads * HEAD, self.query_heads * HEAD
        rows: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (width, self.vocabulary))]
        suffix, stack = ("_exps", (self.experts,)) if self.experts else ("", ())
        for layer in range(self.layers):
            block = f"blk.{layer}."
            rows += [
                (block + "attn_norm.weight", (width,)),
                (block + "attn_q.weight", (width, query)),
                (block + "attn_k.weight", (width, kv)),
                (block + "attn_v.weight", (width, kv)),
                (block + "attn_output.weight", (query, width)),
                (block + f"ffn_gate{suffix}.weight", (width, self.hidden, *stack)),
                (block + f"ffn_up{suffix}.weight", (width, self.hidden, *stack)),
                (block + f"ffn_down{suffix}.weight", (self.hidden, width, *stack)),
            ]
        rows += [("output_norm.weight", (width,)), ("output.weight", (width, self.vocabulary))]
        found: list[Tensor] = []
        offset = 4096
        for name, shape in rows:
            kind = BY_NAME[(self.kind if len(shape) > 1 else "F32").lower()]
            elements = 1
            for each in shape:
                elements *= each
            size = elements // kind.block * kind.size
            found.append(Tensor(name, shape, kind.name, size, offset))
            offset += size
        return found


SHAPES: dict[str, Shape] = {
    "dense-1b": Shape(16, 2048, 8, 8192),
    "dense-8b": Shape(32, 4096, 8, 14336),
    "dense-32b": Shape(64, 5120, 8, 27648, vocabulary=152064),
    "dense-70b": Shape(80, 8192, 8, 28672),
    "many-kv-heads": Shape(32, 4096, 32, 11008, vocabulary=32000, trained=4096),
    "moe-small": Shape(24, 2048, 4, 1024, experts=32, used=4),
    "moe-large": Shape(48, 2048, 4, 768, vocabulary=151936, trained=262144, experts=128, used=8),
    "sliding-window": Shape(
        48,
        3840,
        8,
        15360,
        vocabulary=262144,
        architecture="gemma3",
        heads=32,
        keys={"attention.sliding_window": 1024},
    ),
    "hybrid": Shape(
        48,
        2048,
        2,
        1024,
        architecture="qwen3next",
        experts=64,
        used=8,
        trained=262144,
        keys={
            "full_attention_interval": 4,
            "ssm.inner_size": 4096,
            "ssm.state_size": 128,
            "ssm.group_count": 16,
            "ssm.conv_kernel": 4,
        },
    ),
    "with-projector": Shape(36, 2560, 8, 9728, vocabulary=151936, heads=32, projector=836 * MIB),
    "with-draft": Shape(
        32, 4096, 8, 14336, args=("--model-draft", "dense-1b", "--spec-type", "draft-simple")
    ),
    "tiny-context": Shape(12, 768, 6, 3072, vocabulary=50257, trained=256),
}
HEADERS: dict[str, Header] = {name: shape.header for name, shape in SHAPES.items()}
