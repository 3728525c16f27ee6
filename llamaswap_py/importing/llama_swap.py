"""Turns llama-swap's config.yaml into a draft. Pure.

Keys and meanings are those of its documentation (config.example.yaml and config-schema.json of that
project). Each key is carried over, translated, or noted. Macros are replaced by their values;
groups, matrix and selectors become exclusive groups.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
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
from llamaswap_py.importing.programs import read_program
from llamaswap_py.importing.requests import table_of, take_filters, take_metadata

_MACRO: Final = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")
_LEFT: Final = frozenset({"PORT", "PID"})
_DEPTH: Final = 20


@dataclass(slots=True)
class Macros:
    """The macros that apply at one place, and the environment."""

    values: Mapping[str, Any]
    environment: Mapping[str, str]
    draft: Draft
    place: str
    _unknown: set[str] = field(default_factory=set)

    def inside(self, place: str, values: Mapping[str, Any]) -> Macros:
        """Return the macros of a model; its own override the file's."""
        return Macros({**self.values, **values}, self.environment, self.draft, place)

    def expand(self, value: Any, depth: int = 0) -> Any:
        """Return `value` with all macros in its texts replaced; a lone macro keeps its type.

        `${PORT}` and `${PID}` stay; an unknown one stays too, and is noted.
        """
        if isinstance(value, dict):
            return {str(self.expand(k)): self.expand(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.expand(each) for each in value]
        if not isinstance(value, str) or depth > _DEPTH:
            return value
        if (whole := _MACRO.fullmatch(value)) and whole[1] in self.values:
            return self.expand(self.values[whole[1]], depth + 1)
        return _MACRO.sub(lambda match: self._text(match, depth), value)

    def _text(self, match: re.Match[str], depth: int) -> str:
        name = match[1]
        if name in self.values:
            return _as_text(self.expand(self.values[name], depth + 1))
        if name.startswith("env.") and name[4:] in self.environment:
            return self.environment[name[4:]]
        if name not in _LEFT and name not in self._unknown:
            self._unknown.add(name)
            self.draft.note(self.place, f"{match[0]} is not known here and was left as it is")
        return match[0]


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).strip("\n")


_TOKEN: Final = re.compile(r"\s*([()&|]|\+?[^\s()&|+]+)")
_MOST: Final = 4_096
"""Combinations one expression may expand to."""


def allowed_sets(sets: Mapping[str, str], names: Mapping[str, str]) -> list[frozenset[str]]:
    """Return every combination that the expressions allow; `names` maps short names to models.

    Raises ValueError for an expression that cannot be read.
    """
    found: list[frozenset[str]] = []
    for name in sets:
        found += [each for each in _Reader(sets, names).set(name, ()) if each not in found]
    return found


def exclusive_groups(models: Sequence[str], allowed: Sequence[frozenset[str]]) -> list[list[str]]:
    """Return groups that keep apart every two models that no combination holds together."""
    together = {pair for each in allowed for pair in combinations(sorted(each), 2)}
    apart = [pair for pair in combinations(sorted(models), 2) if pair not in together]
    never: dict[str, set[str]] = {model: set() for model in models}
    for one, other in apart:
        never[one].add(other)
        never[other].add(one)
    covered: set[tuple[str, str]] = set()
    groups: list[list[str]] = []
    for pair in apart:
        if pair in covered:
            continue
        group = list(pair)
        others = never[pair[0]] & never[pair[1]]
        for model in sorted(others):
            if model in others:  # still apart from all that came in before it
                group.append(model)
                others &= never[model]
        covered |= set(combinations(sorted(group), 2))
        groups.append(sorted(group))
    return groups


def loosened(allowed: Sequence[frozenset[str]], models: Sequence[str]) -> list[frozenset[str]]:
    """Return triples that no combination holds, although any two of the three may run together."""
    beside: dict[str, set[str]] = {model: set() for model in models}
    for each in allowed:
        for model in each & beside.keys():
            beside[model] |= each - {model}
    return [
        frozenset((first, second, third))
        for first in sorted(models)
        for second in sorted(one for one in beside[first] & beside.keys() if one > first)
        for third in sorted(one for one in beside[first] & beside[second] if one > second)
        if third in beside and not any({first, second, third} <= each for each in allowed)
    ]


