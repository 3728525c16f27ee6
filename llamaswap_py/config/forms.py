"""Forms: how each kind of value is written in YAML, and how a key is described.

A `Form` defines one spelling. It reads a node, gives the JSON Schema of what it reads, and spells
a value for the reference page. The types of values that are special to this file are here, too.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from llamaswap_py import units
from llamaswap_py.config.yaml_tree import (
    UNKNOWN_KEY,
    Invalid,
    Listing,
    Node,
    Scalar,
    Table,
    describe,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def key(description: str, form: Form, *examples: Any) -> Meta:
    """Describe a key whose values have a form of their own."""
    return Meta(description=description, examples=list(examples), extra={"form": form})


def plain(description: str, *examples: Any, ge: int | None = None, le: int | None = None) -> Meta:
    """Describe a key whose values are a boolean, a number, or one of some words."""
    return Meta(description=description, examples=list(examples), ge=ge, le=le)


def word(description: str, word: str, *, ge: int) -> Meta:
    """Describe a key whose values are a number, or a word that is read as None."""
    return Meta(description=description, examples=[word, ge], ge=ge, extra={"word": word})


class Record(Struct, frozen=True):
    """A mapping with fixed keys."""


Schema = dict[str, Any]
CONTROL: Final = re.compile("[\0-\x1f\x7f]")
"""Characters that no name contains."""


@dataclass(frozen=True, slots=True)
class Base:
    """Where relative paths start, which depends on their line, and what `~` means."""

    dir: str
    home: str
    dir_of: Callable[[int], str] | None = None

    def path(self, text: str, node: Node) -> str:
        """Return `text` as an absolute path. Raises Invalid."""
        if not text:
            raise Invalid(node, "the path is empty", "write one or remove the key")
        if text == "~" or text.startswith("~/"):
            return _nameable(posixpath.join(self.home, text[2:]), node)
        if text.startswith("~"):
            raise Invalid(
                node, f"{text!r}: only ~/ is known, not another user's home", "write the path out"
            )
        return _nameable(posixpath.join(self.start(node), text.removeprefix("./")), node)

    def start(self, node: Node) -> str:
        """Return the folder where relative paths of a value start."""
        return self.dir if self.dir_of is None else self.dir_of(node.line)


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write a value in YAML."""

    read: Callable[[Node, Base], Any]
    schema: Schema
    spell: Callable[[Any], Any] = lambda value: value


def _nameable(path: str, node: Node) -> str:
    """Return a path that can be sent as JSON and over HTTP, else raise Invalid."""
    if not units.is_utf8(path):
        shown = units.showable(path)
        raise Invalid(node, f"the path {shown} is not UTF-8", "rename the folder")
    return path


def expected(node: Node, what: str) -> Invalid:
    """Return the error for a value of the wrong kind."""
    if isinstance(node, Scalar) and node.value is None and node.plain:
        return Invalid(node, "there is no value", f"write {what}, or remove the key")
    return Invalid(node, f"{describe(node)} is not {what}")


def read_text(node: Node, what: str) -> str:
    """Return a scalar's text; numbers and words are as they were written. Raises Invalid."""
    if not isinstance(node, Scalar) or (node.value is None and node.plain) or node.text == "":
        raise expected(node, what)
    return node.text


def _text(node: Node, _: Base) -> str:
    return read_text(node, "a text")


def _path(node: Node, base: Base) -> str:
    return base.path(read_text(node, "a path"), node)


def is_null(node: Node) -> bool:
    """Return whether nothing, or an unquoted null, was written."""
    return isinstance(node, Scalar) and node.value is None and node.plain


def at_key(name: str, form: Form, node: Node, base: Base) -> Any:
    """Read the value of one key of a mapping with any keys; an error names that key."""
    try:
        return form.read(node, base)
    except Invalid as error:
        error.key = error.key or name
        raise


def or_null(form: Form) -> Form:
    """Return the form that also takes `null`."""
    return Form(
        lambda node, base: None if is_null(node) else form.read(node, base),
        {"anyOf": [form.schema, {"type": "null"}]},
        lambda value: None if value is None else form.spell(value),
    )


