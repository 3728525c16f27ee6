"""YAML text -> Config, or errors that name every mistake by line and key.

A preset is merged here with what it inherits: `defaults`, keys of the top level, and the keys that
`keep: always` stands for. If a mistake concerns one preset alone, the others can still be used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from llamaswap_py.config.compat import with_old_defaults
from llamaswap_py.config.discovery import Folder, Scan, add_models
from llamaswap_py.config.forms import SUBSTITUTE, Base, is_null
from llamaswap_py.config.json_schema import Key, key_hint, keys_of
from llamaswap_py.config.listen import check_listeners, parse_endpoint
from llamaswap_py.config.model_forms import as_program, combined_mistakes
from llamaswap_py.config.preset_names import bad_name, resolve_names
from llamaswap_py.config.sections import Config, Defaults, Mistake, Policy, Preset, Record
from llamaswap_py.config.sources import Sources, SourceText, expand, read_together, sources_of
from llamaswap_py.config.yaml_tree import (
    UNKNOWN_KEY,
    Invalid,
    Listing,
    Node,
    Table,
    describe,
    join_errors,
    nearest,
)
from llamaswap_py.errors import ConfigError
from llamaswap_py.llamacpp.options import long_name, plain_name
from llamaswap_py.redaction import hide

if TYPE_CHECKING:
    from pathlib import Path

    from llamaswap_py.endpoint import Endpoint


_OF_MODELS: Final = "models."


def owner_of(place: str, ids: Container[str]) -> str | None:
    """Return the preset to which a place of the file belongs; None: to no preset.

    Names may contain dots. If several names fit, the longest is right.
    """
    if not place.startswith(_OF_MODELS):
        return None
    rest = place.removeprefix(_OF_MODELS)
    ends = [at for at, letter in enumerate(rest) if letter in ".["]
    found = [rest[:end] for end in (*ends, len(rest)) if rest[:end] in ids]
    return found[-1] if found else None


def reduce_broken(broken: Iterable[str], presets: dict[str, dict[str, Any]]) -> None:
    """Reduce broken presets to what lists show of them, and to names that no other preset has."""
    uses = Counter(name for own in presets.values() for name in _names(own))
    for id in broken:
        own = presets[id]
        kept: dict[str, Any] = {"model": ""}
        free = {name for name in _names(own) if uses[name] == 1 and name not in presets}
        kept["aliases"] = tuple(name for name in own.get("aliases", ()) if name in free)
        keys = ("metadata", "request") if free >= _per_name(own).keys() else ("metadata",)
        presets[id] = kept | {name: own[name] for name in keys if name in own}


def _names(own: Mapping[str, Any]) -> set[str]:
    return {*own.get("aliases", ()), *_per_name(own)}


def _per_name(own: Mapping[str, Any]) -> Mapping[str, object]:
    found: Mapping[str, object] = getattr(own.get("request"), "per_name", {})
    return found


ALWAYS: Final[dict[str, Any]] = {"preload": True, "pin": True, "ttl": None}
"""The keys that `keep: always` stands for."""


def inherited_of(values: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a preset that sets none itself: `defaults` and keys of the top level."""
    defaults: Defaults = values.get("defaults", Defaults())
    policy: Policy = values.get("policy", Policy())
    found = {name: getattr(defaults, name) for name in keys_of(Defaults)}
    found["env"] = values.get("env", {}) | defaults.env
    found["engine"] = defaults.engine or values.get("engine", "auto")
    found["when_full"] = defaults.when_full or policy.when_full
    return found


def preset_from(id: str, own: dict[str, Any], inherited: dict[str, Any]) -> Preset:
    """Return a complete preset: its own keys merged with the inherited ones."""
    values = inherited | own
    args = own.get("args", {})
    # The preset's own options come last: if two names mean one option, the last one wins.
    kept = {name: value for name, value in inherited["args"].items() if name not in args}
    values["args"] = kept | args
    values["env"] = inherited["env"] | own.get("env", {})
    if values["when_full"] == f"{SUBSTITUTE}{id}":
        values["when_full"] = "wait"  # inherited: a preset cannot be its own substitute
    if values["keep"] == "always":
        values |= {name: value for name, value in ALWAYS.items() if name not in own}
    if own.get("cmd") is not None:
        values = as_program(values)
    return Preset(id=id, **values)


