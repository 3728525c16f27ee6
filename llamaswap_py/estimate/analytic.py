"""Estimate from a GGUF header and a command line alone: the last step of the ladder. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

from llamaswap_py.estimate.attention import Context, context_of, is_recurrent, window_layers
from llamaswap_py.estimate.compute import compute_of, vocabulary
from llamaswap_py.estimate.layout import Layout, lay_out
from llamaswap_py.estimate.records import HOST, PROMPT_CACHE, EstimateError, Part
from llamaswap_py.estimate.settings import Settings
from llamaswap_py.gguf.header import Header
from llamaswap_py.units import MIB

PROCESS: Final = 8 * MIB
"""llama-server itself: code, libraries, threads; a 3 MiB model measured 8 MiB above its tensors."""
WORD: Final = 210
"""Bytes per word of the vocabulary: 128,000 words instead of 1,000 measured 27 MiB more."""
DRIVER_ON_DEVICE: Final[dict[str, int]] = {"CUDA": 450 * MIB, "ROCm": 400 * MIB}
"""What a process takes of a GPU before any tensor (docs/design/engine.md, "Memory")."""
PROJECTOR_FACTOR: Final = 1.3
"""A projector's file, and its compute buffer beside it (docs/design/engine.md, "Memory")."""
CHECKPOINTS_PER_REQUEST: Final = 2
"""Places near the end of each prompt where one is made (server-context.cpp, checkpoint_offsets)."""


def analytic_parts(
    headers: Sequence[Header],
    settings: Settings,
    gpus: Sequence[str],
    repackable: Collection[str],
) -> list[Part]:
    """Return the parts of one model whose shards have these headers.

    `gpus` are the devices it may use, in the engine's order; none means the host alone. Raises
    EstimateError for files that are no language model.
    """
    header = headers[0]
    if header.integer("block_count") <= 0:
        raise EstimateError(
            f"a {header.architecture or 'nameless'} file without layers cannot be estimated",
            remedy="declare the preset's memory",
        )
    layout = lay_out(headers, settings, gpus, repackable)
    context = context_of(header, settings)
    parts = [Part(device, "weights", size) for device, size in layout.weights.items()]
    parts += mapping_parts(layout)
    for at, size in enumerate(context.layers):
        device = layout.layer_devices[at] if settings.cache_on_gpu else HOST
        parts.append(Part(device, "context", size))
    compute = compute_of(header, settings, context)
    for device in dict.fromkeys(layout.layer_devices):
        parts.append(Part(device, "compute", compute.buffer, grows=device == HOST))
    return parts + growing_parts(header, settings, context, gpus=gpus)


def mapping_parts(layout: Layout) -> list[Part]:
    """Return what keeping the files mapped costs beyond the tensors used from them."""
    return [Part(HOST, "mapped pages of moved weights", layout.mapped_again)]


def growing_parts(
    header: Header, settings: Settings, context: Context, *, gpus: Sequence[str]
) -> list[Part]:
    """Return what a model's tensors do not tell: work memory, vocabulary, checkpoints."""
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
    """Return what belongs to the process and to no model; sizes of the files in bytes."""
    parts = [Part(HOST, "process", PROCESS)]
    if settings.prompt_cache:
        parts.append(Part(HOST, PROMPT_CACHE, settings.prompt_cache, grows=True))
    for gpu in gpus:
        driver = next((size for name, size in DRIVER_ON_DEVICE.items() if gpu.startswith(name)), 0)
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
        # Its context is rolled back with the main one's; it makes no checkpoints of its own.
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
    if settings.overrides:
        notes.append("tensors that override-tensor moves are counted where they would be without")
    return notes
