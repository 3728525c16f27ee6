"""Write tiny GGUF models that say one sentence, whatever they are asked.

The model is a chain, not a network that learned anything. Attention and feed-forward weights are
zero, so the hidden state after the last layer is the embedding of the last token alone. Each token
of the sentence points at its successor: its row in the output matrix is the embedding of the token
before it. Everything that can occur in a prompt shares one embedding, whose successor is the first
word. Logits are so far apart that sampling at any usual temperature picks the same token.

Zero weights become holes in the file, so a model that loads slowly still takes no disk space.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamaswap_py.errors import LswapError

try:
    import gguf
    import numpy as np
except ModuleNotFoundError as _error:
    raise LswapError(
        f"writing tiny models needs the {_error.name} package",
        remedy="pip install 'llamaswap_py[demo]'",
    ) from _error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["MAX_LAYERS", "sentence_tokens", "write_tiny_model"]

MAX_LAYERS = 512
"""More layers than this are refused by llama.cpp (LLAMA_MAX_LAYERS in llama-hparams.h)."""

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
# Between the chosen token and the next best; e^-24 at temperature 2 is "never".
LEAST_GAP = 48.0


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
    """Count the tokens a model of this sentence emits, its end marker not counted."""
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
    ends with the end token, after which `ignore_eos` makes it start again; with `loop` it never
    ends by itself: finish such a sentence with a space, and start the server with
    `--context-shift`, else the stream ends where the context does.

    To slow it down on purpose: `layers` (up to 512) and `feed_forward` cost time per token,
    `pad_bytes` adds expert weights that a load must read but a token hardly touches. All of them
    are zeros, so the file is big to the engine and small on disk. Rough tokens/s on one CPU
    thread: 15,000 as it is, 450 with 256 layers, 180 with 512, 70 with 512 and feed_forward=512.
    Rough load time with `--load-mode none`: 2 s for pad_bytes=1 GiB (0.8 s with `--no-warmup`).

    With `quantized` the zeros are Q4_0, which most CPUs rearrange at load; they take 9/32 of
    `pad_bytes` then.

    Raises LswapError for a sentence or shape that cannot be written.
    """
    _check(sentence, layers, width, feed_forward)
    chain = _chain(sentence)
    shape = _shape(layers, width, feed_forward, pad_bytes)
    writer = gguf.GGUFWriter(None, "llama")
    embeddings, output = _matrices(len(chain), width, loop=loop, seed=seed)
    _add_metadata(writer, chain, shape, name=name, n_ctx_train=n_ctx_train)
    writer.add_chat_template(chat_template)
    tensors = list(_tensors(embeddings, output, shape))
    for tensor_name, dimensions, values in tensors:
        dtype = np.dtype(np.float16 if values is None else np.float32)
        raw = gguf.GGMLQuantizationType.Q4_0 if quantized and values is None else None
        size = _size(dimensions, values, quantized=quantized)
        writer.add_tensor_info(tensor_name, dimensions, dtype, size, raw_dtype=raw)
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    writer.write_header_to_file(unfinished)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    _append_tensors(unfinished, tensors, writer.data_alignment, quantized=quantized)
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
    """Choose experts × feed-forward so that their F16 weights take about `pad_bytes`."""
    if pad_bytes <= 0:
        return _Shape(layers, width, feed_forward, experts=0)
    column = 3 * width * 2 * layers
    experts = max(2, min(MAX_EXPERTS, pad_bytes // (column * feed_forward)))
    columns = -(-pad_bytes // (column * experts))
    return _Shape(layers, width, max(feed_forward, -(-columns // 32) * 32), experts)


# --- tokens ----------------------------------------------------------------------------------


def _chain(sentence: str) -> list[_Token]:
    """Cut a sentence into tokens with distinct texts that no prompt can contain.

    A position is known by its token alone, so a repeated word needs another token of the same
    rendering. The vocabulary must not hold a text twice (an assertion in llama-vocab.cpp), but
    "▁" and " " both render as a space, and only two hexadecimal digits of a byte token are read.
    The tokenizer builds words from pairs of known pieces, so it never finds a word of three
    characters or more whose parts are unknown, nor one with a plain space in it.
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


def _matrices(
    words: int, width: int, *, loop: bool, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Build token embeddings and output weights, both of shape (vocabulary, width)."""
    first = len(SPECIAL) + 256
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(words + 1, width))
    states = signs.astype(np.float32)
    start, said = states[0], states[1:]
    if loop:
        said[-1] = start
    embeddings = np.tile(start, (first + words, 1))
    embeddings[first:] = said
    output = np.zeros_like(embeddings)
    output[first] = start if loop else start + RESTART * said[-1]
    output[first + 1 :] = said[:-1]
    if not loop:
        output[END] = said[-1]
    output *= SHARPNESS
    _check_gaps(states, output, width)
    return embeddings, output


def _check_gaps(states: NDArray[np.float32], output: NDArray[np.float32], width: int) -> None:
    """Prove that every state has one clear successor; random rows may be too much alike."""
    for state in range(0, len(states), 256):
        logits = np.partition(states[state : state + 256] @ output.T, -2, axis=1)
        if (logits[:, -1] - logits[:, -2]).min() < LEAST_GAP:
            raise LswapError(
                f"{len(states) - 1} tokens are too many for a model {width} wide",
                remedy=f"use width={width * 2}, or another seed",
            )


_Tensor = tuple[str, tuple[int, ...], Any]


def _tensors(
    embeddings: NDArray[np.float32], output: NDArray[np.float32], shape: _Shape
) -> Iterator[_Tensor]:
    """Yield (name, shape in row-major order, F32 values or None for F16 zeros)."""
    ones = np.ones(shape.width, np.float32)
    yield "token_embd.weight", embeddings.shape, embeddings
    yield "output_norm.weight", ones.shape, ones
    yield "output.weight", output.shape, output
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", ones.shape, ones
        for tensor in ("attn_q", "attn_k", "attn_v"):
            yield block + tensor + ".weight", (HEAD_SIZE, shape.width), None
        yield block + "attn_output.weight", (shape.width, HEAD_SIZE), None
        yield block + "ffn_norm.weight", ones.shape, ones
        yield from _feed_forward(block, shape)


def _feed_forward(block: str, shape: _Shape) -> Iterator[_Tensor]:
    wide = (shape.feed_forward, shape.width)
    experts, suffix = ((shape.experts,), "_exps") if shape.experts else ((), "")
    if shape.experts:
        router = np.zeros((shape.experts, shape.width), np.float32)
        yield block + "ffn_gate_inp.weight", router.shape, router
    yield block + f"ffn_gate{suffix}.weight", (*experts, *wide), None
    yield block + f"ffn_up{suffix}.weight", (*experts, *wide), None
    yield block + f"ffn_down{suffix}.weight", (*experts, *wide[::-1]), None


# --- the file --------------------------------------------------------------------------------


def _add_metadata(
    writer: Any, chain: list[_Token], shape: _Shape, *, name: str, n_ctx_train: int
) -> None:
    tokens = _vocabulary(chain)
    writer.add_name(name)
    writer.add_context_length(n_ctx_train)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(HEAD_SIZE)
    writer.add_value_length(HEAD_SIZE)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(tokens))
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(1)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token.text for token in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([token.kind for token in tokens])
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def _size(dimensions: tuple[int, ...], values: Any, *, quantized: bool) -> int:
    elements = math.prod(dimensions)
    if values is not None:
        return 4 * elements
    return elements * 18 // 32 if quantized else 2 * elements


def _append_tensors(path: Path, tensors: list[_Tensor], alignment: int, *, quantized: bool) -> None:
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        for _, dimensions, values in tensors:
            end += -end % alignment
            if values is not None:
                file.seek(end)
                file.write(values.tobytes())
            end += _size(dimensions, values, quantized=quantized)
        file.truncate(end + -end % alignment)