class _Reader:
    """Reads `a & (b | c)`, `+other & d`: AND binds closer than OR."""

    def __init__(self, sets: Mapping[str, str], names: Mapping[str, str]) -> None:
        self._sets = sets
        self._names = names
        self._tokens: list[str] = []

    def set(self, name: str, above: tuple[str, ...]) -> list[frozenset[str]]:
        """Return the combinations of a named set; `above` are those being read."""
        if name in above or name not in self._sets:
            raise ValueError(f"+{name} means itself" if name in above else f"no set named {name}")
        reader = _Reader(self._sets, self._names)
        reader._tokens = list(_tokens(self._sets[name]))
        found = reader._either((*above, name))
        if reader._tokens:
            raise ValueError(f"{self._sets[name]!r}: unexpected {reader._tokens[0]!r}")
        return found

    def _either(self, above: tuple[str, ...]) -> list[frozenset[str]]:
        found = self._both(above)
        while self._tokens[:1] == ["|"]:
            del self._tokens[0]
            found = found + self._both(above)
        return list(dict.fromkeys(found))

    def _both(self, above: tuple[str, ...]) -> list[frozenset[str]]:
        found = self._one(above)
        while self._tokens[:1] == ["&"]:
            del self._tokens[0]
            right = self._one(above)
            if len(found) * len(right) > _MOST:
                raise ValueError(f"more than {_MOST} combinations")
            found = [one | other for one in found for other in right]
        return found

    def _one(self, above: tuple[str, ...]) -> list[frozenset[str]]:
        token = self._tokens.pop(0) if self._tokens else ""
        if token == "(":
            found = self._either(above)
            if self._tokens[:1] != [")"]:
                raise ValueError("a ) is missing")
            del self._tokens[0]
            return found
        if token in ("", ")", "&", "|"):
            raise ValueError(f"a model is missing before {token or 'the end'!r}")
        if token.startswith("+"):
            return self.set(token[1:], above)
        return [frozenset({self._names.get(token, token)})]


def _tokens(text: str) -> Iterator[str]:
    at = 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"{text!r}: unexpected {text[at:].strip()[:10]!r}")
        yield match[1]
        at = match.end()


_PRIORITIES: Final = 100
_WORDS: Final = "no counterpart in lswap"
_DEFAULT: Final = "default"
"""The name of the group for models without a group."""
_SELECTOR: Final = ("strategy", "targets")


def take_routing(root: dict[str, Any], draft: Draft) -> None:
    """Carry over `groups`, `matrix`, `routing` and `selectors`."""
    routing = table_of(root.get("routing"))
    router = table_of(routing.get("router"))
    settings = table_of(router.get("settings"))
    groups = table_of(settings.get("groups") or root.get("groups"))
    matrix = table_of(settings.get("matrix") or root.get("matrix"))
    if matrix and (router.get("use") == "matrix" or not groups):
        _take_matrix(matrix, draft)
    else:
        _take_groups(groups, draft)
    scheduler = table_of(table_of(table_of(routing.get("scheduler")).get("settings")).get("fifo"))
    for name, priority in table_of(scheduler.get("priority")).items():
        model = draft.model_named(str(name))
        if model is not None and isinstance(priority, int) and priority:
            draft.models[model]["priority"] = max(-_PRIORITIES, min(priority, _PRIORITIES))
    for name, selector in table_of(root.get("selectors")).items():
        _take_selector(str(name), table_of(selector), draft)


def _take_groups(groups: dict[str, Any], draft: Draft) -> None:
    if not groups:
        if len(draft.models) > 1:
            draft.note(
                "groups",
                "llama-swap ran one model at a time; lswap loads as many as fit the memory"
                " (`policy: {max_loaded: 1}` keeps to one)",
            )
        return
    grouped: set[str] = set()
    for name, group in groups.items():
        grouped |= _take_group(str(name), table_of(group), draft)
    alone = [name for name in draft.models if name not in grouped]
    exclusive = [bool(table_of(group).get("exclusive", True)) for group in groups.values()]
    exclusive += [True] if alone else []
    if len(exclusive) > 1 and any(exclusive):
        draft.note(
            "groups",
            "a model of an exclusive group unloaded those of other groups; here memory decides"
            " which models run together (two that must not: put them into one `exclusive` group)",
        )
    if len(alone) > 1:
        _exclude(_DEFAULT, alone, draft)
        draft.note(
            "groups",
            f"of the {len(alone)} models in no group llama-swap ran one at a time, which is kept:"
            f" remove the group `{_DEFAULT}` to load as many as fit",
        )


def _take_group(name: str, group: dict[str, Any], draft: Draft) -> set[str]:
    """Carry over one group, and return its members."""
    place = f"groups.{name}"
    members = _members(place, group, draft)
    turns = bool(group.get("swap", True)) and len(members) > 1
    if turns:
        _exclude(name, members, draft, persistent=bool(group.get("persistent")))
    elif group.get("persistent"):
        for member in members:
            draft.models[member]["pin"] = True
            if draft.models[member].get("ttl", "never") != "never":
                draft.note(f"models.{member}.ttl", "does nothing: the model is pinned (`pin`)")
    for key in group.keys() - {"swap", "exclusive", "persistent", "members"}:
        draft.note(f"{place}.{key}", _WORDS)
    return set(members)


def _exclude(name: str, members: list[str], draft: Draft, *, persistent: bool = False) -> None:
    group: dict[str, Any] = {"exclusive": members}
    if persistent:
        group["persistent"] = True
    groups = draft.settings.setdefault("groups", {})
    while name in groups:
        name += "-"
    groups[name] = group


