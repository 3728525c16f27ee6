"""YAML text -> Config, with every mistake of the file named by line and key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llamaswap_py.config.forms import Base, is_null
from llamaswap_py.config.keys import Key, keys_of
from llamaswap_py.config.listen import check_listeners, parse_endpoint
from llamaswap_py.config.nodes import Invalid, Node, Table, describe, join_errors, read_yaml
from llamaswap_py.config.options import LONG_NAMES, long_name
from llamaswap_py.config.planned import PLANNED
from llamaswap_py.config.records import Config, Defaults, Preset, Record
from llamaswap_py.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from llamaswap_py.endpoint import Endpoint

_SMALLEST = "models:\n  my-model:\n    model: ~/models/my-model.gguf"
# Keys that belong to one preset; `defaults` has all the others.
_FOREIGN = {
    "model": "write the file of each preset under `models`",
    "aliases": "write them in the one preset they name",
}


def load_config(
    text: str, *, path: Path | None, base_dir: str, env: Mapping[str, str], home: str
) -> Config:
    """Return the configuration a YAML text describes.

    `base_dir` is where relative paths start, `home` is `~`, `path` names the file in errors. `env`
    is for `${env.NAME}`, which this version refuses by name. Raises ConfigError with one line for
    each mistake found, in the order of the file.
    """
    del env
    source = str(path) if path is not None else "config"
    root = read_yaml(text, source)
    reader = _Reader(source, Base(base_dir, home))
    if root is None or is_null(root):
        raise ConfigError(
            "the file is empty", where=source, remedy=f"the smallest one is:\n{_SMALLEST}"
        )
    if not isinstance(root, Table):
        where = f"{source}:{root.line}"
        raise ConfigError(f"the file is {describe(root)}, not a mapping of keys", where=where)
    return reader.config(root)


def parse_listen(text: str, *, base_dir: str, home: str) -> Endpoint:
    """Return the endpoint a command line names, read as the key `listen` is. Raises ConfigError."""
    if text.startswith("unix:") and not text.startswith("unix://"):
        relative = text.removeprefix("unix:")
        try:
            text = "unix:" + Base(base_dir, home).path(relative, Table(0, {}))
        except Invalid as error:
            raise ConfigError(error.message, where="--listen", remedy=error.remedy) from None
    return parse_endpoint(text)


class _Reader:
    """One pass over one file: collects mistakes and the lines of what it reads."""

    def __init__(self, source: str, base: Base) -> None:
        self.source = source
        self.base = base
        self.lines: dict[str, int] = {}
        self._problems: list[tuple[int, ConfigError]] = []

    def config(self, root: Table) -> Config:
        values = self.record(Config, root, "")
        presets = self.presets(root)
        self.check_names(presets, values.get("default_model"))
        self.check_listen(values)
        self.raise_problems()
        defaults = values.get("defaults", Defaults())
        engine = values.get("engine", "auto")
        env = values.get("env", {})
        values["models"] = {
            id: _preset(id, own, defaults, engine, env) for id, own in presets.items()
        }
        return Config(**values, source=self.source, lines=self.lines)

    # Mappings

    def record(self, kind: type[Record], table: Table, place: str) -> dict[str, Any]:
        """Return the values of a record's keys that the file sets."""
        keys = keys_of(kind)
        values: dict[str, Any] = {}
        for name, entry in table.entries.items():
            here = f"{place}.{name}" if place else name
            key = keys.get(name)
            if key is None:
                self.unknown(kind, name, entry.line, here)
                continue
            self.lines[here] = entry.line
            if name == "models" and kind is Config:
                continue  # read by presets()
            self.value(key, entry.value, here, values)
        return values

    def value(self, key: Key, node: Node, here: str, values: dict[str, Any]) -> None:
        if key.record is not None:
            if isinstance(node, Table):
                values[key.name] = key.record(**self.record(key.record, node, here))
            elif not is_null(node):  # a section whose lines are all commented out
                self.problem(node.line, here, f"{describe(node)} is not a mapping of keys")
            return
        try:
            values[key.name] = key.form.read(node, self.base)
        except Invalid as error:
            self.invalid(error, here)
            return
        if isinstance(node, Table):  # the options of `args`, the devices of `memory`, …
            for name, entry in node.entries.items():
                spelled = long_name(name) if key.name == "args" else name
                self.lines[f"{here}.{spelled}"] = entry.line

    def presets(self, root: Table) -> dict[str, dict[str, Any]]:
        """Return what each entry of `models` sets itself."""
        entry = root.entries.get("models")
        if entry is None or is_null(entry.value) or entry.value == Table(entry.value.line, {}):
            line = entry.line if entry else 0
            self.problem(line, "models", "there are no models", f"add at least one:\n{_SMALLEST}")
            return {}
        if not isinstance(entry.value, Table):
            self.problem(
                entry.line, "models", f"{describe(entry.value)} is not a mapping of presets"
            )
            return {}
        presets: dict[str, dict[str, Any]] = {}
        for id, own in entry.value.entries.items():
            here = f"models.{id}"
            self.lines[here] = own.line
            if bad := _bad_id(id):
                self.problem(own.line, here, *bad)
            presets[id] = {}
            if isinstance(own.value, Table):
                presets[id] = self.record(Preset, own.value, here)
            elif not is_null(own.value):
                message = f"{describe(own.value)} is not a mapping of keys"
                self.problem(own.value.line, here, message, "write model: PATH below the name")
                continue
            if not _says_file(own.value):
                self.problem(own.line, here, "the preset names no file", "add model: PATH")
        return presets

    # What concerns several keys

    def check_names(self, presets: dict[str, dict[str, Any]], default: str | None) -> None:
        owner: dict[str, str] = dict.fromkeys(presets, "")
        for id, values in presets.items():
            for alias in values.get("aliases", ()):
                here = f"models.{id}.aliases"
                if alias not in owner:
                    owner[alias] = id
                    continue
                other = owner[alias] or alias
                line = self.lines[f"models.{other}.aliases" if owner[alias] else f"models.{other}"]
                message = f"{alias!r} already names models.{other} (line {line})"
                self.problem(self.lines[here], here, message, "a name can mean only one preset")
        if default is not None and default not in owner and presets:
            remedy = _nearest(default, owner) or f"known are {', '.join(list(owner)[:20])}"
            message = f"there is no preset {default!r}"
            self.problem(self.lines["default_model"], "default_model", message, remedy)

    def check_listen(self, values: dict[str, Any]) -> None:
        allow = values.get("allow_unauthenticated", False)
        try:
            check_listeners(values.get("listen", ()), allow_unauthenticated=allow)
        except ConfigError as error:
            self.problem(self.lines["listen"], "listen", error.message, error.remedy)

    # Mistakes

    def unknown(self, kind: type[Record], name: str, line: int, here: str) -> None:
        known = list(keys_of(kind))
        if name in PLANNED.get(kind, ()):
            message, remedy = f"{name} is not supported yet by this version", "remove it"
        elif kind is Defaults and name in _FOREIGN:
            message, remedy = f"{name} belongs to one preset", _FOREIGN[name]
        else:
            message, remedy = "unknown key", _nearest(name, known) or _option_hint(kind, name)
            remedy = remedy or f"known here: {', '.join(known)}"
        self.problem(line, here, message, remedy)

    def invalid(self, error: Invalid, here: str) -> None:
        place = f"{here}.{error.key}" if error.key else here
        self.problem(error.line, place, error.message, error.remedy)

    def problem(self, line: int, here: str, message: str, remedy: str = "") -> None:
        where = f"{self.source}:{line}: {here}" if line else f"{self.source}: {here}"
        self._problems.append((line, ConfigError(message, where=where, remedy=remedy)))

    def raise_problems(self) -> None:
        if self._problems:
            self._problems.sort(key=lambda problem: problem[0])
            raise join_errors([error for _, error in self._problems])


