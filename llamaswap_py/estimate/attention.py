"""What the context of a model takes: KV cache, recurrent state, sliding windows. Pure.

Sources: src/llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp,
llama-hparams.cpp and the sliding windows that src/models/*.cpp give to each architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from llamaswap_py.estimate.settings import Settings
from llamaswap_py.gguf.header import Header
from llamaswap_py.gguf.kinds import row_bytes
from llamaswap_py.gguf.metadata import ArrayInfo

PAD: Final = 256
"""Contexts are rounded up to a multiple of this (GGML_PAD in llama-context.cpp)."""

# architecture -> (period, whether the first layer of each period is the one without a window).
_WINDOW_PERIODS: Final[dict[str, tuple[int, bool]]] = {
    "afmoe": (4, False),
    "cohere2": (4, False),
    "cohere2moe": (4, True),
    "exaone-moe": (4, False),
    "exaone4": (4, False),
    "gemma-embedding": (6, False),
    "gemma2": (2, False),
    "gemma3": (6, False),
    "gemma3n": (5, False),
    "gpt-oss": (2, False),
    "llama4": (4, False),
    "mellum": (4, False),
    "modern-bert": (3, True),
    "olmo2": (4, False),
    "plamo3": (8, False),
    "smallthinker": (4, True),
}
_LLAMA4_CHUNK: Final = 8192
_FLOAT: Final = 4


@dataclass(frozen=True, slots=True)
class Context:
    """Bytes per layer, and what checkpoints and masks are made of.

    `cells` is the length of one stream (a sequence's share of the context), `window_cells` the
    length of a sliding-window layer's; `streams` of either are kept.
    """

    layers: tuple[int, ...]
    cells: int
    window_cells: int
    streams: int
    checkpoint: int
    """Bytes of one checkpoint; 0 where the cache itself can be rolled back."""
    window_layer_bytes: int
    """What one cell takes in all sliding-window layers together."""


def context_of(header: Header, settings: Settings) -> Context:
    """Return what the context of `header` takes with `settings`."""
    layers = header.integer("block_count")
    streams = 1 if settings.unified else settings.slots
    trained = header.integer("context_length", 4096)
    cells = _padded((settings.context or trained) // streams)
    windowed = window_layers(header, layers)
    window = header.integer("attention.sliding_window") or _LLAMA4_CHUNK
    shared = settings.slots if settings.unified else 1
    batch = min(settings.micro_batch, settings.batch, settings.context or trained)
    window_cells = _padded(min(cells, window * shared + batch))
    if settings.whole_window:
        window_cells = cells
    cell_bytes = _cell_bytes(header, settings, layers)
    state = _state_bytes(header)
    recurrent = [state if not size else 0 for size in cell_bytes] if state else [0] * layers
    sizes = tuple(
        cell * streams * (window_cells if windowed[at] else cells) + recurrent[at] * settings.slots
        for at, cell in enumerate(cell_bytes)
    )
    per_window_cell = sum(size for at, size in enumerate(cell_bytes) if windowed[at])
    checkpoint = sum(recurrent)
    if any(windowed) and not settings.whole_window:
        checkpoint += per_window_cell * min(window, cells)
    return Context(sizes, cells, window_cells, streams, checkpoint, per_window_cell)


def token_bytes(header: Header, settings: Settings) -> int:
    """Return the bytes of K and V of one token in all layers, as if none had a window."""
    return sum(_cell_bytes(header, settings, header.integer("block_count")))


def has_windows(header: Header, settings: Settings) -> bool:
    """Return whether the cache keeps only the newest tokens of some layers."""
    layers = header.integer("block_count")
    return any(window_layers(header, layers)) and not settings.whole_window


def window_layers(header: Header, layers: int) -> tuple[bool, ...]:
    """Return which layers see a sliding window only."""
    window = header.integer("attention.sliding_window")
    pattern = header.get("attention.sliding_window_pattern")
    if not window and header.architecture != "llama4":
        return (False,) * layers
    if isinstance(pattern, ArrayInfo) and pattern.values is not None:
        listed = tuple(bool(each) for each in pattern.values[:layers])
        return listed + (False,) * (layers - len(listed))
    if header.architecture not in _WINDOW_PERIODS:
        return (False,) * layers
    period, dense_first = _WINDOW_PERIODS[header.architecture]
    if isinstance(pattern, int) and pattern > 0:
        period = pattern
    if dense_first:
        return tuple(at % period != 0 for at in range(layers))
    return tuple(at % period < period - 1 for at in range(layers))


def is_recurrent(header: Header) -> bool:
    """Return whether some layers keep a state of fixed size instead of a cache."""
    return _state_bytes(header) > 0


def _cell_bytes(header: Header, settings: Settings, layers: int) -> list[int]:
    """Return the bytes of K and V of one token, for each layer."""
    heads = max(header.integer("attention.head_count", 1), 1)
    size = header.integer("embedding_length") // heads
    key = header.integer("attention.key_length", size)
    value = header.integer("attention.value_length", size)
    kv_heads = header.per_layer("attention.head_count_kv", layers, heads)
    kept = layers - header.integer("attention.shared_kv_layers")
    interval = header.integer("full_attention_interval")
    latent = header.get("attention.key_length_mla") is not None
    windowed = window_layers(header, layers)
    found = []
    for layer in range(layers):
        if layer >= kept or (interval and (layer + 1) % interval):
            found.append(0)
            continue
        k, v = key, value
        if windowed[layer]:
            k = header.integer("attention.key_length_swa", key)
            v = header.integer("attention.value_length_swa", value)
        row = row_bytes(settings.type_k, kv_heads[layer] * k)
        # With latent attention (MLA) the values are a view of the keys.
        found.append(row if latent else row + row_bytes(settings.type_v, kv_heads[layer] * v))
    return found


def _state_bytes(header: Header) -> int:
    """Return the bytes one recurrent layer keeps per sequence (n_embd_r + n_embd_s, F32)."""
    width = header.integer("embedding_length")
    if head := header.integer("wkv.head_size"):
        return _FLOAT * width * (header.integer("token_shift_count", 2) + head)
    if cache := header.integer("shortconv.l_cache"):
        return _FLOAT * width * (cache - 1)
    if inner := header.integer("ssm.inner_size"):
        state = header.integer("ssm.state_size")
        groups = header.integer("ssm.group_count")
        kernel = max(header.integer("ssm.conv_kernel") - 1, 0)
        return _FLOAT * (kernel * (inner + 2 * groups * state) + state * inner)
    return 0


def _padded(tokens: int) -> int:
    return max(-(-tokens // PAD), 1) * PAD
