"""The arguments of `lswap up`, `check` and `estimate`: configuration files, folders, models."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from llamaswap_py.cli.init import choose_origin
from llamaswap_py.config.discovery import models_in
from llamaswap_py.config.load import Origin
from llamaswap_py.config.scan import scan_folder
from llamaswap_py.errors import ConfigError, LswapError
from llamaswap_py.hub.refs import HubRef, instead_of, parse_ref
from llamaswap_py.llamacpp.router_mode import CONTEXT
from llamaswap_py.storage.regular_files import open_regular
from llamaswap_py.units import parse_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_YAML: Final = (".yaml", ".yml")
_REFERENCE: Final = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(?::.+)?", re.ASCII)
_HUB: Final = ("hf:", "hf.co/", "huggingface.co/")
_HUB_HOSTS: Final = ("huggingface.co", "www.huggingface.co", "hf.co")
_HUB_FILE: Final = re.compile(r"([^/]+/[^/]+)/(?:blob|resolve)/[^/]+/(.+)")
_OTHER_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".ggml")
_MODEL_FILE: Final = b"GGUF"


@dataclass(slots=True)
class _Named:
    """The files, folders and models that the words name."""

    config: Path | None
    config_dir: Path | None
    models: list[Path]
    repositories: list[HubRef] = field(default_factory=list)


def origin_of(
    words: Sequence[str | Path],
    config_dir: Path | None = None,
    model_dirs: Sequence[Path] = (),
    *,
    keys: Path | None = None,
    allow_unauthenticated: bool = False,
    context: int | None = None,
) -> Origin:
    """Return the configuration that a command line names; the usual one if it names none.

    A GGUF file is a model. A folder is one of YAML files if it has any, else one of models.
    `user/repo` is a model of Hugging Face. The options overrule the file. Raises ConfigError for
    what is none of these, with what was probably meant.
    """
    named = _Named(None, config_dir, list(model_dirs))
    for word in words:
        _add(named, str(word))
    if named.repositories and not (named.config or named.config_dir or named.models):
        origin = Origin()
    else:
        origin = choose_origin(named.config, named.config_dir, tuple(named.models))
    said = _models(named.repositories)
    if keys is not None:
        said["keys"] = {"file": str(keys)}
    if allow_unauthenticated:
        said["allow_unauthenticated"] = True
    if context is not None:
        if origin.path is not None:
            remedy = f"write it into the file: `defaults: {{args: {{{CONTEXT}: {context}}}}}`"
            raise ConfigError("-c does not set the context here", where=origin.name, remedy=remedy)
        said["defaults"] = {"args": {CONTEXT: context}}
    return changed(origin, said=_yaml(said)) if said else origin


def origin_and_model(words: Sequence[str]) -> tuple[Origin, str | None]:
    """Return the configuration that words name, and its model if the last word is one."""
    *before, last = words or ("",)
    if not last or _names_a_place(last) or (not before and _REFERENCE.fullmatch(last)):
        return origin_of(words), None
    try:
        return origin_of(before), last
    except ConfigError:
        return origin_of(words), None  # raises the message about the word


def _names_a_place(word: str) -> bool:
    path = Path(word).expanduser()
    suffixes = (*_YAML, *_OTHER_WEIGHTS, ".gguf", ".ini")
    return path.exists() or path.suffix.lower() in suffixes or word.startswith(_HUB)


def options_said(
    config: Sequence[str], ctx_size: int | None = None
) -> tuple[list[str], int | None]:
    """Return the files that -c names, and the context: llama-server's -c is a number, or 16k."""
    said = [(word, int(word) if word.isdecimal() else parse_tokens(word)) for word in config]
    files = [word for word, tokens in said if tokens is None]
    numbers = [tokens for _, tokens in said if tokens is not None]
    return files, numbers[-1] if numbers else ctx_size


