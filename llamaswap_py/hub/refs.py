"""References like `user/repo:QUANT`, and the files of a repository that they name. Pure.

Without a tag the model is Q4_K_M, else Q8_0, else the first by path. Draft heads, projectors and
importance matrices are not models. `llamacpp/model_files.py` has llama.cpp's rules for names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from llamaswap_py.errors import LswapError
from llamaswap_py.gguf.shards import is_first_shard, shard_paths
from llamaswap_py.llamacpp.model_files import (
    HEADS,
    PREFERRED,
    PROJECTOR,
    bits_of,
    find_tagged,
    home_of,
    is_home,
    quant_of,
    sidecar_kind,
)

_REPO: Final = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)


class HubError(LswapError):
    """Raised if a repository, one of its files, or the hub itself cannot be reached or used."""


@dataclass(frozen=True, slots=True)
class HubRef:
    """A repository and the tag of a model in it: a quantization, a file name, or "" for none.

    `text` is its written form: `user/repo:Q4_K_M`.
    """

    repo: str
    tag: str = ""

    def __str__(self) -> str:
        return f"{self.repo}:{self.tag}" if self.tag else self.repo


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository; `sha256` is empty for small files that the hub does not hash."""

    path: str
    size: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Build:
    """One model of a repository: all shards of one quantization, in order."""

    quant: str
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        """The size of all its files, in bytes."""
        return sum(file.size for file in self.files)


def parse_ref(text: str) -> HubRef:
    """Read `user/repo`, `user/repo:TAG` or `hf.co/user/repo:TAG`; raises HubError.

    A tag is a quantization, or the path of a file.
    """
    bare = text.strip()
    for start in ("https://", "http://", "hf.co/", "huggingface.co/", "hf:"):
        bare = bare.removeprefix(start)
    repo, _, tag = bare.partition(":")
    repo = repo.rstrip("/").removesuffix("/tree/main")
    if not _REPO.fullmatch(repo) or ("/" in tag and not tag.endswith(".gguf")):
        raise HubError(f"{text!r} is not a repository", remedy=instead_of(bare))
    return HubRef(repo, tag)


def instead_of(text: str) -> str:
    """Return the remedy for a text that does not name a repository, such as a name of Ollama."""
    usual = "write user/repo or user/repo:QUANT"
    name, _, tag = text.partition(":")
    if "/" in name or not re.fullmatch(r"[a-z][\w.-]*", text.replace(":", "-")):
        return usual
    words = f"{name} {tag}".strip() if tag not in ("", "latest") else name
    found = f"https://huggingface.co/models?library=gguf&search={words.replace(' ', '+')}"
    if known := _known_repository(name, tag):
        command = f"lswap pull {known}"
    else:
        command = "lswap pull USER/REPO"
    return (
        f"this looks like a name of Ollama, but models come from Hugging Face: `{command}` "
        f"({found}); `lswap import ollama` takes over models that Ollama has downloaded"
    )


_OF_OLLAMA: Final = {
    "qwen3": "Qwen/Qwen3-{}-GGUF",
    "qwen2.5": "Qwen/Qwen2.5-{}-Instruct-GGUF",
    "qwen2.5-coder": "Qwen/Qwen2.5-Coder-{}-Instruct-GGUF",
    "gemma3": "ggml-org/gemma-3-{}-it-GGUF",
    "gpt-oss": "ggml-org/gpt-oss-{}-GGUF",
}
"""A name in Ollama's library -> the repository of the same model; `{}` stands for its size."""
_LOWER: Final = frozenset({"gemma3", "gpt-oss"})
_PARTLY: Final = {"30b": "30B-A3B", "235b": "235B-A22B"}


def _known_repository(name: str, tag: str) -> str:
    """Return the repository of a model of Ollama's library; "" if it is unknown."""
    if name not in _OF_OLLAMA or not re.fullmatch(r"[\d.]+b", tag):
        return ""
    size = (
        tag if name in _LOWER else _PARTLY.get(tag, tag.upper()) if name == "qwen3" else tag.upper()
    )
    return _OF_OLLAMA[name].format(size)


def builds_of(files: Iterable[HubFile]) -> list[Build]:
    """Return the models among a repository's files, smallest first.

    Sidecars and incomplete sets of shards are not models. If llama.cpp's rule takes every file for
    a sidecar, a less strict rule is used, because a model can have such a name.
    """
    by_path = {file.path: file for file in files}
    named = [path for path in by_path if path.lower().endswith(".gguf")]
    whole = [path for path in named if not sidecar_kind(path, strict=True)]
    found = []
    for path in whole or [path for path in named if not sidecar_kind(path)]:
        shards = shard_paths(path)
        if is_first_shard(path) and all(one in by_path for one in shards):
            found.append(Build(quant_of(path), tuple(by_path[one] for one in shards)))
    return sorted(found, key=lambda build: (build.size, build.files[0].path))


def projector_of(files: Iterable[HubFile], model: str = "") -> HubFile | None:
    """Return the projector for a model: from the nearest folder, F16 if there is one.

    `model` is the path of its first file.
    """
    found = _beside(files, model, PROJECTOR)
    found.sort(
        key=lambda file: (
            -len(home_of(file.path)),
            quant_of(file.path) not in ("F16", "FP16"),
            file.size,
            file.path,
        )
    )
    return found[0] if found else None


def heads_of(files: Iterable[HubFile], model: str) -> dict[str, HubFile]:
    """Return the draft heads for a model, by the value of `spec-type` that uses them.

    Among several it prefers the nearest folder, then the model's own quantization, then the nearest
    number of bits (find_best_sibling in common/download.cpp).
    """
    files, quant = list(files), quant_of(model)
    heads = {}
    for kind in HEADS:
        found = _beside(files, model, kind)
        found.sort(
            key=lambda file: (
                -len(home_of(file.path)),
                quant_of(file.path) != quant,
                abs(bits_of(quant_of(file.path)) - bits_of(quant)),
                file.path,
            )
        )
        if found:
            heads[kind] = found[0]
    return heads


def _beside(files: Iterable[HubFile], model: str, kind: str) -> list[HubFile]:
    return [
        file
        for file in files
        if file.path.lower().endswith(".gguf")
        and sidecar_kind(file.path, strict=True) == kind
        and is_home(home_of(file.path), model)
    ]


def choose(ref: HubRef, builds: Sequence[Build]) -> Build:
    """Return the model that `ref` names; raises HubError, which lists the repository's models."""
    if not builds:
        raise HubError(
            f"{ref.repo} has no GGUF model",
            remedy="look for a repository of the same model whose name ends in -GGUF",
        )
    by_path = sorted(builds, key=lambda build: build.files[0].path)
    told = [(build.quant, build.files[0].path) for build in by_path]
    for tag in (ref.tag,) if ref.tag else PREFERRED:
        if (found := find_tagged(tag, told)) is not None:
            return by_path[found]
    if not ref.tag:
        return by_path[0]
    names = [build.quant or build.files[0].path for build in builds]
    raise HubError(f"{ref.repo} has no {ref.tag}", remedy=f"it has {', '.join(names)}")
