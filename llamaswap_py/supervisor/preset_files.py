"""The files that a preset reads, and what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from llamaswap_py.config.argv import PresetProblem, place_of
from llamaswap_py.config.sections import Config, Preset
from llamaswap_py.gguf.shards import shard_paths
from llamaswap_py.llamacpp.path_options import files_named, folders_named
from llamaswap_py.storage.regular_files import read_regular

_MAGIC = b"GGUF"
PUT_IT_THERE = "check the path, or put the file there"
_NO_GGUF = "this is not a GGUF file (it does not begin with GGUF)"
_MAKE_IT = "make the folder, or correct the path"
_REMEDIES = {
    "this is a folder, not a regular file": "name a file in it, or use model_dirs for the folder",
    _NO_GGUF: "download it again, or check the path",
}
FILE_REMEDIES = frozenset((PUT_IT_THERE, _MAKE_IT, *_REMEDIES.values()))
"""The remedies of everything that is said of files: it may be mended without lswap."""


def model_files(preset: Preset) -> tuple[str, ...]:
    """Return every file a load reads: all shards of the model, projector, draft, adapters."""
    shards = shard_paths(preset.model) if preset.model else ()
    return (*shards, *(file for file, _ in files_named(preset)))


def file_problems(preset: Preset, files: Sequence[str], config: Config) -> list[PresetProblem]:
    """Return which of a preset's `files` cannot be read, and why; blocks."""
    shards, id = shard_paths(preset.model), preset.id
    options = {file: f"args.{option}" for file, option in files_named(preset)}
    reasons = {file: _unreadable(file, gguf=file in shards) for file in files}
    found = [
        (options.get(file, "model"), f"{file}: {reason}", _REMEDIES.get(reason, PUT_IT_THERE))
        for file, reason in reasons.items()
        if reason
    ]
    for folder, option in folders_named(preset):
        if not os.path.isdir(folder):
            found.append((f"args.{option}", f"{folder}: there is no such folder", _MAKE_IT))
    return [
        PresetProblem(id, config.where(place_of(config, preset, key)), message, remedy)
        for key, message, remedy in found
    ]


def _unreadable(path: str, *, gguf: bool) -> str:
    try:
        head = read_regular(path, len(_MAGIC))
    except FileNotFoundError:
        return "there is no such file"
    except OSError as error:
        return error.strerror or str(error)
    if gguf and head != _MAGIC:
        return _NO_GGUF
    return ""
