"""llama-swap's config.yaml -> a draft. Pure.

Keys and meanings as its documentation describes them (config.example.yaml and config-schema.json of
that project). Each key is carried over, translated, or named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llamaswap_py.errors import ConfigError
from llamaswap_py.importing.command import (
    is_llama_server,
    read_command,
    split_command,
    strip_comments,
    take_environment,
)
from llamaswap_py.importing.draft import Draft
from llamaswap_py.importing.macros import Macros
from llamaswap_py.importing.programs import read_program
from llamaswap_py.importing.requests import take_filters, take_metadata
from llamaswap_py.importing.routing import take_routing

_WORDS: Final = "no counterpart in lswap"
_LEFT_OUT: Final = "left out: lswap does without"
# Keys of the file that are not carried over -> what to say of them.
_TOP: Final[dict[str, str]] = {
    **dict.fromkeys(
        ("logTimeFormat", "metricsMaxInMemory", "ui", "performance", "startPort"), _LEFT_OUT
    ),
    "logToStdout": "`lswap logs MODEL` and `log.dir` have the children's output",
    "store": _WORDS,
    "captureBuffer": "`capture: on` stores prompts and answers, in files",
    "sendLoadingState": "waiting streams get SSE comments with progress and ETA (`waiting.notice`)",
    "apiKeys": "lswap keeps only hashes of keys: make each with `lswap key new`, name the file in"
    " `keys: {file: keys.yaml}`; until then no key is asked for",
    "tailcat": _WORDS,
    "upstream": "/upstream/MODEL/… never loads a model for browser assets",
    "profiles": _WORDS + "; see `aliases`",
}
_READ: Final = frozenset(
    {"macros", "models", "hooks", "groups", "matrix", "routing", "selectors", "globalTTL"}
    | {"unloadTimeout", "logLevel", "healthCheckTimeout", "peers", "$schema"}
    | {"includeAliasesInList"}
)
_DEFAULTS: Final[dict[str, Any]] = {"logToStdout": "proxy", "captureBuffer": 0}
"""Values of keys that say nothing: what lswap does, too."""
_MODEL: Final[dict[str, str]] = {
    "sendLoadingState": "waiting streams get SSE comments with progress and ETA (`waiting.notice`)",
    "timeouts": "not needed: models run on this machine; hung ones are restarted (`liveness`)",
    "capabilities": "lswap reads this from the model file; for other programs it is not known",
    "compat": "an open WebSocket holds its model",
}
_MODEL_READ: Final = frozenset(
    {"macros", "cmd", "cmdStop", "name", "description", "env", "proxy", "aliases", "checkEndpoint"}
    | {"ttl", "unloadTimeout", "useModelName", "filters", "metadata", "concurrencyLimit"}
    | {"unlisted"}
)
_LEVELS: Final = {"warn": "warning"}
_LOAD_STALL: Final = 300
"""Seconds without progress after which lswap gives up a load, if the file says nothing."""


def read_llama_swap(root: Any, environment: Mapping[str, str], draft: Draft | None = None) -> Draft:
    """Return the draft of a parsed config.yaml; `environment` fills `${env.NAME}`.

    `draft` is an empty one that knows the engines of the machine. Raises ConfigError when it is no
    such file.
    """
    models = root.get("models") if isinstance(root, dict) else None
    if not isinstance(models, dict):
        raise ConfigError(
            "this is not a llama-swap configuration: it has no `models`",
            remedy="name its config.yaml",
        )
    draft = draft or Draft()
    macros = Macros(_table(root.get("macros")), environment, draft, "macros")
    for name, each in models.items():
        own = macros.inside(f"models.{name}", _table(_table(each).get("macros")))
        own.values = {**own.values, "MODEL_ID": str(name)}
        draft.models[str(name)] = _model(str(name), own.expand(_without_comments(each)), draft)
    top = {name: value for name, value in root.items() if name not in ("models", "macros")}
    _settings(macros.expand(top), draft)
    return draft


def _without_comments(model: Any) -> dict[str, Any]:
    """Return a model's keys, without macros, and commands without comments that may name some."""
    found = {key: value for key, value in _table(model).items() if key != "macros"}
    for key in {"cmd", "cmdStop"} & found.keys():
        if isinstance(found[key], str):
            found[key] = strip_comments(found[key])
    return found


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _settings(root: dict[str, Any], draft: Draft) -> None:
    for name, value in root.items():
        says = _says(value) and value != _DEFAULTS.get(name)
        if says and name not in _READ and not name.startswith("x-"):  # those hold anchors
            draft.note(name, _TOP.get(name, _WORDS))
    if ttl := _seconds(root.get("globalTTL")):
        draft.setting("defaults", "ttl", ttl)
    if timeout := _seconds(root.get("unloadTimeout")):
        draft.setting("defaults", "stop_timeout", timeout)
    _take_health(root.get("healthCheckTimeout"), draft)
    if (level := str(root.get("logLevel") or "info")) != "info":
        draft.setting("log", "level", _LEVELS.get(level, level))
    if root.get("includeAliasesInList") is not True and any(map(_has_names, draft.models.values())):
        draft.settings["list_aliases"] = False
    _take_hooks(_table(root.get("hooks")), draft)
    _take_peers(_table(root.get("peers")), draft)
    take_routing(root, draft)


