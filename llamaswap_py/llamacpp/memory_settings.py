"""Reads the options of a llama-server command line that decide its memory. Pure.

Defaults are those of llama-server build 11434 (common/common.h, tools/server/server.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from llamaswap_py.llamacpp.options import SPECULATION, long_name, plain_name
from llamaswap_py.units import MIB

PAD: Final = 256
"""Contexts are rounded up to a multiple of this (GGML_PAD in llama-context.cpp)."""
CACHE_RAM: Final = "cache-ram"
CPU: Final = "CPU"
"""The engine's name of main memory as a device."""
SPLIT: Final = "tensor-split"
ALL: Final = 10**9
"""As a number of layers: every one."""

# Options that take so little memory that presets which differ only in them share their figures.
_IRRELEVANT: Final[dict[str, int]] = {
    "--alias": 1,
    "--threads-http": 1,
    "--log-colors": 1,
    "--cors-origins": 1,
    "--metrics": 0,
    "--slots": 0,
    "--offline": 0,
    "--log-jsonl": 0,
}
_NUMBER: Final = frozenset("0123456789.")
_FALSE: Final = frozenset({"off", "0", "false", "no", "disabled"})


@dataclass(frozen=True, slots=True)
class DraftModel:
    """A draft model that runs beside the main one."""

    path: str
    type_k: str = "f16"
    type_v: str = "f16"
    gpu_layers: int = ALL
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes in bytes, contexts in tokens. `context` 0: what the model was trained for."""

    context: int = 0
    slots: int = 4
    unified: bool = True
    batch: int = 2048
    micro_batch: int = 512
    type_k: str = "f16"
    type_v: str = "f16"
    flash: bool = True
    mapped: bool = True
    locked: bool = False
    """Whether pages of mapped files are kept in memory (mlock)."""
    direct: bool = False
    """Whether the weights are read past the page cache."""
    repack: bool = True
    whole_window: bool = False
    checkpoints: int = 32
    prompt_cache: int = 8192 * MIB
    gpu_layers: int = ALL
    cpu_expert_layers: int = 0
    cache_on_gpu: bool = True
    tensor_split: tuple[float, ...] = ()
    split_mode: str = "layer"
    main_gpu: int = 0
    embedding: bool = False
    projector: str | None = None
    projector_on_gpu: bool = True
    adapters: tuple[str, ...] = ()
    draft: DraftModel | None = None
    draft_tokens: int = 0
    speculation: str = "none"
    """The kinds of speculative decoding asked for, commas between them."""
    overrides: tuple[tuple[str, str], ...] = ()
    """Patterns of tensors' names, and the engine's name of the device that holds them."""
    unread_overrides: bool = False
    """Whether an option moves tensors in a way that is not read here."""
    host_alone: bool = False
    """Whether the model runs without any device."""

    @property
    def outputs(self) -> int:
        """Rows of logits that one batch may ask for (server-context.cpp, server_output_limits)."""
        return min(self.batch, self.slots * (1 + self.draft_tokens))


def read_settings(args: Sequence[str]) -> Settings:
    """Read the words after the binary; a value that cannot be read counts as not given."""
    words = _Words(args)
    slots = words.integer("parallel", -1)
    automatic = slots < 1
    slots = 4 if automatic else slots
    per_slot = words.integer("kv-unified-per-slot", 0)
    context = words.integer("ctx-size", 0)
    if context <= 0 and per_slot > 0 and "ctx-size" not in words.found:
        context = slots * per_slot
    draft = _draft(words)
    overrides, unread = _overrides(words)
    speculation = ",".join(words.every(SPECULATION)) or "none"
    return Settings(
        context=max(context, 0),
        slots=slots,
        unified=automatic or slots == 1 or words.switch("kv-unified", default=False),
        batch=words.integer("batch-size", 2048),
        micro_batch=words.integer("ubatch-size", 512),
        type_k=words.text("cache-type-k", "f16").lower(),
        type_v=words.text("cache-type-v", "f16").lower(),
        flash=words.switch("flash-attn", default=True),
        mapped=_mapped(words),
        locked=_locked(words),
        direct=_direct(words),
        repack=words.switch("repack", default=True),
        whole_window=words.switch("swa-full", default=False),
        checkpoints=words.integer("swa-checkpoints", 32),
        prompt_cache=max(words.integer(CACHE_RAM, 8192), 0) * MIB,
        gpu_layers=_layers(words.text("n-gpu-layers", "auto")),
        cpu_expert_layers=ALL
        if words.switch("cpu-moe", default=False)
        else words.integer("n-cpu-moe", 0),
        cache_on_gpu=words.switch("kv-offload", default=True),
        tensor_split=_shares(words.text(SPLIT, "")),
        split_mode=words.text("split-mode", "layer"),
        main_gpu=words.integer("main-gpu", 0),
        embedding=words.switch("embeddings", default=False)
        or words.switch("reranking", default=False),
        projector=words.text("mmproj", "") or None,
        projector_on_gpu=words.switch("mmproj-offload", default=True),
        adapters=(*words.every("lora"), *words.every("lora-scaled")),
        draft=draft,
        draft_tokens=0 if speculation == "none" else words.integer("spec-draft-n-max", 3),
        speculation=speculation,
        overrides=overrides,
        unread_overrides=unread or "override-tensor-draft" in words.names,
        host_alone=words.text("device", "") == "none",
    )


def deciding_words(args: Sequence[str]) -> list[str]:
    """Return the words of a command line without options that hardly take memory."""
    kept: list[str] = []
    place = 0
    while place < len(args):
        if (count := _IRRELEVANT.get(args[place])) is not None:
            place += 1 + count
            continue
        kept.append(args[place])
        place += 1
    return kept


def names_of(args: Sequence[str]) -> set[str]:
    """Return the options that these words give, by their long names."""
    return _Words(args).names


def devices_named(args: Sequence[str]) -> tuple[str, ...] | None:
    """Return the engine's names of devices after `--device`; None without it, () for `none`."""
    words = _Words(args)
    if "device" not in words.found:
        return None
    return tuple(name for name in words.text("device", "").split(",") if name not in ("", "none"))