def against_keep(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys that contradict the `keep: always` beside them."""
    if values.get("keep") == "always":
        for name, value in ALWAYS.items():
            if name in values and values[name] != value:
                yield name


def said_of(record: Record | None, lines: Mapping[str, int], place: str) -> dict[str, Any]:
    """Return the keys of a record that the file sets itself."""
    names = [] if record is None else keys_of(type(record))
    return {name: getattr(record, name) for name in names if f"{place}.{name}" in lines}


_SMALLEST = "`models: {my-model: {model: ~/models/my-model.gguf}}`"
# Keys that belong to one preset; `defaults` has all the others.
_FOREIGN = {
    "variants": "write them in the one preset they vary",
    "model": "write the file of each preset under `models`",
    "aliases": "write them in the one preset they name",
    "hf": "write the repository of each preset under `models`",
    "cmd": "write the command of each preset under `models`",
    "ready": "write it beside the preset's cmd",
    "stop_cmd": "write it beside the preset's cmd",
    "served_by": "write it beside the preset's cmd",
}


def load_config(
    text: str, *, path: Path | None, base_dir: str, env: Mapping[str, str], home: str
) -> Config:
    """Return the configuration a YAML text describes.

    Relative paths start at `base_dir`, `~` is `home`, `${env.NAME}` is taken from `env`, and errors
    name the file by `path`. Raises ConfigError with one line for each mistake, in the file's order.
    """
    source = str(path) if path is not None else "config"
    return load_files([SourceText(source, base_dir, text)], name=source, env=env, home=home)


def load_files(
    files: Sequence[SourceText],
    *,
    name: str,
    env: Mapping[str, str],
    home: str,
    scan: Scan | None = None,
    model_dirs: Sequence[str] = (),
    keep_broken: bool = False,
) -> Config:
    """Return the configuration that several files make together, in their order.

    Errors that concern no single file name `name`. `scan` reads folders of models: those of the key
    `model_dirs`, then the absolute paths given here (None: no folder is read). Raises ConfigError
    as load_config() does. With `keep_broken`, a preset with a mistake is put into `Config.broken`
    instead, unless every preset has one or a key is unknown.
    """
    sources = sources_of(files)
    base = Base(files[0].dir if files else "/", home, sources.dir if files else None)
    reader = _Reader(name, base, sources, keep_broken=keep_broken)
    root = read_together(files, sources, reader.problem)
    if root is None and not model_dirs:
        remedy = f"the smallest file is: {_SMALLEST}"
        raise ConfigError("the file is empty", where=name, remedy=remedy)
    root = root or Table(0, {})
    if any("${" in file.text for file in files):
        root = reader.expanded(root, env)
    return reader.config(root, scan, model_dirs)


def parse_listen(text: str, *, base_dir: str, home: str) -> Endpoint:
    """Return the endpoint of a command line, read like the key `listen`. Raises ConfigError."""
    if text.startswith("unix:") and not text.startswith("unix://"):
        relative = text.removeprefix("unix:")
        try:
            text = "unix:" + Base(base_dir, home).path(relative, Table(0, {}))
        except Invalid as error:
            raise ConfigError(error.message, where="--listen", remedy=error.remedy) from None
    return parse_endpoint(text)


class _Reader:
    """One pass over one file: collects mistakes and the lines of what it reads."""

    def __init__(self, source: str, base: Base, sources: Sources, *, keep_broken: bool) -> None:
        self.source = source
        self.base = base
        self.sources = sources
        self.lines: dict[str, int] = {}
        self.spelled: dict[str, str] = {}
        self.secrets: dict[str, str] = {}
        self._problems: list[tuple[int, Mistake]] = []
        self._keep_broken = keep_broken
        self._ids: set[str] = set()
        self._unnamed: list[str] = []
        """Presets without a file, which may be in the folders of models."""
        self._broken: dict[str, list[tuple[int, Mistake]]] = {}
        """The mistakes that concern one preset alone."""
        self._unresolved: frozenset[str] = frozenset()
        """Presets with an unknown variable: their other mistakes only follow from it."""

    def config(self, root: Table, scan: Scan | None, model_dirs: Sequence[str]) -> Config:
        root = with_old_defaults(root)
        self._know_ids(root)
        values = self.record(Config, root, "")
        self.check_keep(said_of(values.get("defaults"), self.lines, "defaults"), "defaults")
        presets = self.presets(root, scanned=bool(model_dirs or values.get("model_dirs")))
        named = dict.fromkeys((*values.get("model_dirs", ()), *model_dirs))
        folders = tuple(scan(path) for path in named) if scan is not None else ()
        self.add_found(values, presets, folders)
        resolve_names(values, presets, self.lines, self.problem, self.sources.spot)
        self.check_listen(values)
        inherited = inherited_of(values)
        told = {
            id: own
            for id, own in presets.items()
            if ("model" in own or own.get("cmd")) and id not in self._unresolved
        }
        if self._problems or self._broken.keys() >= presets.keys():
            self._problems += [each for some in self._broken.values() for each in some]
            self._broken = {}
            readable = "engine" in values or "engine" not in root.entries
            self.raise_problems(lambda: self.made_of(values, told, inherited) if readable else None)
        described = {id: preset_from(id, told[id], inherited) for id in self._broken if id in told}
        reduce_broken(self._broken, presets)
        config = self.made_of(values, presets, inherited, folders)
        return structs.replace(config, described=described)

    def made_of(
        self,
        values: dict[str, Any],
        presets: dict[str, dict[str, Any]],
        inherited: dict[str, Any],
        folders: tuple[Folder, ...] = (),
    ) -> Config:
        """Return the configuration made of what has been read."""
        models = {id: preset_from(id, own, inherited) for id, own in presets.items()}
        return Config(
            **(values | {"models": models}),
            source=self.source,
            lines=self.lines,
            spelled=self.spelled,
            secrets=self.secrets,
            sources=self.sources,
            folders=folders,
            broken={id: tuple(each for _, each in some) for id, some in self._broken.items()},
        )

    def _know_ids(self, root: Table) -> None:
        """Store the names of the presets, to tell which mistakes concern one of them alone."""
        entry = root.entries.get("models")
        if self._keep_broken and entry is not None and isinstance(entry.value, Table):
            self._ids = set(entry.value.entries)

    def add_found(
        self, values: dict[str, Any], presets: dict[str, dict[str, Any]], folders: Sequence[Folder]
    ) -> None:
        """Add a preset for each model of the folders that has no entry in the file."""
        names = {*values.get("aliases", {})}
        for own in presets.values():
            names |= {*own.get("aliases", ()), *getattr(own.get("request"), "per_name", ())}
        names -= {*self._unnamed}
        add_models(presets, self._unnamed, folders, names)
        for id in self._unnamed:
            if not presets[id].setdefault("model", "") and folders:
                message = "it has no file, and model_dirs have no model of this name"
                others = [each for each in presets if each not in self._unnamed]
                remedy = nearest(id, others) or "add model: PATH"
                self.problem(self.lines[f"models.{id}"], f"models.{id}", message, remedy)
        if folders and not presets and not self._problems:
            said = ", ".join(f"{one.path} ({one.problem or 'no GGUF file'})" for one in folders)
            message = f"there are no models: nothing was found in {said}"
            remedy = "put *.gguf files there, or fetch one: lswap pull user/repo"
            self.problem(self.lines.get("model_dirs", 0), "model_dirs", message, remedy)

    def expanded(self, root: Table, env: Mapping[str, str]) -> Table:
        """Return the tree with its variables replaced; a value with an unknown one is kept."""
        self._know_ids(root)
        root, self.secrets = expand(root, env, self.problem, self.sources.spot)
        self._unresolved = frozenset(self._broken)
        self.raise_problems()
        return root

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
            if not is_null(node):  # a section whose lines are all commented out
                self.nested(key, key.record, node, here, values)
            return
        while key.name not in values:
            try:
                values[key.name] = key.form.read(node, self.base)
            except Invalid as error:
                self.invalid(error, here)
                # The rest is read without the wrong entry, to report its mistakes as well.
                if not isinstance(node, Table) or node.entries.keys() <= {error.key}:
                    return
                if error.key not in node.entries:
                    return
                node = node.without(error.key)
        if isinstance(node, Table):  # the options of `args`, the devices of `memory`, …
            for name, entry in node.entries.items():
                known = long_name(name) if key.name == "args" else name
                self.lines[f"{here}.{known}"] = entry.line
                if key.name == "args" and (written := plain_name(name)) != known:
                    self.spelled[f"{here}.{known}"] = written

    def nested(
        self, key: Key, kind: type[Record], node: Node, here: str, values: dict[str, Any]
    ) -> None:
        """Read a record, or a list or a mapping of records; incomplete ones are left out."""
        if key.many == "list":
            values[key.name] = self.listed(kind, node, here)
        elif key.many == "mapping" and isinstance(node, Table):
            made = values[key.name] = {}
            for name, entry in node.entries.items():
                self.lines[f"{here}.{name}"] = entry.line
                if bad := bad_name(name):
                    self.problem(entry.line, f"{here}.{name}", *bad)
                if (item := self.made(kind, entry.value, f"{here}.{name}")) is not None:
                    made[name] = item
        elif (item := self.made(kind, node, here)) is not None:
            values[key.name] = item

    def listed(self, kind: type[Record], node: Node, here: str) -> tuple[Record, ...]:
        if not isinstance(node, Listing) or not node.items:
            empty = isinstance(node, Listing)
            said = "the list is empty" if empty else f"{describe(node)} is not a list"
            required = ", ".join(f"{name}: …" for name, k in keys_of(kind).items() if k.required)
            self.problem(node.line, here, said, f"write [{{{required}}}, …]")
            return ()
        self.lines |= {f"{here}[{i}]": item.line for i, item in enumerate(node.items)}
        made = [self.made(kind, item, f"{here}[{i}]") for i, item in enumerate(node.items)]
        return tuple(record for record in made if record is not None)

    def made(self, kind: type[Record], node: Node, here: str) -> Record | None:
        """Return a complete record; None if it has a mistake, which is then noted."""
        if not isinstance(node, Table):
            self.problem(node.line, here, f"{describe(node)} is not a mapping of keys")
            return None
        values = self.record(kind, node, here)
        required = [name for name, key in keys_of(kind).items() if key.required]
        for name in required:
            if name not in node.entries:
                self.problem(node.line, here, f"{name} is missing", f"add {name}: …")
        return kind(**values) if values.keys() >= set(required) else None

    def presets(self, root: Table, *, scanned: bool) -> dict[str, dict[str, Any]]:
        """Return what each entry of `models` sets itself; `scanned`: folders may add others."""
        entry = root.entries.get("models")
        if scanned and (entry is None or is_null(entry.value)):
            return {}
        if entry is None or is_null(entry.value):
            strange = root.entries.keys() - keys_of(Config).keys()
            if entry or not any(nearest(name, ["models"]) for name in strange):
                remedy = f"add at least one: {_SMALLEST}"
                self.problem(entry.line if entry else 0, "models", "there are no models", remedy)
            return {}  # `models` is mistyped, which is already reported as an unknown key
        if not isinstance(entry.value, Table):
            message = f"{describe(entry.value)} is not a mapping of presets"
            self.problem(entry.line, "models", message, f"write it like {_SMALLEST}")
            return {}
        presets: dict[str, dict[str, Any]] = {}
        for id, own in entry.value.entries.items():
            here = f"models.{id}"
            self.lines[here] = own.line
            if bad := bad_name(id):
                self.problem(own.line, here, *bad, fatal="," not in id)
            presets[id] = {}
            if isinstance(own.value, Table):
                presets[id] = self.record(Preset, own.value, here)
            elif not is_null(own.value):
                message = f"{describe(own.value)} is not a mapping of keys"
                remedy = "write model: PATH below the name, a space after the colon"
                self.problem(own.value.line, here, message, remedy)
                continue
            named = _says(own.value, "model", "hf", "cmd")  # the last two have their own errors
            if not named and scanned:
                self._unnamed.append(id)
            elif not named:
                self.problem(own.line, here, "the preset names no file", "add model: PATH")
            # A wrong `cmd` is not in `presets` and has been reported.
            if "cmd" in presets[id] or not _says(own.value, "cmd"):
                self.check_preset(presets[id], here)
            self.check_keep(presets[id], here)
        return presets

    # What concerns several keys

    def check_preset(self, values: dict[str, Any], here: str) -> None:
        """Note mistakes in how the keys of a preset combine: model, hf, cmd and their like."""
        for key, message, remedy in combined_mistakes(values):
            place = f"{here}.{key}" if key else here
            self.problem(self.lines[place], place, message, remedy)
        if values.get("hf") is not None:
            values.setdefault("model", "")

    def check_keep(self, values: Mapping[str, Any], here: str) -> None:
        """Note the keys that contradict the `keep: always` beside them."""
        for name in against_keep(values):
            kept, line = self.lines[f"{here}.keep"], self.lines[f"{here}.{name}"]
            message = f"this contradicts `keep: always` ({self.sources.where(kept)})"
            self.problem(line, f"{here}.{name}", message, "remove one of the two lines")

    def check_listen(self, values: dict[str, Any]) -> None:
        allow = values.get("allow_unauthenticated", False)
        try:
            keys = getattr(values.get("keys"), "file", None) is not None
            check_listeners(values.get("listen", ()), allow_unauthenticated=allow, keys=keys)
        except ConfigError as error:
            self.problem(self.lines["listen"], "listen", error.message, error.remedy)

    # Mistakes

    def unknown(self, kind: type[Record], name: str, line: int, here: str) -> None:
        if kind is Defaults and name in _FOREIGN:
            message, remedy = f"{name} belongs to one preset", _FOREIGN[name]
        else:
            message, remedy = UNKNOWN_KEY, key_hint(kind, name)
        self.problem(line, here, message, remedy, fatal=True)

    def invalid(self, error: Invalid, here: str) -> None:
        place = f"{here}.{error.key}" if error.key else here
        unknown = error.message == UNKNOWN_KEY
        self.problem(error.line, place, error.message, error.remedy, fatal=unknown)

    def problem(
        self, line: int, here: str, message: str, remedy: str = "", *, fatal: bool = False
    ) -> None:
        """Note a mistake of one preset; if it is `fatal` or concerns no preset, of the file."""
        where = f"{self.sources.where(line)}: {here}" if line else f"{self.source}: {here}"
        message, remedy = hide(message, self.secrets), hide(remedy, self.secrets)
        owner = None if fatal else owner_of(here, self._ids)
        if owner is None:
            self._problems.append((line, (where, message, remedy)))
        elif owner not in self._unresolved:
            self._broken.setdefault(owner, []).append((line, (where, message, remedy)))

    def raise_problems(self, partial: Callable[[], Config | None] = lambda: None) -> None:
        """Raise the mistakes of the file, if any, with what could be read of it as `partial`."""
        if self._problems:
            self._problems.sort(key=lambda problem: problem[0])
            told = [ConfigError(said, where=at, remedy=do) for _, (at, said, do) in self._problems]
            error = join_errors(told)
            error.partial = partial()
            raise error


def _says(node: Node, *keys: str) -> bool:
    """Return whether a preset has one of these keys, with any value."""
    return isinstance(node, Table) and not node.entries.keys().isdisjoint(keys)
