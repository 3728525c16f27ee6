"""Facts of a model from its file, read before its first load, for lists and for `show`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Final, TypeAlias, TypeVar

from llamaswap_py.errors import LswapError
from llamaswap_py.estimate.files import FileIdentity, identify, open_header
from llamaswap_py.gguf import Header
from llamaswap_py.gguf.header import ArrayInfo
from llamaswap_py.llamacpp.embedding_models import kind_of
from llamaswap_py.llamacpp.memory_settings import projector_of
from llamaswap_py.supervisor.prepare import Prepared
from llamaswap_py.tasks import guard
from llamaswap_py.tasks.threads import Workers

# enum llama_ftype (include/llama.h, b11434).
_FILE_TYPES: Final = dict(
    enumerate(
        [
            *("F32", "F16", "Q4_0", "Q4_1", "", "", "", "Q8_0", "Q5_0", "Q5_1", "Q2_K"),
            *("Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"),
            *("IQ2_XXS", "IQ2_XS", "Q2_K_S", "IQ3_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S"),
            *("IQ3_M", "IQ2_S", "IQ2_M", "IQ4_XS", "IQ1_M", "BF16", "", "", "", "TQ1_0"),
            *("TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0"),
        ]
    )
)
_GUESSED: Final = 1024
_EMBEDS: Final = (
    "bert",
    "nomic-bert",
    "nomic-bert-moe",
    "jina-bert-v2",
    "jina-bert-v3",
    "t5encoder",
)
_FILL_IN: Final = ("tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id")
_TEXT: Final = ("text",)
_SENSES: Final = {"image": "vision", "audio": "audio"}
_AFTER_SENSES: Final = ("thinking",)
_ENCODERS: Final = {"clip.has_vision_encoder": "image", "clip.has_audio_encoder": "audio"}
# Decision models answer on /v1/systemone (tools/server/server-common.cpp, b11434).
_DECISIONS: Final = frozenset({"openjev", "lev", "kev", "nimble", "laya", "clef"})
_THINKS: Final = ("<think>", "enable_thinking", "reasoning_content", "<|channel|>")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Of the files: bytes, when they changed (Unix seconds), a name for this version of them.

    Of the header, where it can be read: the rest. `capabilities` are Ollama's words, `inputs` and
    `outputs` llama.cpp's (the projector's header says what a model takes besides text).
    """

    size: int = 0
    modified: float = 0.0
    digest: str = ""
    family: str = ""
    parameters: str = ""
    quantization: str = ""
    context_length: int = 0
    template: str = ""
    capabilities: tuple[str, ...] = ("completion",)
    metadata: dict[str, int | float | bool | str] = field(default_factory=dict)
    inputs: tuple[str, ...] = _TEXT
    outputs: tuple[str, ...] = _TEXT

    def capable_of(self, inputs: tuple[str, ...]) -> list[str]:
        """Return the capabilities, where a running child says what it takes in its own words."""
        if "completion" not in self.capabilities:
            return list(self.capabilities)
        senses = [word for kind, word in _SENSES.items() if kind in (inputs or self.inputs)]
        last = [word for word in self.capabilities if word in _AFTER_SENSES]
        return [*(word for word in self.capabilities if word not in last), *senses, *last]


_READERS: Final = Workers(4, "lswap-facts")
"""Separate threads: models on a disk that hangs delay lists, but no loads."""
_T = TypeVar("_T")
_Key: TypeAlias = tuple[tuple[FileIdentity, ...], str]
MOST_HEADERS: Final = 16
"""The most headers that one answer waits for; a header with a large vocabulary takes 0.2 s."""


