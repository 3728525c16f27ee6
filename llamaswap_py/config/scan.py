"""The scan of a folder of models: which GGUF files are below it."""

from __future__ import annotations

import os
from typing import Final

from llamaswap_py.config.discovery import Folder, GgufFile
from llamaswap_py.units import is_utf8

_DEEPEST: Final = 6
"""How many levels of folders are read: LM Studio needs two, the cache of Hugging Face four."""
_MOST: Final = 20_000
"""How many files and folders are read; if there are more, it is probably the root of a disk."""


def scan_folder(path: str) -> Folder:
    """Return the GGUF files below `path`; links are followed. Never raises.

    Hidden folders are skipped, and folders below `path` that cannot be read. So are names that are
    not UTF-8, which are listed in `skipped`. `path` may also be the file of one model.
    """
    path = os.path.normpath(path)
    if not is_utf8(path):
        return Folder(path, problem="the name of this folder is not UTF-8: rename it")
    if os.path.isfile(path):
        return _single(path)
    try:
        os.scandir(path).close()
    except OSError as error:
        return Folder(path, problem=error.strerror or str(error))
    files: list[GgufFile] = []
    skipped: list[str] = []
    visited: set[str] = set()
    looked = 0
    for folder, inside, names in os.walk(path, followlinks=True):
        looked += len(names) + 1
        deep = folder[len(path) :].count(os.sep)
        real = os.path.realpath(folder)
        if looked > _MOST or real in visited:
            inside.clear()
            continue
        visited.add(real)
        skipped += [os.path.join(folder, name) for name in inside if not is_utf8(name)]
        skipped += [os.path.join(folder, name) for name in names if _is_unnameable(name)]
        inside[:] = [
            one
            for one in sorted(inside)
            if not one.startswith(".") and deep < _DEEPEST and is_utf8(one)
        ]
        files += [
            file
            for name in names
            if _is_model(name) and (file := _file(os.path.join(folder, name)))
        ]
    files.sort(key=lambda file: file.path)
    return Folder(path, tuple(files), skipped=tuple(sorted(skipped)))


def _is_model(name: str) -> bool:
    return name.endswith(".gguf") and is_utf8(name)


def _is_unnameable(name: str) -> bool:
    return name.endswith(".gguf") and not is_utf8(name)


def _single(path: str) -> Folder:
    """Return one model's file, with those beside it: shards, a projector, a draft."""
    folder = os.path.dirname(path)
    try:
        names = [name for name in os.listdir(folder or ".") if _is_model(name)]
    except OSError:  # the file can be readable in a folder that cannot be listed
        names = []
    paths = {path, *(os.path.join(folder, name) for name in names)}
    return Folder(path, tuple(filter(None, map(_file, sorted(paths)))), single=True)


def _file(path: str) -> GgufFile | None:
    try:
        status = os.stat(path)
    except OSError:  # a link that leads nowhere
        return None
    if not os.path.isfile(path):
        return None
    return GgufFile(path, os.path.realpath(path), status.st_size, status.st_mtime_ns)
