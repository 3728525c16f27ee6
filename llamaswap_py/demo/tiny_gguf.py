"""Writes tiny GGUF models that answer every prompt with one sentence.

Such a model has learned nothing. Attention and feed-forward weights are zero, so the hidden state
after the last layer is the embedding of the last token. Each token of the sentence leads to the
next: the row of a token in the output matrix is the embedding of the token before it. All tokens
of prompts share one embedding, which leads to the first word. Logits are so far apart that sampling
at any usual temperature picks the same token.

Zero weights become holes in the file, so a model that loads slowly still takes no disk space.
"""

from __future__ import annotations

import math
import os
import random
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llamaswap_py.errors import LswapError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["MAX_LAYERS", "sentence_tokens", "write_tiny_model"]

MAX_LAYERS = 512
"""The most layers that llama.cpp accepts (LLAMA_MAX_LAYERS in llama-hparams.h)."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
UNKNOWN, BEGIN, END = 0, 1, 2
SPECIAL = ("<unk>", "<s>", "</s>")
HEAD_SIZE = 32
MAX_EXPERTS = 512
# Embeddings have length sqrt(width), so logits are at most width × SHARPNESS. With ignore_eos the
# chain starts again: its first word is the runner-up after the last one.
SHARPNESS = 16.0
RESTART = 0.6
# The gap between the chosen token and the next best; at temperature 2, e^-24 means "never".
LEAST_GAP = 48.0
ALIGNMENT: Final = 32
F32, F16, Q4_0 = 0, 1, 2
"""Types of tensors in a GGUF file."""


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    kind: int


@dataclass(frozen=True, slots=True)
class _Shape:
    layers: int
    width: int
    feed_forward: int
    experts: int


def sentence_tokens(sentence: str) -> int:
    """Return how many tokens a model of this sentence emits, without its end marker."""
    return len(_chain(sentence))


def write_tiny_model(
    path: str | os.PathLike[str],
    sentence: str,
    *,
    loop: bool = False,
    name: str = "tiny",
    layers: int = 1,
    width: int = 64,
    feed_forward: int = 32,
    pad_bytes: int = 0,
    n_ctx_train: int = 4096,
    seed: int = 0,
    quantized: bool = False,
    chat_template: str = CHAT_TEMPLATE,
) -> None:
    """Write a llama-architecture GGUF that answers every prompt with exactly `sentence`.

    One word is one token (a word's third and later repetitions take one token a byte). The answer
    ends with the end token; with `ignore_eos` it then starts again. With `loop` it never ends by
    itself: finish such a sentence with a space, and start the server with `--context-shift`, else
    the stream ends at the end of the context.

    To slow it down: `layers` (up to 512) and `feed_forward` cost time per token; `pad_bytes` adds
    expert weights that a load must read but a token hardly touches. All of these are zeros, so the
    file is large for the engine and small on disk. Rough tokens/s on one CPU
    thread: 15,000 as it is, 450 with 256 layers, 180 with 512, 70 with 512 and feed_forward=512.
    Rough load time with `--load-mode none`: 2 s for pad_bytes=1 GiB (0.8 s with `--no-warmup`).

    With `quantized` the zeros are Q4_0, which most CPUs rearrange at load. They then take 9/32 of
    `pad_bytes`.

    Raises LswapError for a sentence or shape that cannot be written.
    """
    _check(sentence, layers, width, feed_forward)
    chain = _chain(sentence)
    shape = _shape(layers, width, feed_forward, pad_bytes)
    vectors = _vectors(len(chain), width, loop=loop, seed=seed)
    metadata = _metadata(chain, shape, name=name, n_ctx_train=n_ctx_train, template=chat_template)
    tensors = list(_tensors(vectors, shape, loop=loop))
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    _write(unfinished, metadata, tensors, quantized=quantized)
    unfinished.replace(target)


def _check(sentence: str, layers: int, width: int, feed_forward: int) -> None:
    if not sentence.strip():
        raise LswapError("a tiny model needs a sentence", remedy="give it at least one word")
    if not 1 <= layers <= MAX_LAYERS:
        raise LswapError(f"a tiny model cannot have {layers} layers", remedy=f"1 to {MAX_LAYERS}")
    for name, size in (("width", width), ("feed_forward", feed_forward)):
        if size < 32 or size % 32:
            raise LswapError(
                f"a tiny model cannot have {name}={size}", remedy="use a positive multiple of 32"
            )


def _shape(layers: int, width: int, feed_forward: int, pad_bytes: int) -> _Shape:
    """Return experts and feed-forward size whose F16 weights take about `pad_bytes`."""
    if pad_bytes <= 0:
        return _Shape(layers, width, feed_forward, experts=0)
    column = 3 * width * 2 * layers
    experts = max(2, min(MAX_EXPERTS, pad_bytes // (column * feed_forward)))
    columns = -(-pad_bytes // (column * experts))
    return _Shape(layers, width, max(feed_forward, -(-columns // 32) * 32), experts)


# --- tokens ----------------------------------------------------------------------------------


def _chain(sentence: str) -> list[_Token]:
    """Cut a sentence into tokens with distinct texts that no prompt can contain.

    The model knows its place in the sentence only by the token, so a repeated word needs another
    token that renders the same. The vocabulary must not have a text twice (an assertion in
    llama-vocab.cpp), but "▁" and " " both render as a space, and only two hexadecimal digits of a
    byte token are read. The tokenizer builds words from pairs of known pieces. So it never finds a
    word of three or more characters whose parts are unknown, or one with a plain space in it.
    """
    used: set[str] = set()
    chain: list[_Token] = []
    for number, piece in enumerate(re.findall(r"\s*\S+|\s+$", sentence)):
        for text in (piece, piece.replace(" ", "▁")):
            reachable = len(text) < 3 and " " not in text
            if text not in used and not reachable and "▁" not in piece:
                used.add(text)
                chain.append(_Token(text, kind=1))
                break
        else:
            chain += [_Token(f"<0x{byte:02X}>{number}.{i}", 6) for i, byte in _bytes(piece)]
    return chain


def _bytes(piece: str) -> Iterator[tuple[int, int]]:
    return enumerate(piece.encode())


def _vocabulary(chain: list[_Token]) -> list[_Token]:
    special = [_Token(SPECIAL[0], 2), _Token(SPECIAL[1], 3), _Token(SPECIAL[2], 3)]
    return [*special, *(_Token(f"<0x{byte:02X}>", 6) for byte in range(256)), *chain]


# --- weights ---------------------------------------------------------------------------------


def _vectors(words: int, width: int, *, loop: bool, seed: int) -> list[int]:
    """Return the embedding of all tokens of prompts, then that of each token of the sentence.

    Every element is 1 or -1, so a vector is kept as an integer whose bits are its elements.
    """
    source = random.Random(seed)
    vectors = [source.getrandbits(width) for _ in range(words + 1)]
    if loop:
        vectors[-1] = vectors[0]
    if not _are_apart(vectors, width, loop=loop):
        raise LswapError(
            f"{words} tokens are too many for a model {width} wide",
            remedy=f"use width={width * 2}, or another seed",
        )
    return vectors


def _are_apart(vectors: list[int], width: int, *, loop: bool) -> bool:
    """Check that every state has one clear successor; random vectors may be too similar."""
    states = vectors[:-1] if loop else vectors
    known = set(states)
    # Each element that differs changes a product by 2; two are enough for LEAST_GAP.
    if len(known) < len(states):
        return False
    if any(state ^ (1 << bit) in known for state in states for bit in range(width)):
        return False
    if loop:
        return True
    start, last = vectors[0], vectors[-1]
    room = width - LEAST_GAP / SHARPNESS
    # The row of the first word is the best in the first state, and far from the best in all others.
    if room + RESTART * _product(start, last, width) < max(
        _product(start, word, width) for word in vectors[1:]
    ):
        return False
    return all(
        _product(start, word, width) + RESTART * _product(last, word, width) <= room
        for word in vectors[1:]
    )


def _product(one: int, other: int, width: int) -> int:
    return width - 2 * (one ^ other).bit_count()


def _rows(vectors: list[int], width: int, scale: float) -> bytes:
    """Return vectors as rows of F32 values."""
    eight = [
        struct.pack("<8f", *(scale if byte >> bit & 1 else -scale for bit in range(8)))
        for byte in range(256)
    ]
    return b"".join(
        eight[byte] for vector in vectors for byte in vector.to_bytes(width // 8, "little")
    )


def _output(vectors: list[int], width: int, *, loop: bool) -> bytes:
    """Return the output weights: the row of a token is the vector of the token before it."""
    special = [bytes(4 * width)] * (len(SPECIAL) + 256)
    start, last = vectors[0], vectors[-1]
    first = _rows([start], width, SHARPNESS)
    if not loop:
        special[END] = _rows([last], width, SHARPNESS)
        again = _rows([last], width, SHARPNESS * RESTART)
        both = zip(_floats(first), _floats(again), strict=True)
        first = struct.pack(f"<{width}f", *(one + other for one, other in both))
    return b"".join(special) + first + _rows(vectors[1:-1], width, SHARPNESS)


def _floats(row: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(row) // 4}f", row)


_Tensor = tuple[str, tuple[int, ...], bytes | None]


def _tensors(vectors: list[int], shape: _Shape, *, loop: bool) -> Iterator[_Tensor]:
    """Yield (name, shape in row-major order, F32 values or None for zeros)."""
    width = shape.width
    ones = struct.pack(f"<{width}f", *[1.0] * width)
    words = (len(SPECIAL) + 256 + len(vectors) - 1, width)
    others = [vectors[0]] * (len(SPECIAL) + 256)
    yield "token_embd.weight", words, _rows([*others, *vectors[1:]], width, 1.0)
    yield "output_norm.weight", (width,), ones
    yield "output.weight", words, _output(vectors, width, loop=loop)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", (width,), ones
        for tensor in ("attn_q", "attn_k", "attn_v"):
            yield block + tensor + ".weight", (HEAD_SIZE, width), None
        yield block + "attn_output.weight", (width, HEAD_SIZE), None
        yield block + "ffn_norm.weight", (width,), ones
        yield from _feed_forward(block, shape)


def _feed_forward(block: str, shape: _Shape) -> Iterator[_Tensor]:
    wide = (shape.feed_forward, shape.width)
    experts, suffix = ((shape.experts,), "_exps") if shape.experts else ((), "")
    if shape.experts:
        router = (shape.experts, shape.width)
        yield block + "ffn_gate_inp.weight", router, bytes(4 * math.prod(router))
    yield block + f"ffn_gate{suffix}.weight", (*experts, *wide), None
    yield block + f"ffn_up{suffix}.weight", (*experts, *wide), None
    yield block + f"ffn_down{suffix}.weight", (*experts, *wide[::-1]), None


# --- the file --------------------------------------------------------------------------------


def _metadata(
    chain: list[_Token], shape: _Shape, *, name: str, n_ctx_train: int, template: str
) -> dict[str, Any]:
    tokens = _vocabulary(chain)
    experts = {"llama.expert_count": shape.experts, "llama.expert_used_count": 1}
    return {
        "general.architecture": "llama",
        "general.name": name,
        "llama.context_length": n_ctx_train,
        "llama.embedding_length": shape.width,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.feed_forward,
        "llama.attention.head_count": 1,
        "llama.attention.head_count_kv": 1,
        "llama.attention.key_length": HEAD_SIZE,
        "llama.attention.value_length": HEAD_SIZE,
        "llama.rope.dimension_count": HEAD_SIZE,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.vocab_size": len(tokens),
        **(experts if shape.experts else {}),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [token.text for token in tokens],
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": [token.kind for token in tokens],
        "tokenizer.ggml.unknown_token_id": UNKNOWN,
        "tokenizer.ggml.bos_token_id": BEGIN,
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": template,
    }


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


# Types of metadata: the number of each in the file, and how a value is written.
_KINDS: Final[dict[type, tuple[int, Callable[[Any], bytes]]]] = {
    bool: (7, struct.Struct("<?").pack),
    int: (4, struct.Struct("<I").pack),
    float: (6, struct.Struct("<f").pack),
    str: (8, _text),
}
_LIST: Final = 9
_SIGNED: Final = (5, struct.Struct("<i").pack)


def _value(value: Any) -> bytes:
    """Return a value of the metadata, preceded by its type."""
    if not isinstance(value, list):
        number, write = _KINDS[type(value)]
        return struct.pack("<I", number) + write(value)
    number, write = _SIGNED if isinstance(value[0], int) else _KINDS[type(value[0])]
    head = struct.pack("<IIQ", _LIST, number, len(value))
    return head + b"".join(map(write, value))


def _size(dimensions: tuple[int, ...], values: bytes | None, *, quantized: bool) -> int:
    if values is not None:
        return len(values)
    elements = math.prod(dimensions)
    return elements * 18 // 32 if quantized else 2 * elements


def _aligned(offset: int) -> int:
    return offset + -offset % ALIGNMENT


def _write(
    path: Path, metadata: dict[str, Any], tensors: list[_Tensor], *, quantized: bool
) -> None:
    """Write a GGUF file: its head, the metadata, the table of the tensors, their values."""
    head = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))]
    head += [_text(key) + _value(value) for key, value in metadata.items()]
    offsets, end = [], 0
    for name, dimensions, values in tensors:
        kind = F32 if values is not None else Q4_0 if quantized else F16
        count = len(dimensions)
        turned = dimensions[::-1]  # the file has the innermost dimension first
        head.append(_text(name) + struct.pack(f"<I{count}QIQ", count, *turned, kind, end))
        offsets.append(end)
        end = _aligned(end + _size(dimensions, values, quantized=quantized))
    with path.open("wb") as file:
        file.writelines(head)
        start = _aligned(file.tell())
        for offset, (_, _, values) in zip(offsets, tensors, strict=True):
            if values is not None:
                file.seek(start + offset)
                file.write(values)
        file.truncate(start + end)