def rpc_endpoints(args: Sequence[str]) -> tuple[str, ...]:
    """Return the endpoints after `--rpc`, each once."""
    return tuple(dict.fromkeys(part.strip() for part in _Words(args).every("rpc")))


def projector_of(args: Sequence[str]) -> str:
    """Return the projector's file that these words name; "" if they name none."""
    words = _Words(args)
    return "" if "no-mmproj" in words.found else words.text("mmproj", "")


def _draft(words: _Words) -> DraftModel | None:
    path = words.text("model-draft", "")
    if not path:
        return None
    return DraftModel(
        path,
        words.text("cache-type-k-draft", "f16").lower(),
        words.text("cache-type-v-draft", "f16").lower(),
        _layers(words.text("n-gpu-layers-draft", "auto")),
        words.text("device-draft", "") or None,
    )


def _overrides(words: _Words) -> tuple[tuple[tuple[str, str], ...], bool]:
    """Read where tensors are put by name; also whether a pattern could not be read.

    llama.cpp uses ECMAScript's patterns, which mostly mean the same here.
    """
    found: list[tuple[str, str]] = []
    unread = False
    for one in words.every("override-tensor"):
        pattern, _, device = one.rpartition("=")
        try:
            re.compile(pattern)
        except re.error:
            unread = True
        else:
            found.append((pattern, device))
    if layers := words.integer("n-cpu-ffn", 0):
        numbers = "|".join(map(str, range(layers)))
        found.append((rf"blk\.(?:{numbers})\.ffn_(up|down|gate)\.", CPU))
    return tuple(found), unread


def _mapped(words: _Words) -> bool:
    if not words.switch("mmap", default=True):
        return False
    return words.text("load-mode", "auto") in ("auto", "mmap", "mmap+mlock")


def _locked(words: _Words) -> bool:
    if words.text("load-mode", "") in ("mlock", "mmap+mlock"):
        return True
    return words.switch("mlock", default=False)


def _direct(words: _Words) -> bool:
    if words.text("load-mode", "") == "dio":
        return True
    return any(words.switch(name, default=False) for name in ("direct-io", "dio"))


