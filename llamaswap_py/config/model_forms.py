"""Forms of a preset's keys: options, environment, commands, devices, engines.

It also checks which keys of one preset exclude each other (`combined_mistakes`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from llamaswap_py import units
from llamaswap_py.config.forms import (
    EXACT,
    PORT,
    SIZE,
    SOCKET,
    TEXT,
    Command,
    EngineChoice,
    Form,
    PerDevice,
    ReadyCheck,
    at_key,
    expected,
    or_null,
    or_word,
    read_list,
    read_text,
)
from llamaswap_py.config.yaml_tree import (
    UNKNOWN_KEY,
    Invalid,
    Listing,
    Node,
    Scalar,
    Table,
    describe,
)
from llamaswap_py.llamacpp import backends
from llamaswap_py.llamacpp.env_variables import RESERVED
from llamaswap_py.llamacpp.option_values import token_count
from llamaswap_py.llamacpp.options import long_name
from llamaswap_py.llamacpp.path_options import PATH_LISTS, PATH_OPTIONS
from llamaswap_py.units import HOST, spell_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llamaswap_py.config.forms import Base, Schema
    from llamaswap_py.llamacpp.options import Argument


_SCALAR: Final[Schema] = {"type": ["string", "number", "boolean"]}


def _table(node: Node, what: str) -> Table:
    if not isinstance(node, Table):
        raise expected(node, what)
    return node


# args


def _args(node: Node, base: Base) -> dict[str, Argument]:
    what = "a mapping like {ctx-size: 8192, jinja: true}"
    if isinstance(node, Listing) or (isinstance(node, Scalar) and isinstance(node.value, str)):
        remedy = "write each option as NAME: VALUE; put whole words of the command into `extra`"
        raise Invalid(node, f"{describe(node)} is not {what}", remedy)
    table = _table(node, what)
    args: dict[str, Argument] = {}
    spelled: dict[str, str] = {}
    for key, entry in table.entries.items():
        name = long_name(key)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name, re.ASCII):
            raise Invalid(
                entry, "this is not an option name", "write it as in --help, without --", key=key
            )
        if name in args:
            message = f"the same option as {spelled[name]}"
            raise Invalid(entry, message, f"keep one: {name}", key=key)
        spelled[name] = key
        try:
            args[name] = _argument(name, entry.value, base)
        except Invalid as error:
            error.key = key
            raise
    return args


def _argument(name: str, node: Node, base: Base) -> Argument:
    if isinstance(node, Listing):
        return tuple(_one(name, item, base) for item in node.items)
    return _one(name, node, base)


def _one(name: str, node: Node, base: Base) -> bool | int | float | str:
    if isinstance(node, Table):
        raise Invalid(node, "an option takes no mapping", "write JSON between single quotes")
    if not isinstance(node, Scalar):
        raise Invalid(node, "an option takes no list of lists", "write one list of values")
    if node.value is None and node.plain:
        raise expected(node, "a value (true for an option that takes none)")
    if name in PATH_OPTIONS and not isinstance(node.value, bool):
        return base.path(node.text, node)
    if name in PATH_LISTS and not isinstance(node.value, bool):
        return ",".join(base.path(part, node) for part in node.text.split(","))
    return token_count(name, node.text if node.value is None else node.value)


ARGS: Final = Form(
    _args,
    {
        "type": "object",
        "propertyNames": {"pattern": "^-{0,2}[A-Za-z0-9][A-Za-z0-9._-]*$"},
        "additionalProperties": {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR}]},
    },
)


# extra


def _extra(node: Node, _: Base) -> tuple[str, ...]:
    words = []
    for item in read_list(node, "words like [--flag, value]"):
        if (
            not isinstance(item, Scalar)
            or isinstance(item.value, bool)
            or (item.value is None and item.plain)
        ):
            raise Invalid(item, f"{describe(item)} is not a word of a command line", "quote it")
        words.append(item.text)
    return tuple(words)


EXTRA: Final = Form(_extra, {"type": "array", "items": {"type": ["string", "number"]}}, list)


# env


def _env(node: Node, base: Base) -> dict[str, str]:
    table = _table(node, "a mapping like {NAME: value}")
    env: dict[str, str] = {}
    for name, entry in table.entries.items():
        if not name or "=" in name:
            message = f"{name!r} is not the name of a variable"
            raise Invalid(entry, message, "write a name without =", key=name)
        if why := next((why for start, why in RESERVED.items() if name.startswith(start)), None):
            raise Invalid(entry, "this variable cannot be set here", why, key=name)
        env[name] = at_key(name, _VARIABLE, entry.value, base)
    return env


def _variable(node: Node, _: Base) -> str:
    if isinstance(node, Scalar) and node.text == "" and (not node.plain or node.shown):
        return ""  # written as "", or a variable with an empty value
    return read_text(node, 'a value ("" for an empty one)')


_VARIABLE: Final = Form(_variable, {})
_NOT_ENV_PATTERN: Final = "|".join(RESERVED)
ENV: Final = Form(
    _env,
    {
        "type": "object",
        "propertyNames": {"pattern": f"^(?!{_NOT_ENV_PATTERN})[^=]+$"},
        "additionalProperties": _SCALAR,
    },
)


# metadata


def _metadata(node: Node, _: Base) -> dict[str, Any]:
    table = _table(node, "a mapping like {note: for the team}")
    found: dict[str, Any] = {}
    for name, entry in table.entries.items():
        value = entry.value
        if not isinstance(value, Scalar) or (value.value is None and value.plain):
            raise Invalid(
                value, f"{describe(value)} is not a text, a number, true or false", key=name
            )
        found[name] = value.value
    return found


METADATA: Final = Form(_metadata, {"type": "object", "additionalProperties": _SCALAR})


CONTAINERS: Final = frozenset({"docker", "podman", "nerdctl"})
"""Programs that start a container; then a process of the container holds the port."""
RUNNERS: Final = frozenset({"sudo", "nohup", "nice", "exec", "env", "time", "doas"})
"""Programs that run the command that follows them."""
OF_PROGRAMS: Final = {
    "ready": "remove it: lswap knows when llama-server is ready",
    "stop_cmd": "remove it: lswap stops llama-server itself",
    "served_by": "remove it: llama-server listens on a socket of its own",
}
"""Keys of a preset that only `cmd` uses, each with its remedy."""
OF_LLAMA_SERVER: Final = (
    *("model", "hf", "args", "extra", "engine", "variants"),
    *("fit", "sleep", "keep_kv", "prefer", "resume"),
)
"""Keys of a preset that only llama-server uses, so not together with `cmd`."""
_HOW_STOP: Final = "write a list: [docker, stop, whisper]"
_HOW: Final = "write a list: [whisper-server, --port, '{port}', -m, model.bin]"


def _command(node: Node, base: Base) -> Command:
    if isinstance(node, Scalar) and node.text:
        raise Invalid(node, f"{describe(node)} is not a list of words", _HOW)
    items = read_list(node, "words")
    if not items:
        raise Invalid(node, "the list is empty", _HOW)
    words = [_word(item, base) for item in items]
    if "/" in words[0] and not words[0].startswith("/"):
        words[0] = base.path(words[0], items[0])
    text = " ".join(words)
    if (PORT in text) == (SOCKET in text):
        said = f"both {PORT} and {SOCKET} are" if PORT in text else f"no word has {PORT}"
        remedy = f"put {PORT} where the program takes its port, or {SOCKET} for a unix socket"
        raise Invalid(node, f"{said} in it, but the program must be told where to listen", remedy)
    return Command(tuple(words), base.start(node))


def _word(item: Node, base: Base) -> str:
    if not isinstance(item, Scalar) or (item.value is None and item.plain and item.text):
        raise Invalid(item, f"{describe(item)} is not a word of a command line", "quote it")
    return base.path(item.text, item) if item.text.startswith("~/") else item.text


COMMAND: Final = or_null(
    Form(
        _command,
        {"type": "array", "items": {"type": ["string", "number", "boolean"]}, "minItems": 1},
        lambda command: list(command.words),
    )
)


def _stop(node: Node, base: Base) -> tuple[str, ...]:
    if isinstance(node, Scalar) and node.text:
        raise Invalid(node, f"{describe(node)} is not a list of words", _HOW_STOP)
    items = read_list(node, "words")
    words = [_word(item, base) for item in items]
    if words and "/" in words[0] and not words[0].startswith("/"):
        words[0] = base.path(words[0], items[0])
    return tuple(words)


STOP: Final = Form(
    _stop, {"type": "array", "items": {"type": ["string", "number", "boolean"]}}, list
)


def _ready(node: Node, _: Base) -> ReadyCheck:
    if not isinstance(node, Table):
        raise expected(node, "{http: /health} or {line: TEXT}")
    if len(node.entries) != 1 or not {"http", "line"} & node.entries.keys():
        name = next((name for name in node.entries if name not in ("http", "line")), "")
        if name:
            raise Invalid(node.entries[name], UNKNOWN_KEY, "known here: http, line", key=name)
        raise Invalid(node, "it needs either http or line", "write {http: /health} or {line: TEXT}")
    ((name, entry),) = node.entries.items()
    text = read_text(entry.value, "a path" if name == "http" else "a part of a line")
    if name == "line":
        return ReadyCheck(line=text)
    if not text.startswith("/") or not text.isascii() or not text.isprintable() or " " in text:
        raise Invalid(entry.value, f"{text!r} is not a path", "write one like /health", key=name)
    return ReadyCheck(http=text)


READY: Final = Form(
    _ready,
    {
        "type": "object",
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {
            "http": {"type": "string", "pattern": r"^/|\$\{"},
            "line": {"type": "string", "minLength": 1},
        },
    },
    lambda ready: {"http": ready.http} if ready.http else {"line": ready.line},
)


def misplaced(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the keys that exclude `cmd`, or that need it: key, message, remedy."""
    if values.get("cmd") is None:
        for key, remedy in OF_PROGRAMS.items():
            if key in values:
                yield key, f"{key} is for programs that cmd runs", remedy
        return
    for key in OF_LLAMA_SERVER:
        if key in values and key in ("model", "hf"):
            message = f"{key} is for llama-server, but the preset has cmd"
            yield key, message, "keep one of them"
        elif key in values:
            remedy = "remove it, and write the program's options into cmd"
            yield key, f"{key} is for llama-server, but cmd runs another program", remedy