def or_word(word: str, form: Form, meaning: object = None) -> Form:
    """Return the form that also takes one word, read as `meaning`."""

    def read(node: Node, base: Base) -> Any:
        return meaning if isinstance(node, Scalar) and node.text == word else form.read(node, base)

    return Form(
        read,
        {"anyOf": [{"const": word}, form.schema]},
        lambda value: word if value == meaning else form.spell(value),
    )


# Sizes and durations


def _with_unit(parse: Callable[[str], Any], what: str, examples: Callable[[str], str]) -> Any:
    def read(node: Node, _: Base) -> Any:
        text = read_text(node, what)
        if node.plain and isinstance(node.value, int | float) and node.value != 0:  # type: ignore[union-attr]
            raise Invalid(node, f"{text} has no unit", f"write {examples(text)}")
        try:
            return parse(text)
        except ValueError as error:
            raise Invalid(node, str(error)) from None

    return read


_ZERO: Final = {"type": "integer", "const": 0}
SIZE: Final = Form(
    _with_unit(units.parse_size, "a size like 512MiB", lambda n: f"{n}MiB or {n}GiB"),
    {"anyOf": [{"title": "size", "type": "string", "pattern": units.SIZE_PATTERN}, _ZERO]},
    units.spell_size,
)
DURATION: Final = Form(
    _with_unit(units.parse_duration, "a duration like 30s", lambda n: f"{n}s, {n}m or {n}h"),
    {"anyOf": [{"title": "duration", "type": "string", "pattern": units.DURATION_PATTERN}, _ZERO]},
    units.spell_duration,
)


def _positive(form: Form) -> Form:
    def read(node: Node, base: Base) -> Any:
        if not (value := form.read(node, base)):
            raise Invalid(node, "must be more than 0")
        return value

    return Form(read, form.schema["anyOf"][0], form.spell)


POSITIVE_DURATION: Final = _positive(DURATION)
POSITIVE_SIZE: Final = _positive(SIZE)
TTL: Final = or_word("never", DURATION)
SLEEP: Final = or_word("never", POSITIVE_DURATION)

# Texts and paths

TEXT: Final = Form(_text, {"type": "string", "minLength": 1})
PATH: Final = Form(_path, {"title": "path", "type": "string", "minLength": 1})
UI: Final = or_word("auto", or_word("none", PATH, "none"), "auto")


def _name(node: Node, what: str) -> str:
    text = read_text(node, what)
    if text != text.strip() or CONTROL.search(text) or len(text) > 255:
        remedy = "write it without line breaks, and without blanks around it"
        raise Invalid(node, f"{text!r} is not a name", remedy)
    return text


def read_list(node: Node, what: str) -> tuple[Node, ...]:
    """Return the items of a list. Raises Invalid for anything else."""
    if not isinstance(node, Listing):
        if isinstance(node, Scalar) and node.value is not None:
            raise Invalid(node, f"{describe(node)} is not a list", f"write [{node.text}]")
        raise expected(node, f"a list of {what}")
    return node.items


def _names(node: Node, _: Base) -> tuple[str, ...]:
    names = tuple(_name(item, "a name") for item in read_list(node, "names"))
    for item, name in zip(read_list(node, "names"), names, strict=True):
        if names.count(name) > 1:
            raise Invalid(item, f"{name!r} is here twice", "remove one of them")
    return names


def _hosts(node: Node, base: Base) -> tuple[str, ...]:
    names = _names(node, base)
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise Invalid(
                node,
                f"{name!r} is not a host name",
                "write the name alone, without http:// or port",
            )
    return tuple(name.lower() for name in names)


_TEXTS: Final[Schema] = {"type": "array", "items": {"type": "string", "minLength": 1}}
PATHS: Final = Form(
    lambda node, base: tuple(
        dict.fromkeys(_path(item, base) for item in read_list(node, "folders"))
    ),
    _TEXTS,
    list,
)
NAME: Final = Form(lambda node, _: _name(node, "a name"), {"type": "string", "minLength": 1})
NAMES: Final = Form(_names, {**_TEXTS, "uniqueItems": True}, list)
HOSTS: Final = Form(_hosts, {**_TEXTS, "uniqueItems": True}, list)


def words_of(words: tuple[str, ...]) -> Form:
    """Return the form of a list of some of these words."""

    def read(node: Node, base: Base) -> tuple[str, ...]:
        names = _names(node, base)
        for item, name in zip(read_list(node, "names"), names, strict=True):
            if name not in words:
                raise Invalid(item, f"{name!r} is not one of {', '.join(words)}")
        return names

    return Form(read, {"type": "array", "items": {"enum": [*words]}, "uniqueItems": True}, list)


