"""The files that a preset reads, and what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from llamaswap_py.config.argv import PresetProblem, place_of
from llamaswap_py.config.records import Config, Preset
from llamaswap_py.gguf.shards import shard_paths
from llamaswap_py.storage.files import read_regular

_FILE_OPTIONS = ("mmproj", "model-draft", "grammar-file", "json-schema-file", "chat-template-file")
_LIST_OPTIONS = ("lora", "control-vector")
_SCALED_OPTIONS = ("lora-scaled", "control-vector-scaled")
_FOLDER_OPTIONS = ("media-path", "slot-save-path")
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
    return (*shards, *(file for file, _ in _named(preset)))


def _named(preset: Preset) -> Iterator[tuple[str, str]]:
    """Yield each file that an option names, and the option."""
    for option in (*_FILE_OPTIONS, *_LIST_OPTIONS, *_SCALED_OPTIONS):
        value = preset.args.get(option)
        for text in value if isinstance(value, tuple) else (value,):
            if not isinstance(text, str):
                continue
            for file in [text] if option in _FILE_OPTIONS else text.split(","):
                yield file.rpartition(":")[0] if option in _SCALED_OPTIONS else file, option


def file_problems(preset: Preset, files: Sequence[str], config: Config) -> list[PresetProblem]:
    """Return which of a preset's `files` cannot be read, and why; blocks."""
    shards, id = shard_paths(preset.model), preset.id
    options = {file: f"args.{option}" for file, option in _named(preset)}
    reasons = {file: _unreadable(file, gguf=file in shards) for file in files}
    found = [
        (options.get(file, "model"), f"{file}: {reason}", _REMEDIES.get(reason, PUT_IT_THERE))
        for file, reason in reasons.items()
        if reason
    ]
    for option in _FOLDER_OPTIONS:
        folder = preset.args.get(option)
        if isinstance(folder, str) and not os.path.isdir(folder):
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
