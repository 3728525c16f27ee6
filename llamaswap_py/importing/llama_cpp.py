"""llama.cpp's preset files (--models-preset, common/preset.cpp) -> a draft. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from llamaswap_py.config.options import long_name
from llamaswap_py.errors import ConfigError
from llamaswap_py.importing.command import read_command
from llamaswap_py.importing.draft import Draft

_HEADER: Final = re.compile(r"\[[ \t]*([^\]]+?)[ \t]*\][ \t]*(?:[;#].*)?")
_ENTRY: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*(.*?)[ \t]*", re.DOTALL)
_COMMENT: Final = re.compile(r"[ \t]*[;#].*", re.DOTALL)  # wherever it stands, also in a value
_HUB: Final = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")
_TRUE: Final = frozenset({"on", "enabled", "true", "1"})
_FALSE: Final = frozenset({"off", "disabled", "false", "0"})
# Switches of llama-server; of other options `true` or `1` is a value.
_SWITCHES: Final = frozenset(
    {"jinja", "mmap", "mlock", "kv-offload", "kv-unified", "embeddings", "reranking", "warmup"}
    | {"cont-batching", "repack", "op-offload", "swa-full", "cache-prompt", "context-shift"}
    | {"webui", "offline", "check-tensors", "cpu-moe", "props", "direct-io", "mmproj-auto"}
    | {"mmproj-offload", "prefill-assistant", "special", "perf", "escape", "metrics", "slots"}
)
_ONLY_ON: Final = frozenset(
    {"mlock", "embeddings", "reranking", "check-tensors", "cpu-moe", "offline", "special"}
    | {"swa-full", "metrics", "props"}
)
"""Switches of those without a negative form: off is what they are anyway."""

_OF_ROUTER: Final = {"version", "dedup-cache-models"}
"""Lines that say nothing of a model. `version` begins a file: it stands above every section."""


def read_ini(text: str, source: str) -> Draft:
    """Return the draft of an INI file; `source` names it in errors.

    Raises ConfigError naming the line.
    """
    draft = Draft()
    for section, options in _sections(text, source).items():
        if section == "*":
            _take_defaults(options, draft)
        elif section not in ("", "default") or _names_file(options):
            _take_preset(section or "default", options, draft)
        elif options.keys() - _OF_ROUTER:
            given = ", ".join(options.keys() - _OF_ROUTER)
            draft.note("[default]", f"names no model file, and is left out: {given}")
    return draft


def _names_file(options: Iterable[str]) -> bool:
    return any(long_name(_option(key)) in ("model", "hf-repo") for key in options)


def _sections(text: str, source: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    section = ""
    for number, line in _logical_lines(text):
        if match := _HEADER.fullmatch(line):
            section = match[1]
            found.setdefault(section, {})
        elif match := _ENTRY.fullmatch(_COMMENT.sub("", line)):
            found.setdefault(section, {})[match[1]] = match[2]
        else:
            where = f"{source}:{number}"
            raise ConfigError("not a line of a preset file", where=where, remedy="[NAME] or a = b")
    return found


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number, line) without blank and comment lines; `\\` at the end joins the next."""
    begun, number = "", 0
    for at, line in enumerate(text.splitlines(), 1):
        number = number if begun else at
        begun += line
        if begun.endswith("\\"):
            begun = begun[:-1] + "\n"
            continue
        stripped = begun.strip()
        begun = ""
        if stripped and stripped[0] not in ";#":
            yield number, stripped


def _take_defaults(options: dict[str, str], draft: Draft) -> None:
    preset = _preset("[*]", options, draft)
    preset.pop("model", None)
    if preset:
        draft.settings["defaults"] = preset


def _take_preset(name: str, options: dict[str, str], draft: Draft) -> None:
    if not _names_file(options):
        if not _HUB.fullmatch(name):
            draft.note(f"[{name}]", "names no model file: add `model:`")
        else:
            options = {"hf-repo": name, **options}
    draft.models[name] = _preset(f"[{name}]", options, draft)


def _preset(place: str, options: dict[str, str], draft: Draft) -> dict[str, Any]:
    words = ["llama-server"]
    keys: dict[str, Any] = {}
    for key, value in options.items():
        option = _option(key)
        if option in _OF_ROUTER:
            continue
        if option == "load-on-startup":
            keys |= {"preload": True} if value.lower() in _TRUE else {}
        elif option == "stop-timeout":
            keys["stop_timeout"] = f"{value}s"
        else:
            words += _words(option, value)
    quiet = Draft()
    preset = read_command(words, {}, quiet, place)
    draft.notes += [note for note in quiet.notes if "names no model" not in note.text]
    return preset | keys


def _option(key: str) -> str:
    """Return an option's name; keys may be environment variables (LLAMA_ARG_CTX_SIZE)."""
    if key.startswith("LLAMA_ARG_"):
        return long_name(key.removeprefix("LLAMA_ARG_").lower())
    return long_name(key)


def _words(option: str, value: str) -> list[str]:
    if option.removeprefix("no-") in _SWITCHES and value.lower() in _TRUE | _FALSE:
        if value.lower() in _TRUE:
            return [f"--{option}"]
        if option.startswith("no-"):
            return [f"--{option[3:]}"]
        return [] if option in _ONLY_ON else [f"--no-{option}"]
    return [f"--{option}={value}"]