# What happens when the memory is full

SUBSTITUTE: Final = "substitute:"
_WHEN_FULL: Final = "wait, refuse or {substitute: NAME}"


def _when_full(node: Node, base: Base) -> str:
    if isinstance(node, Table):
        for key, entry in node.entries.items():
            if key != "substitute":
                raise Invalid(entry, UNKNOWN_KEY, "known here: substitute", key=key)
        if "substitute" not in node.entries:
            raise Invalid(node, "the mapping is empty", f"write {_WHEN_FULL}")
        name: str = at_key("substitute", NAME, node.entries["substitute"].value, base)
        return SUBSTITUTE + name
    text = read_text(node, _WHEN_FULL)
    name = text.removeprefix(SUBSTITUTE).strip()
    if text in ("wait", "refuse"):
        return text
    if text.startswith(SUBSTITUTE) and name:
        return SUBSTITUTE + name
    raise Invalid(node, f"{text!r} is not {_WHEN_FULL}")


WHEN_FULL: Final = Form(
    _when_full,
    {
        "anyOf": [
            {"enum": ["wait", "refuse"]},
            {"title": "substitute: NAME", "type": "string", "pattern": r"^substitute:\s*\S"},
            {
                "type": "object",
                "additionalProperties": False,
                "required": ["substitute"],
                "properties": {"substitute": NAME.schema},
            },
        ]
    },
)


class EngineChoice(msgspec.Struct, frozen=True):
    """Which of the installed llama-servers: a build number, a backend, or both."""

    build: int | None = None
    backend: str | None = None
    """One of llamacpp.backends.NAMES."""


EngineSpec: TypeAlias = str | EngineChoice
"""`auto`, the absolute path of a llama-server, or a choice among the installed ones."""


PORT = "{port}"
"""The placeholder in a command for the port it must listen on."""
SOCKET = "{socket}"
"""The placeholder in a command for the path of the unix socket it must listen on."""


class Command(msgspec.Struct, frozen=True):
    """A program other than llama-server: its words, and the folder it runs in."""

    words: tuple[str, ...]
    dir: str

    @property
    def takes_socket(self) -> bool:
        """Whether it listens on a unix socket rather than a port."""
        return any(SOCKET in word for word in self.words)


class ReadyCheck(msgspec.Struct, frozen=True):
    """How lswap sees that a program is ready: GET `http` answers 2xx, or it prints a `line`.

    The line contains this text, or matches it as a regular expression.
    """

    http: str | None = None
    line: str | None = None


class Filters(msgspec.Struct, frozen=True):
    """What lswap changes in the JSON of a request, in its top-level members only.

    `set` overrides members, `default` adds missing ones, `strip` removes them. Each name in
    `per_name` is another name of the preset; requests that use it get its changes as well.
    """

    set: dict[str, Any] = {}
    default: dict[str, Any] = {}
    strip: tuple[str, ...] = ()
    per_name: dict[str, Filters] = {}


class PerDevice(msgspec.Struct, frozen=True):
    """A size in bytes for every device, with other sizes for the named ones.

    `may_yield`: nobody asked for it, so a model that fits nothing otherwise may get a part of it.
    """

    default: int
    devices: dict[str, int] = {}
    may_yield: bool = False

    def of(self, device: str) -> int:
        """Return the size for `device`, in bytes."""
        return self.devices.get(device, self.default)


Favor: TypeAlias = Literal["speed", "context"]
AutoVariants: TypeAlias = Literal["auto", "off"]


class Fit(msgspec.Struct, frozen=True):
    """What lswap may choose of a preset's context and placement.

    `least` and `want` are tokens that one request gets. `margin` stays free on each device, if it
    is more than `memory.margin`. `variants`: whether there is also a way with less context, which
    fits beside the models in use.
    """

    chooses: bool = True
    least: int = 8192
    want: int = 32768
    favor: Favor = "speed"
    margin: PerDevice = PerDevice(0)
    variants: AutoVariants = "auto"


EXACT: Final = Fit(chooses=False)
"""Nothing is chosen: the engine runs with the options that the file gives."""