def starts_container(words: Sequence[str]) -> str | None:
    """Return the name of the program in a command that starts a container, if one does."""
    program = next((word for word in words if not is_runner(word)), "").rpartition("/")[2]
    return program if program in CONTAINERS else None


def is_runner(word: str) -> bool:
    """Return whether a word of a command is a program that runs the one after it."""
    return word.rpartition("/")[2] in RUNNERS or "=" in word or word.startswith("-")


def as_program(values: dict[str, Any]) -> dict[str, Any]:
    """Return the merged keys of a preset with `cmd`, without those that only llama-server uses."""
    without: dict[str, Any] = {"args": {}, "extra": (), "fit": EXACT, "sleep": None}
    return values | without | {"model": "", "prefer": "fit", "resume": False, "keep_kv": False}


# Devices

AUTO: Final = "auto"
ALL: Final = "all"
"""Words instead of names in `device`. `auto`: cards, or integrated GPUs if there are none. `all`:
both."""
_DEVICE_NAME: Final = r"[A-Za-z][A-Za-z0-9_.:-]*"
_DEVICE_SCHEMA: Final[Schema] = {
    "title": "device",
    "type": "string",
    "pattern": f"^{_DEVICE_NAME}$",
}


def _device(text: str, node: Node) -> str:
    if text != HOST and text.lower() in (HOST, "cpu"):
        raise Invalid(node, f"{text!r} is not a device", f"main memory is called {HOST}")
    if not re.fullmatch(_DEVICE_NAME, text, re.ASCII):
        raise Invalid(node, f"{text!r} is not a device", f"write a name like CUDA0, or {HOST}")
    return text