def _layers(text: str) -> int:
    """Read a number of layers; `auto`, `all` and -1 are all of them."""
    try:
        number = int(text)
    except ValueError:
        return ALL
    return ALL if number < 0 else number


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(each) for each in text.replace("/", ",").split(",") if each.strip())
    except ValueError:
        return ()


class _Words:
    """The options of a command line by their long names; the last one given counts."""

    def __init__(self, args: Sequence[str]) -> None:
        self.found: dict[str, list[str | None]] = {}
        place = 0
        while place < len(args):
            word = args[place]
            place += 1
            if not _is_option(word):
                continue
            value = args[place] if place < len(args) and not _is_option(args[place]) else None
            place += value is not None
            self.found.setdefault(long_name(plain_name(word)), []).append(value)

    @property
    def names(self) -> set[str]:
        return set(self.found)

    def every(self, name: str) -> tuple[str, ...]:
        """Return all paths given for an option, commas separating several."""
        values = [value for value in self.found.get(name, ()) if value]
        return tuple(part for value in values for part in value.split(",") if part)

    def text(self, name: str, default: str) -> str:
        values = self.found.get(name)
        return default if not values or values[-1] is None else values[-1]

    def integer(self, name: str, default: int) -> int:
        try:
            return int(self.text(name, str(default)))
        except ValueError:
            return default

    def switch(self, name: str, *, default: bool) -> bool:
        if f"no-{name}" in self.found or _SHORT_NEGATIONS.get(name) in self.found:
            return False
        if name not in self.found:
            return default
        value = self.found[name][-1]
        return value is None or value.lower() not in _FALSE


_SHORT_NEGATIONS: Final = {"kv-unified": "no-kvu", "kv-offload": "nkvo", "repack": "nr"}


def _is_option(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and word[1] not in _NUMBER


# Options that take less memory, over those of a preset

SLOTS: Final = "parallel"
MOST_SLOTS: Final = 256
"""With more it starts with none: llama.cpp has so many sequences at most (LLAMA_MAX_SEQ)."""
EXPERTS: Final = "n-cpu-moe"
OF_CONTEXT: Final = frozenset({"ctx-size", "kv-unified-per-slot"})
"""Options that set the context: it is open if none is given. So with those below."""
OF_BATCH: Final = frozenset({"batch-size", "ubatch-size"})
OF_LAYERS: Final = frozenset({"n-gpu-layers"})
OF_EXPERTS: Final = frozenset({EXPERTS, "cpu-moe"})
OF_TENSORS: Final = frozenset({"override-tensor", "n-cpu-ffn"})
OF_DIVISION: Final = frozenset({"tensor-split", "split-mode", "override-tensor", "main-gpu"})
"""Options that say which part of a model lies on which device."""


def with_context(tokens: int) -> dict[str, str]:
    """Return the option for a context."""
    return {"ctx-size": str(tokens)}


def with_batch(tokens: int) -> dict[str, str]:
    """Return the options that read so many tokens at once."""
    return {"batch-size": str(tokens), "ubatch-size": str(tokens)}


def with_experts_on_host(layers: int) -> dict[str, str]:
    """Return the option that keeps the experts of the first layers in main memory."""
    return {EXPERTS: str(layers)}


def with_layers_on_card(layers: int) -> dict[str, str]:
    """Return the option that puts so many layers on GPUs, and the rest in main memory."""
    return {"n-gpu-layers": str(layers)}


def with_split(layers: Sequence[int]) -> dict[str, str]:
    """Return the option that gives each device so many of the layers on devices."""
    return {SPLIT: ",".join(map(str, layers))}


def on_host_alone(settings: Settings, said: Collection[str]) -> dict[str, str]:
    """Return the options that keep draft and projector in main memory too; `said` ones stand."""
    found = {"device": "none"}
    if settings.draft is not None:
        found |= {"device-draft": "none", "n-gpu-layers-draft": "0"}
    if settings.projector is not None:
        found |= {"no-mmproj-offload": "true"}
    return {name: value for name, value in found.items() if name not in said}


def option_words(name: str, value: str) -> tuple[str, ...]:
    """Return an option as words; `true` switches it on."""
    return (f"--{name}",) if value == "true" else (f"--{name}", value)