def _has_names(preset: dict[str, Any]) -> bool:
    """Return whether a model answers to other names than its own."""
    return bool(preset.get("aliases") or preset.get("request", {}).get("per_name"))


def _says(value: Any) -> bool:
    """Return whether a value says anything: what is empty or off is what lswap does, too."""
    return value not in (None, {}, [], "", False, 0)


def _take_health(value: Any, draft: Draft) -> None:
    """Carry over how long a load may take: here it counts from the last sign of progress."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if value > _LOAD_STALL:
        draft.setting("defaults", "load_stall", _seconds(value))
    else:
        text = "a load is given up when it shows no progress for `load_stall`, not after a time"
        draft.note("healthCheckTimeout", text)


def _take_hooks(hooks: dict[str, Any], draft: Draft) -> None:
    startup = _table(hooks.get("on_startup"))
    for place, keys, known in (("hooks", hooks, "on_startup"), ("on_startup", startup, "preload")):
        for key in keys.keys() - {known}:
            draft.note(f"{place}.{key}", _WORDS)
    for name in startup.get("preload") or []:
        if (model := draft.model_named(str(name).strip())) is not None:
            draft.models[model]["preload"] = True
        else:
            draft.note("hooks.on_startup.preload", f"there is no model {name!r}")


def _take_peers(peers: dict[str, Any], draft: Draft) -> None:
    for name, peer in peers.items():
        models = [str(each) for each in _table(peer).get("models") or []]
        shown = ", ".join(models[:6]) + (f" and {len(models) - 6} more" if len(models) > 6 else "")
        text = "lswap does not forward to other servers: clients ask that server directly"
        draft.note(f"peers.{name}", text, shown)


def _seconds(value: Any) -> str | None:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else 0
    return f"{number:g}s" if number > 0 else None


def _model(name: str, model: dict[str, Any], draft: Draft) -> dict[str, Any]:
    place = f"models.{name}"
    preset = _command(name, model, draft)
    if aliases := _aliases(name, model.get("aliases")):
        preset["aliases"] = aliases
    if (ttl := model.get("ttl")) is not None and ttl != -1:
        preset["ttl"] = _seconds(ttl) or "never"
    if timeout := _seconds(model.get("unloadTimeout")):
        preset["stop_timeout"] = timeout
    if model.get("unlisted") is True:
        preset["unlisted"] = True
    if isinstance(limit := model.get("concurrencyLimit"), int) and limit > 0:
        preset["concurrency"] = limit
        draft.note(f"{place}.concurrencyLimit", "more requests wait their turn, instead of 429")
    take_filters(name, _table(model.get("filters")), preset, draft)
    take_metadata(place, model, preset, draft)
    for key, value in model.items():
        if key not in _MODEL_READ and _says(value):
            draft.note(f"{place}.{key}", _MODEL.get(key, _WORDS))
    return preset


def _aliases(name: str, value: Any) -> list[str]:
    """Return other names of a model; forks of llama-swap write them as mappings with an `id`."""
    listed = value if isinstance(value, list) else []
    names = [
        str(_table(each).get("id") or "") if isinstance(each, dict) else each for each in listed
    ]
    return [each for each in dict.fromkeys(map(str, names)) if each not in ("", name)]


def _command(name: str, model: dict[str, Any], draft: Draft) -> dict[str, Any]:
    place, cmd = f"models.{name}", model.get("cmd") or ""
    try:
        words = [str(each) for each in cmd] if isinstance(cmd, list) else split_command(str(cmd))
    except ValueError as error:
        draft.note(f"{place}.cmd", f"cannot be read as a command: {error}")
        draft.failing[name] = None
        return {"cmd": [str(cmd)]}
    before, words = take_environment(words)
    env = _variables(model.get("env")) | before
    if not words:
        draft.failing[name] = None
        _note_nothing(place, model, draft)
        return {}
    if not is_llama_server(words):
        return read_program(place, words, env, model, draft)
    if stop := str(model.get("cmdStop") or "").strip():
        draft.note(f"{place}.cmdStop", "not needed: lswap stops llama-server itself", stop)
    if model.get("useModelName"):
        draft.note(f"{place}.useModelName", "not needed: llama-server answers to any name")
    preset = read_command(words, env, draft, place)
    if {*preset.pop("aliases", [])} - {name, *_aliases(name, model.get("aliases"))}:
        text = "clients ask for the model by its own name, and that of llama-swap's `aliases`"
        draft.note(f"{place}.--alias", text)
    if not preset.keys() & {"model", "hf"}:
        draft.failing[name] = None
    return preset


def _note_nothing(place: str, model: dict[str, Any], draft: Draft) -> None:
    """Say what to do about an entry that starts nothing."""
    if proxy := model.get("proxy"):
        text = "it starts no program, and lswap forwards to no other server: ask that one directly"
        draft.note(f"{place}.proxy", text, str(proxy))
    else:
        draft.note(f"{place}.cmd", "there is no command: add `model:`, or remove the entry")


def _variables(value: Any) -> dict[str, str]:
    """Return the variables of `env`, a list of NAME=value."""
    if isinstance(value, dict):
        return {str(name): str(each) for name, each in value.items()}
    return dict(str(each).partition("=")[::2] for each in value or [])
