"""llama-swap's config.yaml -> a draft. Pure.

Keys and meanings as its documentation describes them (docs/config.example.yaml of that project).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from llamaswap_py.errors import ConfigError
from llamaswap_py.importing.command import (
    is_llama_server,
    read_command,
    split_command,
    take_environment,
)
from llamaswap_py.importing.draft import Draft
from llamaswap_py.importing.macros import Macros
from llamaswap_py.importing.routing import take_routing

_WORDS: Final = "no counterpart in lswap"
# Keys of the file -> what to say of them; None: nothing, lswap does without.
_TOP: Final[dict[str, str | None]] = {
    "healthCheckTimeout": "not needed: a load is given up when it shows no progress (`load_stall`)",
    "logTimeFormat": None,
    "logToStdout": "`lswap logs MODEL` and `log.dir` have the children's output",
    "store": _WORDS,
    "metricsMaxInMemory": None,
    "captureBuffer": "see the key `capture`",
    "ui": None,
    "performance": None,
    "startPort": None,
    "sendLoadingState": "waiting streams get SSE comments with progress and ETA (`waiting.notice`)",
    "includeAliasesInList": "/v1/models lists aliases beside their model",
    "apiKeys": "keys are kept as hashes: make each with `lswap key new`",
    "tailcat": _WORDS,
    "upstream": "/upstream/MODEL/… never loads a model for browser assets",
    "profiles": _WORDS + "; see `aliases`",
    "peers": _WORDS + ": lswap serves this machine's models only",
}
_READ: Final = frozenset(
    {"macros", "models", "hooks", "groups", "matrix", "routing", "selectors", "globalTTL"}
    | {"unloadTimeout", "logLevel", "$schema"}
)
_MODEL: Final[dict[str, str | None]] = {
    "unlisted": "every model is listed",
    "sendLoadingState": None,
    "timeouts": "children are local: no connection timeouts",
    "capabilities": "read from the model file",
    "compat": "an open WebSocket holds its model",
    "cmdStop": "lswap stops a child itself: SIGTERM, then SIGKILL of its group (`stop_timeout`);"
    " run containers with --init",
}
_LEVELS: Final = {"warn": "warning"}


def read_llama_swap(root: Any, environment: Mapping[str, str]) -> Draft:
    """Return the draft of a parsed config.yaml; `environment` fills `${env.NAME}`.

    Raises ConfigError when it is no such file.
    """
    models = root.get("models") if isinstance(root, dict) else None
    if not isinstance(models, dict):
        raise ConfigError(
            "this is no llama-swap configuration: it has no `models`",
            remedy="name its config.yaml",
        )
    draft = Draft()
    macros = Macros(_table(root.get("macros")), environment, draft, "macros")
    for name, each in models.items():
        own = macros.inside(f"models.{name}", _table(_table(each).get("macros")))
        own.values = {**own.values, "MODEL_ID": str(name)}
        draft.models[str(name)] = _model(str(name), own.expand(_table(each)), draft)
    _settings(macros.expand({k: v for k, v in root.items() if k != "models"}), draft)
    return draft


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _settings(root: dict[str, Any], draft: Draft) -> None:
    for name, value in root.items():
        if name in _READ or value in (None, {}, [], "", False):
            continue
        text = _TOP.get(name, _WORDS)
        if text is not None:
            draft.note(name, text)
    if ttl := _seconds(root.get("globalTTL")):
        draft.setting("defaults", "ttl", ttl)
    if timeout := _seconds(root.get("unloadTimeout")):
        draft.setting("defaults", "stop_timeout", timeout)
    if (level := str(root.get("logLevel", "info"))) != "info":
        draft.setting("log", "level", _LEVELS.get(level, level))
    for name in _table(_table(root.get("hooks")).get("on_startup")).get("preload") or []:
        if str(name) in draft.models:
            draft.models[str(name)]["preload"] = True
        else:
            draft.note("hooks.on_startup.preload", f"there is no model {name!r}")
    take_routing(root, draft)


def _seconds(value: Any) -> str | None:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else 0
    return f"{number:g}s" if number > 0 else None


def _model(name: str, model: dict[str, Any], draft: Draft) -> dict[str, Any]:
    place = f"models.{name}"
    preset = _command(place, model, draft)
    if aliases := [str(each) for each in model.get("aliases") or []]:
        preset["aliases"] = list(dict.fromkeys([*preset.get("aliases", []), *aliases]))
    preset["aliases"] = [each for each in preset.get("aliases", []) if each != name]
    if not preset["aliases"]:
        del preset["aliases"]
    if (ttl := model.get("ttl")) is not None and ttl != -1:
        preset["ttl"] = _seconds(ttl) or "never"
    if timeout := _seconds(model.get("unloadTimeout")):
        preset["stop_timeout"] = timeout
    if isinstance(limit := model.get("concurrencyLimit"), int) and limit > 0:
        preset["concurrency"] = limit
        draft.note(f"{place}.concurrencyLimit", "more requests wait their turn, instead of 429")
    _filters(name, _table(model.get("filters")), preset, draft)
    _metadata(place, model, preset, draft)
    for key, text in _MODEL.items():
        if model.get(key) and text is not None:
            draft.note(f"{place}.{key}", text)
    return preset


def _command(place: str, model: dict[str, Any], draft: Draft) -> dict[str, Any]:
    env = dict(str(each).partition("=")[::2] for each in model.get("env") or [])
    try:
        before, words = take_environment(split_command(str(model.get("cmd", ""))))
    except ValueError as error:
        draft.note(f"{place}.cmd", f"cannot be read as a command: {error}")
        return {"cmd": [str(model.get("cmd", ""))]}
    env |= before
    if not words:
        draft.note(f"{place}.cmd", "there is no command: add `model:`")
        return {}
    if is_llama_server(words):
        if model.get("useModelName"):
            draft.note(f"{place}.useModelName", "not needed: llama-server answers to any name")
        return read_command(words, env, draft, place)
    return _other(place, words, env, model, draft)


def _other(
    place: str, words: list[str], env: dict[str, str], model: dict[str, Any], draft: Draft
) -> dict[str, Any]:
    """Return a preset for a command that is not llama-server."""
    words = _with_port(words, str(model.get("proxy") or ""))
    if not any("${PORT}" in word for word in words):
        proxy = model.get("proxy") or "its own port"
        draft.note(f"{place}.proxy", f"put {{port}} where the command says its port ({proxy})")
    if any("${PID}" in word for word in words):
        draft.note(f"{place}.cmd", "${PID} has no counterpart")
    check = str(model.get("checkEndpoint") or "/health")
    preset: dict[str, Any] = {"cmd": [word.replace("${PORT}", "{port}") for word in words]}
    if check == "none":
        draft.note(f"{place}.checkEndpoint", "say what shows readiness: `ready: {line: TEXT}`")
        check = "/"
    preset["ready"] = {"http": check}
    draft.note(place, "its memory cannot be estimated: declare `memory:` or let it be measured")
    if model.get("useModelName"):
        preset["request"] = {"set": {"model": str(model["useModelName"])}}
    if env:
        preset["env"] = env
    return preset


def _with_port(words: list[str], proxy: str) -> list[str]:
    """Return a command with ${PORT} where it says the port that `proxy` has."""
    port = re.search(r":(\d+)/?$", proxy)
    if port is None or any("${PORT}" in word for word in words):
        return words
    whole = re.compile(rf"(?<![\w.]){port[1]}(?![\w.])")
    return [whole.sub("${PORT}", word) for word in words]


def _filters(name: str, filters: dict[str, Any], preset: dict[str, Any], draft: Draft) -> None:
    request: dict[str, Any] = dict(preset.get("request", {}))
    if values := _table(filters.get("setParams")):
        request["set"] = {**request.get("set", {}), **values}
    strip = filters.get("stripParams", filters.get("strip_params"))
    names = strip.split(",") if isinstance(strip, str) else strip or []
    if stripped := [each for each in (str(n).strip() for n in names) if each not in ("", "model")]:
        request["strip"] = stripped
    for id, values in _table(filters.get("setParamsByID")).items():
        if values:
            request.setdefault("per_name", {})[str(id)] = {"set": values}
    if request:
        preset["request"] = request


def _metadata(place: str, model: dict[str, Any], preset: dict[str, Any], draft: Draft) -> None:
    found = {key: model[key] for key in ("name", "description") if model.get(key)}
    for key, value in _table(model.get("metadata")).items():
        if isinstance(value, str | int | float | bool):
            found[str(key)] = value
        else:
            draft.note(f"{place}.metadata.{key}", "only texts, numbers and booleans are kept")
    if found:
        preset["metadata"] = found
