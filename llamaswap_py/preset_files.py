"""The files that a preset reads, and what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from llamaswap_py.config.argv import PresetProblem
from llamaswap_py.config.records import Config, Preset
from llamaswap_py.gguf.shards import shard_paths

_FILE_OPTIONS = (
    *("mmproj", "model-draft", "lora", "control-vector"),
    *("grammar-file", "json-schema-file", "chat-template-file"),
)
_MAGIC = b"GGUF"
PUT_IT_THERE = "check the path, or put the file there"


def model_files(preset: Preset) -> tuple[str, ...]:
    """Return every file a load reads: all shards of the model, projector, draft, adapters."""
    files = list(shard_paths(preset.model)) if preset.model else []
    for option in _FILE_OPTIONS:
        value = preset.args.get(option)
        if isinstance(value, str):
            files.append(value)
        elif isinstance(value, tuple):
            files += [str(one) for one in value]
    return tuple(files)


def file_problems(preset: Preset, files: Sequence[str], config: Config) -> list[PresetProblem]:
    """Return which of a preset's `files` cannot be read, and why; blocks."""
    shards, id = shard_paths(preset.model), preset.id
    places = {file: "model" if file in shards else "args" for file in files}
    reasons = {file: _unreadable(file, gguf=file in shards) for file in files}
    return [
        PresetProblem(id, config.where(f"models.{id}.{place}"), f"{file}: {reason}", PUT_IT_THERE)
        for file, place in places.items()
        if (reason := reasons[file])
    ]


def _unreadable(path: str, *, gguf: bool) -> str:
    try:  # as few system calls as it takes: a file of presets may name thousands
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            head = os.read(fd, len(_MAGIC))
        finally:
            os.close(fd)
    except IsADirectoryError:
        return "this is a folder, not a file"
    except FileNotFoundError:
        return "there is no such file"
    except OSError as error:
        return error.strerror or str(error)
    if gguf and head != _MAGIC:
        return "this is no GGUF file (it does not begin with GGUF)"
    return ""
