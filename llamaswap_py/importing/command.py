"""Turns a llama-server command line into a preset. Pure.

If there is an engine, its table says how many values each option has. Else a word after an option
is its value, unless it begins with a dash and is not a number: llama-server does not have
positional arguments (common/arg.cpp).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from llamaswap_py.importing.draft import Draft
from llamaswap_py.llamacpp.env_variables import OPTION_PREFIX, RESERVED, option_of
from llamaswap_py.llamacpp.option_values import REPEATED
from llamaswap_py.llamacpp.options import (
    WITHOUT_LOSS,
    OptionTable,
    long_name,
    owned,
    plain_name,
    switched,
)
from llamaswap_py.llamacpp.path_options import PATH_LISTS, PATH_OPTIONS
from llamaswap_py.units import HOST

_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?", re.ASCII)
_VARIABLE: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_COMMENT: Final = re.compile(r"^[^\S\n]*#.*$", re.MULTILINE)
_CONTINUED: Final = re.compile(r"\\[^\S\n]*(?:\n|\Z)")
_SHARD: Final = re.compile(r"-\d{5}-of-\d{5}$")
_CARDS: Final = re.compile(r"[0-9]+(?:,[0-9]+)*")

OF_FIT: Final = ("fit", "fit-target", "fit-ctx")
"""The options that the key `fit` stands for."""
_NO_OPTION: Final = "left out: a word that belongs to no option"


def split_command(text: str) -> list[str]:
    """Split a command as a shell would; comment lines and line continuations are taken out.

    Raises ValueError for a quote that is not closed.
    """
    return shlex.split(_CONTINUED.sub(" \n", strip_comments(text)))


def strip_comments(text: str) -> str:
    """Return a command without its comment lines."""
    return _COMMENT.sub("", text)


def take_environment(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables in front of a command (`A=1 env B=2 prog …`), and the rest."""
    env: dict[str, str] = {}
    at = 0
    while at < len(words):
        if match := _VARIABLE.fullmatch(words[at]):
            env[match[1]] = match[2]
        elif words[at].rpartition("/")[2] not in ("env", "exec"):
            break
        at += 1
    return env, words[at:]


def is_llama_server(words: Sequence[str]) -> bool:
    """Tell whether a command runs llama-server itself, not a container or a script around it."""
    program = words[0].rpartition("/")[2].rpartition("\\")[2] if words else ""
    return program.startswith("llama-server") and not program.endswith((".sh", ".py"))