def _preset(
    id: str, own: dict[str, Any], defaults: Defaults, engine: object, env: dict[str, str]
) -> Preset:
    """Return a preset that needs nothing else: the defaults, the engine and env are in it."""
    values = {name: getattr(defaults, name) for name in keys_of(Defaults)}
    values |= own
    args = own.get("args", {})
    # What the preset says comes last: of two names that turn out to be one option the last wins.
    kept = {name: value for name, value in defaults.args.items() if name not in args}
    values["args"] = kept | args
    values["env"] = env | defaults.env | own.get("env", {})
    values["engine"] = values["engine"] or engine
    return Preset(id=id, **values)


def _bad_id(id: str) -> tuple[str, str] | None:
    if not id or id != id.strip() or len(id) > 255 or any(ord(c) < 32 or ord(c) == 127 for c in id):
        return "this is no name", "no line breaks, no blanks around it, 1 to 255 characters"
    if "," in id:
        return "a name cannot contain a comma", "llama-server would take it for two names"
    return None


def _says_file(node: Node) -> bool:
    """Return whether a preset names its file, or `hf` or `cmd`, which got their own error."""
    return isinstance(node, Table) and bool({"model", "hf", "cmd"} & node.entries.keys())


def _nearest(name: str, known: Mapping[str, object] | list[str]) -> str:
    simple = {each.replace("_", "").replace("-", "").lower(): each for each in known}
    wanted = name.replace("_", "").replace("-", "").lower()
    close = difflib.get_close_matches(wanted, simple, n=1, cutoff=0.6)
    return f"did you mean {simple[close[0]]}?" if close else ""


def _option_hint(kind: type[Record], name: str) -> str:
    if kind not in (Preset, Defaults) or name.replace("_", "-") not in LONG_NAMES:
        return ""
    return f"llama-server's options go under args: args: {{{long_name(name)}: …}}"
