"""The formulas: the memory of a model, from its GGUF header and its command line alone. Pure.

lswap uses them if a dry run is not possible. Each part below names the sources of llama.cpp that it
follows; `bench/estimates.py` checks the sums against build 11434.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from llamaswap_py.estimate.types import LOCKED, MOVED, PROMPT_CACHE, WEIGHTS, EstimateError, Part
from llamaswap_py.gguf.header import ArrayInfo, Header, Tensor, row_bytes
from llamaswap_py.llamacpp.backends import BACKENDS
from llamaswap_py.llamacpp.memory_settings import PAD, Settings
from llamaswap_py.units import HOST, MIB, format_size

# The context: KV cache, recurrent state, sliding windows
#
# Sources: src/llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp,
# llama-hparams.cpp and the sliding windows that src/models/*.cpp give to each architecture.

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
    """Bytes per layer, and the figures that checkpoints and masks need.

    `cells` is the length of one stream (a sequence's share of the context), `window_cells` the
    length of a sliding-window layer's. The cache has `streams` of either.
    """

    layers: tuple[int, ...]
    cells: int
    window_cells: int
    streams: int
    checkpoint: int
    """Bytes of one checkpoint; 0 where the cache itself can be rolled back."""
    window_layer_bytes: int
    """Bytes of one cell in all sliding-window layers together."""


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
    return [key + value for key, value in cell_rows(header, settings, layers)]


def cell_rows(header: Header, settings: Settings, layers: int) -> list[tuple[int, int]]:
    """Return the bytes of K and those of V of one token, for each layer."""
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
            found.append((0, 0))
            continue
        k, v = key, value
        if windowed[layer]:
            k = header.integer("attention.key_length_swa", key)
            v = header.integer("attention.value_length_swa", value)
        row = row_bytes(settings.type_k, kv_heads[layer] * k)
        # With latent attention (MLA) the values are a view of the keys.
        other = 0 if latent else row_bytes(settings.type_v, kv_heads[layer] * v)
        found.append((row, other))
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


_HALF: Final = 2
_ROWS: Final = 5


# The compute buffer: what one batch needs besides weights and context
#
# A graph of llama.cpp reuses memory. So its buffer is the part that lives through the whole graph,
# plus the largest part that lives for a moment. Through the whole graph live five rows of the
# model's width per token (embedding, residual, norm, input, output) and the attention masks. The
# largest moment is the feed-forward part, the attention, or the logits. These formulas were fitted
# to build 11434.
#
# llama-fit-params reserves logits for every token of a batch, llama-server only for the few it
# samples from (server_output_limits): with 128 k words and batches of 512 that alone is 250 MiB.


@dataclass(frozen=True, slots=True)
class Compute:
    """Bytes: `buffer` is the whole buffer, `work` is the CPU backend's own memory beside it."""

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
    """Correct the compute buffer of a dry run for the logits that only the dry run reserves.

    If logits are the largest moment, their exact size is taken out, and the next largest, from the
    formulas, is put in. Two kinds stay unchanged: graphs that the formulas do not know (recurrent
    ones), and embedding models, because each of their tokens is an output.
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
    """Return the number of tokens in the vocabulary."""
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
    """Return the bytes of a batch that the CPU backend converts to multiply (ggml_graph_plan)."""
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


_BLOCK: Final = re.compile(r"blk\.(\d+)\.")
_EXPERTS: Final = re.compile(r"\.ffn_(up|down|gate|gate_up)_(ch|)exps")
_INPUT: Final = ("token_embd", "token_types", "position_embd", "per_layer_token_embd")
_REPACK_ROWS: Final = 8


# Which device holds which tensor
#
# Sources: src/llama-model.cpp (load_tensors: input on the CPU, `n_gpu_layers` counted from the
# last, the output as one more layer), common/arg.cpp (--n-cpu-moe) and ggml-cpu/repack.cpp.


@dataclass(frozen=True, slots=True)
class Layout:
    """Bytes of weights per device, and of the pages of a mapped file that no tensor is used from.

    `repacked` is the part of the host's weights that is rearranged into separate memory. The
    `unused_pages` stay mapped, but the kernel may drop them like other page cache.
    """

    weights: dict[str, int]
    repacked: int
    unused_pages: int
    layer_devices: tuple[str, ...]
    """The device of each layer; one more at the end, for the output."""


def lay_out(
    headers: Sequence[Header],
    settings: Settings,
    gpus: Sequence[str],
    repackable: Collection[str],
) -> Layout:
    """Place every tensor of the shards `headers`; `repackable` are types this CPU rearranges."""
    devices = layer_devices(headers[0], settings, gpus)
    weights: dict[str, int] = {HOST: 0}
    repacked = unused = 0
    tied = not any(tensor.name == "output.weight" for one in headers for tensor in one.tensors)
    for header in headers:
        held: list[Tensor] = []
        for tensor in header.tensors:
            device = _overridden(tensor, settings, gpus) or _device(tensor, devices, settings)
            weights[device] = weights.get(device, 0) + tensor.size
            if tied and tensor.name == "token_embd.weight" and devices[-1] != HOST:
                weights[devices[-1]] = weights.get(devices[-1], 0) + tensor.size
            if device != HOST:
                continue
            if not gpus and settings.repack and _is_repacked(tensor, repackable):
                repacked += tensor.size
            else:
                held.append(tensor)
        if settings.mapped:
            unused += _span(held) - sum(tensor.size for tensor in held)
    return Layout(weights, repacked, unused, devices)


def devices_used(settings: Settings, gpus: Sequence[str]) -> tuple[str, ...]:
    """Return the devices that a model uses of those that it may use."""
    return () if settings.host_alone else tuple(gpus)


def layer_devices(header: Header, settings: Settings, gpus: Sequence[str]) -> tuple[str, ...]:
    """Return the device of each layer and of the output."""
    count = header.integer("block_count") + 1
    if not gpus or settings.gpu_layers == 0:
        return (HOST,) * count
    first = max(count - settings.gpu_layers, 0)
    if settings.split_mode == "none":
        chosen = gpus[min(settings.main_gpu, len(gpus) - 1)]
        return (HOST,) * first + (chosen,) * (count - first)
    shares = [*settings.tensor_split, *[0.0] * len(gpus)][: len(gpus)]
    if not any(shares):
        shares = [1.0] * len(gpus)
    bounds = [sum(shares[: at + 1]) / sum(shares) for at in range(len(gpus))]
    on_gpu = count - first
    placed = tuple(
        gpus[next(at for at, bound in enumerate(bounds) if layer / on_gpu < bound)]
        for layer in range(on_gpu)
    )
    return (HOST,) * first + placed


def _overridden(tensor: Tensor, settings: Settings, gpus: Sequence[str]) -> str:
    """Return the device that an option names for a tensor; "" if none does."""
    for pattern, device in settings.overrides:
        if re.search(pattern, tensor.name):
            number = device[-1:]
            is_gpu = number.isdecimal() and int(number) < len(gpus)
            return gpus[int(number)] if is_gpu else HOST
    return ""


def _device(tensor: Tensor, devices: tuple[str, ...], settings: Settings) -> str:
    block = _BLOCK.match(tensor.name)
    if block is None:
        return HOST if tensor.name.startswith(_INPUT) else devices[-1]
    layer = int(block[1])
    if layer < settings.cpu_expert_layers and _EXPERTS.search(tensor.name):
        return HOST
    return devices[min(layer, len(devices) - 1)]


def _is_repacked(tensor: Tensor, repackable: Collection[str]) -> bool:
    """Whether a tensor is rearranged: only matrices are; the embedding, read by rows, is not."""
    return (
        tensor.kind in repackable
        and len(tensor.shape) > 1
        and tensor.shape[1] % _REPACK_ROWS == 0
        and not tensor.name.startswith(_INPUT)
    )


def _span(tensors: Iterable[Tensor]) -> int:
    """Return the bytes from the first to the last tensor: llama.cpp keeps this part mapped."""
    held = list(tensors)
    if not held:
        return 0
    return max(one.offset + one.size for one in held) - min(one.offset for one in held)


def repackable_kinds(cpu_flags: Collection[str]) -> frozenset[str]:
    """Return the tensor types that llama.cpp rearranges for a CPU with these flags (/proc/cpuinfo).

    Source: ggml_repack_get_optimal_repack_type in ggml/src/ggml-cpu/repack.cpp; on CPUs with AMX
    ggml-cpu/amx takes more. Other architectures than x86 and Arm: none.
    """
    kinds: set[str] = set()
    if "avx2" in cpu_flags:
        kinds |= {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}
    if "avx512f" in cpu_flags:
        kinds |= {"Q2_K"}
    if "amx_int8" in cpu_flags:
        kinds |= {"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"}
    if "asimddp" in cpu_flags:
        kinds |= {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4", "Q8_0", "Q1_0"}
    return frozenset(kinds)


_WORTH_A_NOTE: Final = MIB
PROCESS: Final = 8 * MIB
"""llama-server itself: code, libraries, threads; a 3 MiB model measured 8 MiB above its tensors."""
WORD: Final = 210
"""Bytes per word of the vocabulary: 128,000 words instead of 1,000 measured 27 MiB more."""
PROJECTOR_FACTOR: Final = 1.3
"""A projector's file, and its compute buffer beside it (docs/design/engine.md, "Memory")."""
CHECKPOINTS_PER_REQUEST: Final = 2
"""Places near the end of each prompt where one is made (server-context.cpp, checkpoint_offsets)."""


# The parts of a model


def analytic_parts(
    headers: Sequence[Header],
    settings: Settings,
    gpus: Sequence[str],
    repackable: Collection[str],
) -> list[Part]:
    """Return the parts of one model whose shards have these headers; see parts_and_layout()."""
    return parts_and_layout(headers, settings, gpus, repackable)[0]


def parts_and_layout(
    headers: Sequence[Header],
    settings: Settings,
    gpus: Sequence[str],
    repackable: Collection[str],
) -> tuple[list[Part], Layout]:
    """Return the parts of one model whose shards have these headers, and where its tensors are.

    `gpus` are the devices it may use, in the engine's order; none means the host alone. Raises
    EstimateError for files that are not a language model.
    """
    header = headers[0]
    if header.integer("block_count") <= 0:
        raise EstimateError(
            f"a {header.architecture or 'nameless'} file without layers cannot be estimated",
            remedy="declare the preset's memory",
        )
    layout = lay_out(headers, settings, gpus, repackable)
    context = context_of(header, settings)
    weights = {**layout.weights, HOST: layout.weights[HOST] - layout.repacked}
    parts = [Part(device, WEIGHTS, size) for device, size in weights.items()]
    parts.append(Part(HOST, MOVED, layout.repacked))
    parts += locked_parts(parts, layout, settings)
    for at, size in enumerate(context.layers):
        device = layout.layer_devices[at] if settings.cache_on_gpu else HOST
        parts.append(Part(device, "context", size))
    compute = compute_of(header, settings, context)
    for device in dict.fromkeys(layout.layer_devices):
        parts.append(Part(device, "compute", compute.buffer, grows=device == HOST))
    return parts + growing_parts(header, settings, context, gpus=gpus), layout


_ALIKE: Final = 0.02


def unused_pages(parts: Iterable[Part], layout: Layout) -> int:
    """Return the bytes of files that stay mapped although no tensor there is used.

    `parts` have what was rearranged: an engine may rearrange other types than `layout` expects.
    """
    moved = sum(part.size for part in parts if part.what == MOVED)
    as_expected = abs(moved - layout.repacked) <= _ALIKE * moved
    return layout.unused_pages if as_expected else moved


def locked_parts(parts: Iterable[Part], layout: Layout, settings: Settings) -> list[Part]:
    """Return the unused pages that the kernel may not drop, because they are locked."""
    if not (settings.mapped and settings.locked):
        return []
    return [Part(HOST, LOCKED, unused_pages(parts, layout))]


def page_cache_notes(parts: Iterable[Part], layout: Layout, settings: Settings) -> list[str]:
    """Return a line about the pages of files that stay mapped and are not counted."""
    size = unused_pages(parts, layout)
    if not settings.mapped or settings.locked or size < _WORTH_A_NOTE:
        return []
    where = "beside the weights that were rearranged or moved"
    return [f"{format_size(size)} of its file stay mapped {where}: page cache, not counted"]


def growing_parts(
    header: Header, settings: Settings, context: Context, *, gpus: Sequence[str]
) -> list[Part]:
    """Return the parts that do not come from tensors: work memory, vocabulary, checkpoints."""
    parts = [Part(HOST, "vocabulary", WORD * vocabulary(header))]
    if not gpus or settings.gpu_layers == 0:
        work = compute_of(header, settings, context).work
        parts.append(Part(HOST, "work memory", work, grows=True))
    count = min(settings.checkpoints, CHECKPOINTS_PER_REQUEST) * settings.slots
    if context.checkpoint and count > 0:
        parts.append(Part(HOST, "checkpoints", count * context.checkpoint, grows=True))
    return parts


def process_parts(
    settings: Settings, gpus: Sequence[str], *, projector: int, adapters: int
) -> list[Part]:
    """Return the parts of the process that do not depend on a model; sizes of files in bytes."""
    parts = [Part(HOST, "process", PROCESS)]
    if settings.prompt_cache:
        parts.append(Part(HOST, PROMPT_CACHE, settings.prompt_cache, grows=True))
    for gpu in gpus:
        driver = next((one.driver for one in BACKENDS if gpu.startswith(one.prefix)), 0)
        parts.append(Part(gpu, "driver", driver))
    if projector:
        device = gpus[0] if gpus and settings.projector_on_gpu else HOST
        parts.append(Part(device, "projector", round(PROJECTOR_FACTOR * projector)))
    if adapters:
        device = gpus[0] if gpus and settings.gpu_layers else HOST
        parts.append(Part(device, "adapters", adapters))
    return parts


def draft_settings(settings: Settings) -> Settings:
    """Return how a draft model runs beside one with `settings` (common/speculative.cpp)."""
    assert settings.draft is not None
    return replace(
        settings,
        type_k=settings.draft.type_k,
        type_v=settings.draft.type_v,
        gpu_layers=settings.draft.gpu_layers,
        cpu_expert_layers=0,
        embedding=False,
        draft=None,
        draft_tokens=0,
        speculation="none",
        # Its context is rolled back together with the main one; it does not make checkpoints.
        checkpoints=0,
    )


def caveats(header: Header, settings: Settings, context: Context) -> list[str]:
    """Return what may make the real figure differ, one line each."""
    notes = []
    if context.checkpoint and settings.checkpoints > CHECKPOINTS_PER_REQUEST:
        most = settings.checkpoints * settings.slots * context.checkpoint
        notes.append(
            f"long conversations keep up to {settings.checkpoints} checkpoints per slot, "
            f"{most // MIB:,} MiB in all; args.ctx-checkpoints limits them"
        )
    if is_recurrent(header):
        notes.append(f"{header.architecture} is recurrent: its compute buffer is a rough figure")
    has_window = header.integer("attention.sliding_window") > 0
    if has_window and not any(window_layers(header, header.integer("block_count"))):
        notes.append("its sliding window is not used by this estimate: every layer counts whole")
    if settings.draft is not None and settings.speculation == "none":
        notes.append(
            "the draft model is loaded, but dropped again unless args.spec-type says how to use it "
            "(draft-simple), or its file does"
        )
    if settings.draft is None and "draft" in settings.speculation:
        notes.append("the context of the model's own draft layers is not counted")
    if settings.unread_overrides:
        notes.append(
            "some tensors that override-tensor or override-tensor-draft moves are counted where "
            "they would be without"
        )
    return notes