def _devices(node: Node, _: Base) -> tuple[str, ...]:
    items = node.items if isinstance(node, Listing) else (node,)
    devices = tuple(_device(read_text(item, "a device like CUDA0"), item) for item in items)
    if not devices or len(set(devices)) < len(devices):
        raise Invalid(
            node,
            "a device is here twice" if devices else "the list is empty",
            "name each device once, or write auto",
        )
    if HOST in devices and len(devices) > 1:
        raise Invalid(
            node, f"{HOST} stands alone: it hides every other device", "remove the others"
        )
    return devices


def _sizes(node: Node, base: Base) -> dict[str, int]:
    if not isinstance(node, Table) or not node.entries:
        raise expected(node, "a mapping like {CUDA0: 24GiB, host: 64GiB}")
    return {
        _device(name, Scalar(entry.line, name, name)): at_key(name, SIZE, entry.value, base)
        for name, entry in node.entries.items()
    }


def _spell_sizes(sizes: dict[str, int]) -> dict[str, str]:
    return {device: spell_size(size) for device, size in sizes.items()}


def _margin(node: Node, base: Base) -> PerDevice:
    if isinstance(node, Table):
        return PerDevice(units.GIB, _sizes(node, base))
    return PerDevice(SIZE.read(node, base))


SIZES: Final = Form(
    _sizes,
    {
        "type": "object",
        "propertyNames": _DEVICE_SCHEMA,
        "additionalProperties": SIZE.schema,
        "minProperties": 1,
    },
    _spell_sizes,
)
MARGIN: Final = Form(
    _margin,
    {"anyOf": [SIZE.schema, SIZES.schema]},
    lambda margin: _spell_sizes(margin.devices) if margin.devices else spell_size(margin.default),
)
KEPT_FREE: Final = or_word("auto", MARGIN, PerDevice(units.GIB, may_yield=True))
BUDGETS: Final = or_word("auto", SIZES)
DEVICES: Final = or_word(
    AUTO,
    or_word(
        ALL,
        Form(
            _devices,
            {"anyOf": [_DEVICE_SCHEMA, {"type": "array", "items": _DEVICE_SCHEMA, "minItems": 1}]},
            lambda value: value[0] if len(value) == 1 else list(value),
        ),
        ALL,
    ),
    AUTO,
)

