"""Read the headers of model files, and tell one version of a file from another."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from llamaswap_py.config.sections import Preset
from llamaswap_py.estimate.types import EstimateError
from llamaswap_py.gguf import GgufError, Header, read_header, shard_paths
from llamaswap_py.llamacpp.embedding_models import Trained, embeds, read_trained, whole_batch
from llamaswap_py.storage.regular_files import open_regular


class FileIdentity(NamedTuple):
    """The identity of a file: if any of these values changes, it counts as another file."""

    path: str
    size: int
    mtime_ns: int
    inode: int


def identify(paths: Iterable[str]) -> tuple[FileIdentity, ...]:
    """Return the identity of every file; raises EstimateError for one that is not there."""
    found = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise EstimateError(f"{path}: {error.strerror}", remedy="check the path") from error
        found.append(FileIdentity(path, status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(found)


def open_header(path: str) -> Header:
    """Return one file's header; raises EstimateError when it cannot be read or is not a GGUF.

    It is read again only when the file has changed: the vocabulary makes that 0.2 s of work.
    """
    return _read_header(*identify([path]))


@lru_cache(maxsize=16)
def _read_header(identity: FileIdentity) -> Header:
    path = identity.path
    try:
        with open_regular(path) as file:
            descriptor = file.fileno()
            size = os.fstat(descriptor).st_size
            return read_header(lambda at, count: os.pread(descriptor, count, at), size)
    except OSError as error:
        raise EstimateError(f"{path}: {error.strerror}", remedy="check the path") from error
    except GgufError as error:
        raise EstimateError(f"{path} {error.message}", remedy=error.remedy) from error


def open_headers(model: str) -> tuple[Header, ...]:
    """Read the headers of a model's every shard."""
    return tuple(open_header(path) for path in shard_paths(model))


def with_whole_batch(preset: Preset, *, ranks_whole: bool = False) -> Preset:
    """Return an embedding model or a reranker with a batch that takes its longest input.

    `ranks_whole` is as in embedding_models.splits().
    """
    if not embeds(preset):
        return preset
    try:
        header = open_header(preset.model)
    except EstimateError:
        trained = Trained()  # the load itself reports a broken file
    else:
        trained = read_trained(header.architecture, header.metadata)
    batch = whole_batch(preset, trained, ranks_whole=ranks_whole)
    return msgspec.structs.replace(preset, args={**preset.args, **batch})


def use_of(model: str) -> str:
    """Return the option that a model file asks for by its pooling: `embeddings`, `reranking`.

    "" for a model that generates text, and for a file that cannot be read.
    """
    try:
        header = open_header(model)
    except EstimateError:
        return ""
    pooling = read_trained(header.architecture, header.metadata).pooling
    return {"": "", "none": "", "rank": "reranking"}.get(pooling, "embeddings")


def file_sizes(paths: Iterable[str]) -> int:
    """Return the bytes of all files together; `a.gguf:0.5` is an adapter with its scale."""
    return sum(one.size for one in identify(_unscaled(path) for path in paths))


def _unscaled(path: str) -> str:
    stem, _, scale = path.rpartition(":")
    return stem if stem and not os.path.exists(path) and scale.replace(".", "").isdigit() else path


def cpu_flags() -> frozenset[str]:
    """Return this CPU's features as Linux names them; empty where that cannot be read."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()
