"""`user/repo:QUANT`: what it names, and which files of a repository that is. Pure.

The rules are llama.cpp's (common/download.cpp): without a tag Q4_K_M, else Q8_0, else the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from llamaswap_py.errors import LswapError
from llamaswap_py.gguf.shards import is_first_shard, shard_paths

_REPO: Final = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)
_QUANT: Final = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]+)*|BF16|F16|F32|FP16|MXFP4(?:_MOE)?|TQ[12]_0))"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_PREFERRED: Final = ("Q4_K_M", "Q8_0")


class HubError(LswapError):
    """Raised when a repository, a file of it, or the hub itself cannot be had."""


@dataclass(frozen=True, slots=True)
class HubRef:
    """A repository, and which of its models: a quantisation, a file name, or "" for lswap's choice.

    `text` is how it is written: `user/repo:Q4_K_M`.
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
    """One model of a repository: all shards of one quantisation, first one first."""

    quant: str
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)


def parse_ref(text: str) -> HubRef:
    """Read `user/repo`, `user/repo:TAG` or `hf.co/user/repo:TAG`; raises HubError."""
    bare = text.strip()
    for start in ("https://", "http://", "hf.co/", "huggingface.co/", "hf:"):
        bare = bare.removeprefix(start)
    repo, _, tag = bare.partition(":")
    repo = repo.rstrip("/").removesuffix("/tree/main")
    if not _REPO.fullmatch(repo) or "/" in tag.rpartition("/")[0]:
        raise HubError(f"{text!r} names no repository", remedy="write user/repo or user/repo:QUANT")
    return HubRef(repo, tag)


def quant_of(path: str) -> str:
    """Return the quantisation that a file name tells, in capitals; empty when it tells none."""
    folder, _, name = path.rpartition("/")
    found = _QUANT.findall(name) or _QUANT.findall(folder)
    return str(found[-1]).upper() if found else ""


def builds_of(files: Iterable[HubFile]) -> list[Build]:
    """Return the models among a repository's files, smallest first.

    Projectors, importance matrices and incomplete sets of shards are no models.
    """
    by_path = {file.path: file for file in files}
    found = []
    for path in by_path:
        if not path.lower().endswith(".gguf") or is_projector(path) or "imatrix" in path.lower():
            continue
        shards = shard_paths(path)
        if is_first_shard(path) and all(one in by_path for one in shards):
            found.append(Build(quant_of(path), tuple(by_path[one] for one in shards)))
    return sorted(found, key=lambda build: (build.size, build.files[0].path))


def is_projector(path: str) -> bool:
    """Tell whether a file is a multimodal projector rather than a model."""
    return path.lower().endswith(".gguf") and "mmproj" in path.rpartition("/")[2].lower()


def projector_of(files: Iterable[HubFile]) -> HubFile | None:
    """Return the projector to take: F16 where there is one, else the smallest."""
    found = [file for file in files if is_projector(file.path)]
    found.sort(key=lambda file: (quant_of(file.path) not in ("F16", "FP16"), file.size, file.path))
    return found[0] if found else None


def choose(ref: HubRef, builds: Sequence[Build]) -> Build:
    """Return the model that `ref` names; raises HubError with what there is."""
    if not builds:
        raise HubError(
            f"{ref.repo} has no GGUF model",
            remedy="look for a repository of the same model whose name ends in -GGUF",
        )
    if not ref.tag:
        for quant in _PREFERRED:
            if found := [build for build in builds if build.quant == quant]:
                return found[0]
        return builds[0]
    wanted = ref.tag.lower()
    for build in builds:
        if build.files[0].path.lower() == wanted or build.quant.lower() == wanted:
            return build
    for build in builds:  # the way people write it: a part of the name
        if build.files[0].path.rpartition("/")[2].lower().removesuffix(".gguf").endswith(wanted):
            return build
    names = [build.quant or build.files[0].path for build in builds]
    raise HubError(f"{ref.repo} has no {ref.tag}", remedy=f"it has {', '.join(names)}")