# The engine


def _engine(node: Node, base: Base) -> str | EngineChoice:
    if isinstance(node, Table):
        return _choice(node, base)
    text = read_text(node, "auto, a path, or {build: b11434, backend: cuda}")
    if text == "auto":
        return text
    if "/" not in text and not text.startswith("~"):
        remedy = f"write auto, a path (./{text}), or {{build: b11434, backend: cuda}}"
        raise Invalid(node, f"{text!r} is not an engine", remedy)
    return base.path(text, node)


def _choice(node: Table, base: Base) -> EngineChoice:
    build: int | None = None
    backend: str | None = None
    for key, entry in node.entries.items():
        text = at_key(key, TEXT, entry.value, base)
        if key == "build" and re.fullmatch(r"b?[0-9]{1,9}", text, re.ASCII):
            build = int(text.removeprefix("b"))
        elif key == "build":
            raise Invalid(entry.value, f"{text!r} is not a build", "write one like b11434", key=key)
        elif key == "backend" and text in backends.NAMES:
            backend = text
        elif key == "backend":
            known = ", ".join(backends.NAMES)
            raise Invalid(entry.value, f"{text!r} is not a backend", f"one of {known}", key=key)
        else:
            raise Invalid(entry, UNKNOWN_KEY, "known here: build, backend", key=key)
    if build is None and backend is None:
        raise Invalid(node, "the choice is empty", "write a build, a backend, or auto")
    return EngineChoice(build, backend)


ENGINE: Final = Form(
    _engine,
    {
        "anyOf": [
            {"const": "auto"},
            {"title": "path", "type": "string", "pattern": "^~|/"},
            {
                "type": "object",
                "additionalProperties": False,
                "minProperties": 1,
                "properties": {
                    "build": {"type": ["string", "integer"], "pattern": "^b?[0-9]{1,9}$"},
                    "backend": {"enum": list(backends.NAMES)},
                },
            },
        ]
    },
)


HUB: Final = re.compile(r"(hf\.co/)?[\w][\w.-]*/[\w][\w.-]*(:([^\s/]+|[^\s:]+\.gguf))?", re.ASCII)
"""A reference to a repository of Hugging Face."""
_PAGE: Final = re.compile(r"(?:.*/)?https?:/+(?:hf\.co|huggingface\.co)/([\w.-]+/[\w.-]+)")
"""The URL of a repository's page or of a file there, as copied from a browser."""


def combined_mistakes(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the mistakes in how a preset's keys combine: key ("": the preset), message, remedy."""
    yield from misplaced(values)
    if "cmd" in values and values["cmd"] is None and not {"model", "hf"} & values.keys():
        yield "", "it names no file and no program", "add model: PATH"
    reference = values.get("hf")
    if reference is None:
        if "hf" in values and "model" not in values:
            yield "", "it names no file", "add model: PATH"
    elif "model" in values:
        yield "hf", "the preset also names a file", "keep one of model and hf"
    elif not HUB.fullmatch(reference):
        page = _PAGE.match(reference)
        remedy = f"write {page[1]}" if page else "write user/repo or user/repo:QUANT"
        yield "hf", f"{reference!r} is not a repository", remedy
    if isinstance(file := values.get("model"), str) and (page := _PAGE.search(file)):
        message = "this is an address on the web, not a path"
        yield "model", message, f"write hf: {page[1]} instead: its files are fetched on first use"