def _add(named: _Named, word: str) -> None:
    path = Path(word).expanduser()
    if word.startswith(_HUB) or "://" in word:
        named.repositories.append(_reference(word))
    elif path.is_dir():
        _add_folder(named, path)
    elif path.is_file():
        _add_file(named, path)
    elif path.suffix.lower() in _YAML:
        _add_config(named, path)  # reading it raises "not found"
    elif _REFERENCE.fullmatch(word) and not _is_path(word):
        named.repositories.append(_reference(word))
    elif ":" in word and "/" not in word:
        raise ConfigError("there is no such file or folder", where=word, remedy=instead_of(word))
    else:
        raise ConfigError(
            "there is no such file or folder",
            where=word,
            remedy="name a *.gguf or *.yaml file, a folder of them, or a repository of Hugging "
            "Face as hf:user/repo; `lswap import ollama` takes Ollama's models",
        )


def _is_path(word: str) -> bool:
    """Return whether a word like `models/x` is more likely a path than a repository."""
    repository, colon, _ = word.partition(":")
    return Path(repository).parent.is_dir() or (not colon and word.endswith(".gguf"))


def _add_folder(named: _Named, folder: Path) -> None:
    try:
        inside = [one.name for one in folder.iterdir() if not one.name.startswith(".")]
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"the folder cannot be read: {reason}", where=str(folder), remedy="check the path"
        ) from None
    if any(name.endswith(_YAML) for name in inside):
        if named.config_dir is not None:
            remedy = "name one folder, or a file and a folder"
            raise ConfigError(
                "two configuration folders are given", where=str(folder), remedy=remedy
            )
        named.config_dir = folder
    elif scan_folder(str(folder)).files:
        named.models.append(folder)
    else:
        raise ConfigError(
            "the folder has no *.gguf and no *.yaml file",
            where=str(folder),
            remedy=f"put models there and name it with --models-dir, or write a first file: "
            f"lswap init {folder / 'lswap.yaml'}",
        )


def _add_file(named: _Named, path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix == ".gguf" or _begins(path) == _MODEL_FILE:
        if not models_in([scan_folder(str(path))]):
            raise ConfigError(
                "this is only a part of a model (a projector, a draft head, a "
                "shard without the first)",
                where=str(path),
                remedy="name the model's first file: lswap finds its other files beside it",
            )
        named.models.append(path)
    elif suffix == ".ini":
        remedy = f"lswap import llama-cpp {path} -o lswap.yaml"
        raise ConfigError("this is a preset file of llama.cpp", where=str(path), remedy=remedy)
    elif suffix in _OTHER_WEIGHTS:
        raise ConfigError(
            "llama-server reads models in the GGUF format only",
            where=str(path),
            remedy="fetch a GGUF of the same model: lswap pull user/repo-GGUF --list",
        )
    else:
        _add_config(named, path)


def _add_config(named: _Named, path: Path) -> None:
    if named.config is not None:
        raise ConfigError(
            f"two configuration files are given: {named.config} and this",
            where=str(path),
            remedy="put both into a folder and name the folder: its *.yaml files are read as one",
        )
    named.config = path


def _begins(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(len(_MODEL_FILE))
    except OSError:  # reading it as a configuration says why
        return b""


def _reference(word: str) -> HubRef:
    """Return the repository of Hugging Face that a word or a page's address names."""
    if "://" in word:
        parts = urlsplit(word)
        if parts.hostname not in _HUB_HOSTS:
            raise ConfigError(
                "lswap does not download models from there",
                where=word,
                remedy="download the file yourself, then `lswap up FILE.gguf`; or name a repository"
                " of Hugging Face: `lswap up user/repo`",
            )
        path = unquote(parts.path).strip("/")
        file = _HUB_FILE.fullmatch(path)
        word = path if file is None else f"{file[1]}:{file[2]}"
    try:
        return parse_ref(word)
    except LswapError as error:
        raise ConfigError(error.message, remedy=error.remedy) from None


def _models(references: Sequence[HubRef]) -> dict[str, Any]:
    """Return the key `models` for repositories, under the names that `lswap pull` gives them."""
    found: dict[str, Any] = {}
    for ref in references:
        short = ref.repo.rpartition("/")[2].removesuffix("-GGUF").lower()
        name = next(name for name in (short, f"{short}-{ref.tag}", str(ref)) if name not in found)
        found[name] = {"hf": str(ref)}
    return {"models": found} if found else {}


def _yaml(keys: Mapping[str, Any]) -> str:
    """Return keys as a line of a configuration in which `${` is plain text."""
    return json.dumps(keys).replace("${", "$${") + "\n"
