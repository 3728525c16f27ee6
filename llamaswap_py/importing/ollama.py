"""Turns Ollama's manifests into a draft; its blobs are used in place, not copied. Pure.

Layout (Ollama's types/model and server/manifest.go): `manifests/HOST/NAMESPACE/MODEL/TAG` holds a
JSON manifest. Its layers name blobs `blobs/sha256-…` by media type.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from llamaswap_py.importing.draft import Draft

_MEDIA: Final = "application/vnd.ollama.image."
_HOST: Final = "registry.ollama.ai"
# Ollama's parameter -> llama-server's option, or a default of requests (OpenAI's and its names).
_OPTIONS: Final = {
    "num_ctx": "ctx-size",
    "num_batch": "batch-size",
    "num_gpu": "n-gpu-layers",
    "num_thread": "threads",
    "main_gpu": "main-gpu",
    "num_keep": "keep",
}
# Parameter -> its value that needs no option, because llama-server does the same by itself.
_USUAL: Final[dict[str, Any]] = {
    "num_gpu": -1,
    "num_thread": 0,
    "main_gpu": 0,
    "use_mmap": True,
    "use_mlock": False,
    "numa": False,
    "low_vram": False,
    "f16_kv": True,
    "vocab_only": False,
    "num_predict": -1,
}
_REQUEST: Final = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
    "seed": "seed",
    "stop": "stop",
    "num_predict": "max_tokens",
}


@dataclass(frozen=True, slots=True)
class OllamaManifest:
    """One model of an Ollama folder: `parts` are the folders and the file below `manifests/`."""

    parts: tuple[str, ...]
    text: str


def read_ollama(
    manifests: Iterable[OllamaManifest],
    blob: Callable[[str], str],
    read_blob: Callable[[str], str | None],
) -> Draft:
    """Return the draft of all manifests.

    `blob(digest)` is a blob's path; `read_blob(digest)` the text of a small one, None without it.
    """
    draft = Draft()
    for manifest in manifests:
        place = "/".join(manifest.parts)
        name = _name(manifest.parts)
        try:
            layers = json.loads(manifest.text)["layers"]
            found = [(str(each["mediaType"]), str(each["digest"])) for each in layers]
        except (ValueError, KeyError, TypeError):
            draft.note(place, "this manifest cannot be read")
            continue
        if preset := _preset(name, found, blob, read_blob, draft):
            draft.models[name] = preset
    return draft


def _name(parts: tuple[str, ...]) -> str:
    """Return a model's name as `ollama list` shows it, without `:latest`."""
    *folders, tag = parts
    if folders[:2] == [_HOST, "library"]:
        folders = folders[2:]
    elif folders[:1] == [_HOST]:
        folders = folders[1:]
    return "/".join(folders) + ("" if tag == "latest" else f":{tag}")


def _preset(
    name: str,
    layers: list[tuple[str, str]],
    blob: Callable[[str], str],
    read_blob: Callable[[str], str | None],
    draft: Draft,
) -> dict[str, Any] | None:
    models = [digest for kind, digest in layers if kind == _MEDIA + "model"]
    if not models:
        draft.note(name, "has no GGUF file (a model of another format, or of Ollama's cloud)")
        return None
    preset: dict[str, Any] = {"model": blob(models[0])}
    args: dict[str, Any] = {}
    for kind, digest in layers:
        what = kind.removeprefix(_MEDIA)
        if what == "projector":
            args["mmproj"] = blob(digest)
        elif what == "adapter":
            args["lora"] = [*args.get("lora", []), blob(digest)]
        elif what == "params":
            _params(name, read_blob(digest), args, preset, draft)
        elif what == "system":
            draft.note(name, "its system prompt is not carried over: let the client send one")
        elif what == "template":
            args["jinja"] = True  # the file's own template: Ollama's are in another language
        elif what == "messages":
            draft.note(name, "its example messages are not carried over")
    if len(models) > 1:
        draft.note(name, "has several model files; the first is used")
    if args:
        preset["args"] = args
    return preset


def _params(
    name: str, text: str | None, args: dict[str, Any], preset: dict[str, Any], draft: Draft
) -> None:
    try:
        params = json.loads(text or "")
    except ValueError:
        draft.note(name, "its parameters cannot be read")
        return
    if not isinstance(params, dict):
        return
    defaults: dict[str, Any] = {}
    for key, value in params.items():
        if value is None or (key in _USUAL and value == _USUAL[key]):
            continue
        if key in _OPTIONS:
            args[_OPTIONS[key]] = value
        elif key in _REQUEST:
            defaults[_REQUEST[key]] = value
        elif key == "use_mmap":
            args["no-mmap"] = True
        elif key == "use_mlock":
            args["mlock"] = True
        elif key == "numa":
            args["numa"] = "distribute"
        else:
            draft.note(name, f"its parameter {key} has no counterpart", _said(value))
    if defaults:
        preset["request"] = {"default": defaults}


def _said(value: Any) -> str:
    """Return a parameter's value as Ollama's own files write it."""
    return value if isinstance(value, str) else json.dumps(value)