def pair_options(
    words: Sequence[str], table: OptionTable | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Yield (option as written, its values); with a `table` an option's value may begin with -."""
    at = 0
    while at < len(words):
        option, equals, value = words[at].partition("=")
        at += 1
        values = [value] if equals else []
        known = table.usable(plain_name(option)) if table is not None else None
        if known is not None and not equals and option.startswith("-"):
            values = list(words[at : at + known[0].values])
            at += len(values)
        while at < len(words) and _is_value(words[at]):
            values.append(words[at])
            at += 1
        yield option, values


def read_command(
    words: Sequence[str], env: Mapping[str, str], draft: Draft, place: str
) -> dict[str, Any]:
    """Return the preset that llama-server's `words` (the program first) describe.

    Words that a preset cannot express are noted in `draft`.
    """
    preset: dict[str, Any] = {}
    args: dict[str, Any] = {}
    extra: list[str] = []
    if "/" in words[0] or "\\" in words[0]:
        preset["engine"] = words[0]
    env = _take_variables(env, preset, args, draft, place)
    table = draft.table_for(str(preset.get("engine", "")))
    for option, values in pair_options(words[1:], table):
        if not option.startswith("-"):
            draft.note(place, _NO_OPTION, option)
        elif _take_key(option, values, preset, draft, place):
            for word in values[1:]:
                draft.note(place, _NO_OPTION, word)
        elif len(values) > 1:
            extra += [option, *values]
        else:
            _add(args, _name_in_args(option), values[0] if values else None)
    _take_hub(preset, args, draft, place)
    if args:
        preset["args"] = args
    if extra:
        preset["extra"] = extra
    _take_env(env, preset, draft, place)
    _take_fit(preset, args, draft, place)
    return _ordered(preset)


def name_of(preset: Mapping[str, Any]) -> str:
    """Return a name for a preset that has none: its first alias, else its file's stem."""
    if aliases := preset.get("aliases"):
        return str(aliases[0])
    source = str(preset.get("model") or preset.get("hf") or "model")
    stem = source.replace("\\", "/").rpartition("/")[2].removesuffix(".gguf")
    return _SHARD.sub("", stem) or "model"


def _take_key(
    option: str, values: list[str], preset: dict[str, Any], draft: Draft, place: str
) -> bool:
    """Carry over what is a key of the preset, or lswap's own; False: it is one of `args`."""
    name = long_name(option)
    value = values[0] if values else ""
    if name == "model":
        preset["model"] = value
    elif name == "alias":
        names = [each.strip() for each in value.split(",") if each.strip()]
        preset["aliases"] = list(dict.fromkeys([*preset.get("aliases", []), *names]))
    elif name == "sleep-idle-seconds":
        preset["sleep"] = "never" if value.startswith("-") else f"{value}s"
    elif name in OF_FIT:
        preset[f"__{name}"] = value
    elif name == "models-dir":
        draft.settings.setdefault("model_dirs", []).append(value)
    elif name == "models-max" and value.isdigit():
        draft.setting("policy", "max_loaded", int(value))
    elif name in ("hf-repo", "hf-file", "hf-token"):
        preset[f"__{name}"] = value
    elif name == "api-key":
        draft.note(place, "--api-key: clients' keys are lswap's: make them with `lswap key new`")
    elif name == "cache-ram":
        draft.note(f"{place}.--cache-ram", "one figure for all: `memory.cache_ram`", value)
    elif long_name(plain_name(option).removeprefix("no-")) == "webui":
        pass  # lswap has the one UI for all
    elif (mine := owned(option)) is not None:
        if plain_name(option).removeprefix("no-") not in WITHOUT_LOSS and name not in WITHOUT_LOSS:
            instead = "" if mine.instead.startswith("remove it") else f"; {mine.instead}"
            draft.note(f"{place}.{option}", f"left out: {mine.reason}{instead}", value)
    else:
        return False
    return True


def _take_hub(preset: dict[str, Any], args: dict[str, Any], draft: Draft, place: str) -> None:
    """Turn -hf into the key `hf`; a model file that is named too wins."""
    repo, file = preset.pop("__hf-repo", ""), preset.pop("__hf-file", "")
    if preset.pop("__hf-token", ""):
        draft.note(place, "--hf-token: not written down; set HF_TOKEN for lswap")
    if "model" in preset:
        if repo:
            draft.note(f"{place}.--hf-repo", "left out: a model file is named, too", repo)
        return
    if repo:
        preset["hf"] = f"{repo.partition(':')[0]}:{file}" if file else repo
    elif not args.get("model") and "model_dirs" not in draft.settings:
        draft.note(place, "names no model file: add `model:`")


def _take_fit(preset: dict[str, Any], args: Mapping[str, Any], draft: Draft, place: str) -> None:
    """Turn --fit, --fit-target and --fit-ctx into the key `fit`."""
    fit, target, least = (preset.pop(f"__{name}", None) for name in OF_FIT)
    if fit is not None and switched(fit) is False:
        preset["fit"] = "exact"
        return
    limits: dict[str, Any] = {}
    if least is not None and least.isdigit() and int(least):
        limits["context"] = {"least": int(least)}
    elif least is not None:
        draft.note(f"{place}.--fit-ctx", "left out: it is not a number of tokens", least)
    if target is not None:
        draft.margins[place] = target
        sizes = [f"{int(each)}MiB" for each in target.split(",") if each.strip().isdigit()]
        devices = _devices_of(preset, args)
        if devices and len(sizes) in (1, len(devices)):
            sizes *= len(devices) if len(sizes) == 1 else 1
            limits["margin"] = dict(zip(devices, sizes, strict=True))
        elif sizes:
            limits["margin"] = max(sizes, key=lambda size: int(size.removesuffix("MiB")))
            if len(set(sizes)) > 1:
                draft.note(f"{place}.--fit-target", "the largest counts for all devices", target)
    if limits:
        preset["fit"] = limits
    elif fit is not None:
        preset["fit"] = "auto"


def _devices_of(preset: Mapping[str, Any], args: Mapping[str, Any]) -> list[str]:
    """Return the devices that a preset is told to use, in their order; [] if it is told none."""
    said = preset.get("device") or args.get("device") or []
    return said.split(",") if isinstance(said, str) else list(said)


def _take_variables(
    env: Mapping[str, str], preset: dict[str, Any], args: dict[str, Any], draft: Draft, place: str
) -> dict[str, str]:
    """Carry over variables that set options, which the command's own words overrule.

    Return the other variables.
    """
    rest: dict[str, str] = {}
    for variable, value in env.items():
        if not variable.startswith(OPTION_PREFIX):
            rest[variable] = value
            continue
        name, positive = option_of(variable)
        if not positive:  # whatever its value
            args[f"no-{name}"] = True
        elif not _take_key(f"--{name}", [value], preset, draft, place):
            _add(args, name, value)
    return rest


def _take_env(env: Mapping[str, str], preset: dict[str, Any], draft: Draft, place: str) -> None:
    kept: dict[str, str] = {}
    for name, value in env.items():
        if name == "CUDA_VISIBLE_DEVICES" and _CARDS.fullmatch(value):
            cards = [f"CUDA{number}" for number in value.split(",")]
            preset["device"] = cards[0] if len(cards) == 1 else cards
        elif name == "CUDA_VISIBLE_DEVICES" and value in ("", "-1"):
            preset["device"] = HOST
        elif name == "CUDA_DEVICE_ORDER":
            continue  # lswap numbers cards by bus id, always
        elif name.startswith(tuple(RESERVED)):
            draft.note(place, f"the variable {name} is lswap's own")
        else:
            kept[name] = value
    if kept:
        preset["env"] = kept


def read_argument(text: str) -> bool | int | float | str:
    """Return an option's value in its best form for YAML."""
    if _NUMBER.fullmatch(text) and len(text) < 16:
        return float(text) if "." in text else int(text)
    return text


def _add(args: dict[str, Any], name: str, text: str | None) -> None:
    value = True if text is None else text if _is_path(name) else read_argument(text)
    same = next((each for each in args if long_name(each) == long_name(name)), name)
    if same != name:  # the same option in another spelling
        args[name] = args.pop(same)
    if name not in args or value is True:
        args[name] = value
    elif isinstance(args[name], list):
        args[name].append(value)
    elif long_name(name) in REPEATED:
        args[name] = [args[name], value]
    else:
        args[name] = value  # llama-server takes the last one


def _name_in_args(option: str) -> str:
    """Return an option's name for `args`: a long one as it was written, a short one's long name."""
    return plain_name(option) if option.startswith("--") else long_name(option)


def _is_path(name: str) -> bool:
    return long_name(name) in PATH_OPTIONS or long_name(name) in PATH_LISTS


def _is_value(word: str) -> bool:
    return not word.startswith("-") or word == "-" or _NUMBER.fullmatch(word) is not None


_ORDER: Final = (
    "model",
    "hf",
    "cmd",
    "ready",
    "stop_cmd",
    "engine",
    "args",
    "extra",
    "env",
    "device",
)


def _ordered(preset: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in _ORDER if name in preset]
    return {name: preset[name] for name in (*names, *(n for n in preset if n not in names))}