async def _aside(read: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(_READERS, read)


class ModelFactsCache:
    """The facts of every preset, read once for each version of its files."""

    def __init__(self, prepared: Mapping[str, Prepared]) -> None:
        self._prepared = prepared
        self._known: dict[_Key, ModelFacts] = {}
        self._reading: Future[None] | None = None
        """What reads the headers that an answer did not wait for."""

    async def of(self, preset: str) -> ModelFacts:
        """Return the facts of a preset; nothing of a header that cannot be read."""
        prepared = self._prepared.get(preset)
        return ModelFacts() if prepared is None else await _aside(partial(self._read, prepared))

    async def of_each(self, presets: Iterable[str]) -> dict[str, ModelFacts]:
        """Return the facts of several presets, by their ids.

        At most `MOST_HEADERS` new headers are read for it. A thread reads the others afterwards;
        until then their facts are those of the files alone.
        """
        wanted = {name: self._prepared.get(name) for name in presets}
        found, unread = await _aside(partial(self._read_some, wanted))
        if unread and (self._reading is None or self._reading.done()):
            self._reading = _READERS.submit(self._read_rest, unread)
        return found

    def _read_some(
        self, wanted: Mapping[str, Prepared | None]
    ) -> tuple[dict[str, ModelFacts], list[Prepared]]:
        """Return what is found at once, and the presets whose headers are still unread."""
        found: dict[str, ModelFacts] = {}
        unread: list[Prepared] = []
        left = MOST_HEADERS
        for name, one in wanted.items():
            key = None if one is None else _key(one)
            if one is None or key is None:
                found[name] = ModelFacts()
            elif key in self._known:
                found[name] = self._known[key]
            elif left:
                left -= 1
                found[name] = self._read(one)
            else:
                found[name] = ModelFacts(*_of_files(key[0]))
                unread.append(one)
        return found, unread

    def _read_rest(self, unread: Iterable[Prepared]) -> None:
        for one in unread:
            if self._prepared.get(one.preset.id) is not one:
                continue  # a reload has changed it meanwhile
            try:
                self._read(one)
            except Exception as error:
                guard.report("facts", error)

    def _read(self, prepared: Prepared) -> ModelFacts:
        key = _key(prepared)
        if key is None:
            return ModelFacts()
        if key not in self._known:
            self._known[key] = _facts(prepared, *key)
        return self._known[key]


def _key(prepared: Prepared) -> _Key | None:
    """Return the versions of a preset's files, with its projector; None if a file is not there."""
    try:
        return identify(prepared.files), _projector(prepared)
    except LswapError:
        return None


def _of_files(files: Sequence[FileIdentity]) -> tuple[int, float, str]:
    """Return the size, the time of the last change and the digest."""
    size = sum(one.size for one in files)
    modified = max((one.mtime_ns for one in files), default=0) / 1e9
    return size, modified, hashlib.sha256(repr([tuple(one) for one in files]).encode()).hexdigest()


def _facts(prepared: Prepared, files: Sequence[FileIdentity], projector: str) -> ModelFacts:
    size, modified, digest = _of_files(files)
    inputs = _inputs(projector)
    try:
        header = open_header(prepared.preset.model)
    except LswapError:
        return ModelFacts(size, modified, digest, inputs=inputs)
    template = header.metadata.get("tokenizer.chat_template", "")
    template = template if isinstance(template, str) else ""
    return ModelFacts(
        size,
        modified,
        digest,
        header.architecture,
        _parameters(header),
        _quantization(header),
        header.integer("context_length"),
        template,
        _capabilities(prepared, header, template),
        {
            key: value
            for key, value in header.metadata.items()
            if not isinstance(value, ArrayInfo) and key != "tokenizer.chat_template"
        },
        inputs,
        _outputs(header),
    )


def _projector(prepared: Prepared) -> str:
    """Return the projector's file that a child is told of; empty where there is none."""
    return "" if prepared.preset.cmd is not None else projector_of(prepared.args)


def _inputs(projector: str) -> tuple[str, ...]:
    """Return what a model takes, as llama.cpp reads it from its projector (clip.cpp)."""
    if not projector:
        return _TEXT
    try:
        header = open_header(projector)
    except LswapError:
        return _TEXT
    return (*_TEXT, *(kind for key, kind in _ENCODERS.items() if header.metadata.get(key) is True))


def _outputs(header: Header) -> tuple[str, ...]:
    kind = header.metadata.get(f"{header.architecture}.decision.type")
    return ("decisions",) if kind in _DECISIONS else _TEXT


def _parameters(header: Header) -> str:
    """Return how many parameters a model has, as people say it: `8.2B`, `137M`."""
    count = float(sum(prod(tensor.shape) for tensor in header.tensors))
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= unit:
            return f"{count / unit:.1f}".removesuffix(".0") + name
    return f"{count:.0f}"


def _quantization(header: Header) -> str:
    value = header.metadata.get("general.file_type")
    if not isinstance(value, int):
        return "unknown"
    return _FILE_TYPES.get(value & ~_GUESSED) or "unknown"


def _capabilities(prepared: Prepared, header: Header, template: str) -> tuple[str, ...]:
    kind = kind_of(prepared.preset)
    if kind == "embedding" or header.architecture in _EMBEDS:
        return ("embedding",)
    if kind == "rerank":
        return ()
    found = ["completion"]
    if "tools" in template:
        found.append("tools")
    if any(key in header.metadata for key in _FILL_IN):
        found.append("insert")
    if any(mark in template for mark in _THINKS):
        found.append("thinking")
    return tuple(found)