def _members(place: str, group: dict[str, Any], draft: Draft) -> list[str]:
    members = list(dict.fromkeys(str(each) for each in group.get("members") or []))
    for missing in [each for each in members if each not in draft.models]:
        draft.note(place, f"there is no model {missing!r}")
        members.remove(missing)
    return members


def _take_matrix(matrix: dict[str, Any], draft: Draft) -> None:
    names = {str(short): str(model) for short, model in table_of(matrix.get("vars")).items()}
    sets = {str(name): str(text) for name, text in table_of(matrix.get("sets")).items()}
    try:
        allowed = allowed_sets(sets, names)
    except ValueError as error:
        draft.note("matrix.sets", f"cannot be read: {error}")
        return
    if missing := sorted({one for each in allowed for one in each} - set(draft.models)):
        draft.note("matrix.sets", f"there is no model {', '.join(map(repr, missing))}")
    models = list(draft.models)
    for number, group in enumerate(exclusive_groups(models, allowed), 1):
        draft.settings.setdefault("groups", {})[f"apart-{number}"] = {"exclusive": group}
    if threes := loosened(allowed, models):
        more = f" (and {len(threes) - 1} other sets)" if len(threes) > 1 else ""
        text = "each two of them may run together, all three may too, if they fit"
        draft.note("matrix.sets", f"{', '.join(sorted(threes[0]))}{more}: {text}")
    if matrix.get("evict_costs"):
        draft.note("matrix.evict_costs", "not needed: lswap learns what a reload costs")


def _take_selector(name: str, selector: dict[str, Any], draft: Draft) -> None:
    targets = [str(each) for each in selector.get("targets") or []]
    known = [each for each in targets if draft.model_named(each) is not None]
    place, strategy = f"selectors.{name}", str(selector.get("strategy", "warm"))
    for missing in [each for each in targets if each not in known]:
        draft.note(place, f"there is no model {missing!r} here")
    for key in selector.keys() - {*_SELECTOR}:
        draft.note(place, f"its {key} is left out: an alias can only name its presets")
    if not known:
        return
    if strategy == "spillover":
        draft.note(place, "the first that is ready answers; load is not spread by counts")
    first = known[:1] if strategy == "pin" else known
    draft.settings.setdefault("aliases", {})[name] = {"first": first}


_LEFT_OUT: Final = "left out: lswap does without"
# Keys of the file that are not carried over -> the note about them.
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
"""Values of keys that need no note, because lswap does the same."""
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

    `draft` is an empty one that knows the engines of the machine. Raises ConfigError if the file is
    not a configuration of llama-swap.
    """
    models = root.get("models") if isinstance(root, dict) else None
    if not isinstance(models, dict):
        raise ConfigError(
            "this is not a llama-swap configuration: it has no `models`",
            remedy="name its config.yaml",
        )
    draft = draft or Draft()
    macros = Macros(table_of(root.get("macros")), environment, draft, "macros")
    for name, each in models.items():
        own = macros.inside(f"models.{name}", table_of(table_of(each).get("macros")))
        own.values = {**own.values, "MODEL_ID": str(name)}
        draft.models[str(name)] = _model(str(name), own.expand(_without_comments(each)), draft)
    top = {name: value for name, value in root.items() if name not in ("models", "macros")}
    _settings(macros.expand(top), draft)
    return draft


def _without_comments(model: Any) -> dict[str, Any]:
    """Return a model's keys, without macros, and commands without comments that may name some."""
    found = {key: value for key, value in table_of(model).items() if key != "macros"}
    for key in {"cmd", "cmdStop"} & found.keys():
        if isinstance(found[key], str):
            found[key] = strip_comments(found[key])
    return found


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
    _take_hooks(table_of(root.get("hooks")), draft)
    _take_peers(table_of(root.get("peers")), draft)
    take_routing(root, draft)


def _has_names(preset: dict[str, Any]) -> bool:
    """Return whether a model answers to other names than its own."""
    return bool(preset.get("aliases") or preset.get("request", {}).get("per_name"))


def _says(value: Any) -> bool:
    """Return whether a value needs a note: empty or off is what lswap does, too."""
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
    startup = table_of(hooks.get("on_startup"))
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
        models = [str(each) for each in table_of(peer).get("models") or []]
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
    take_filters(name, table_of(model.get("filters")), preset, draft)
    take_metadata(place, model, preset, draft)
    for key, value in model.items():
        if key not in _MODEL_READ and _says(value):
            draft.note(f"{place}.{key}", _MODEL.get(key, _WORDS))
    return preset


def _aliases(name: str, value: Any) -> list[str]:
    """Return other names of a model; forks of llama-swap write them as mappings with an `id`."""
    listed = value if isinstance(value, list) else []
    names = [
        str(table_of(each).get("id") or "") if isinstance(each, dict) else each for each in listed
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
    """Note the remedy for an entry that does not start a program."""
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
