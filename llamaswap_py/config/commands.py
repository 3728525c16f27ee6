"""How programs other than llama-server are written: `cmd` and `ready`, and what they exclude."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llamaswap_py.config.forms import Form, expected, or_null, read_list, read_text
from llamaswap_py.config.nodes import UNKNOWN_KEY, Invalid, Node, Scalar, Table, describe
from llamaswap_py.config.values import PORT, SOCKET, Command, Ready

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llamaswap_py.config.forms import Base

CONTAINERS: Final = frozenset({"docker", "podman", "nerdctl"})
"""Programs that start a container, which then holds the port."""
RUNNERS: Final = frozenset({"sudo", "nohup", "nice", "exec", "env", "time", "doas"})
"""Programs that run the command behind them."""
OF_PROGRAMS: Final = {
    "ready": "remove it: llama-server says so",
    "stop_cmd": "remove it: lswap stops llama-server itself",
    "served_by": "remove it: llama-server listens on a socket of its own",
}
"""Keys of a preset that mean nothing without `cmd`, each with what to do instead."""
OF_LLAMA_SERVER: Final = (
    *("model", "hf", "args", "extra", "engine", "variants"),
    *("fit", "sleep", "keep_kv", "prefer", "resume"),
)
"""Keys of a preset that mean llama-server, which `cmd` does not run."""
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
        raise Invalid(node, f"{said} in it: it has to be told where to listen", remedy)
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


def _ready(node: Node, _: Base) -> Ready:
    if not isinstance(node, Table):
        raise expected(node, "{http: /health} or {line: TEXT}")
    if len(node.entries) != 1 or not {"http", "line"} & node.entries.keys():
        name = next((name for name in node.entries if name not in ("http", "line")), "")
        if name:
            raise Invalid(node.entries[name], UNKNOWN_KEY, "known here: http, line", key=name)
        raise Invalid(node, "it has one of http and line", "write {http: /health} or {line: TEXT}")
    ((name, entry),) = node.entries.items()
    text = read_text(entry.value, "a path" if name == "http" else "a part of a line")
    if name == "line":
        return Ready(line=text)
    if not text.startswith("/") or not text.isascii() or not text.isprintable() or " " in text:
        raise Invalid(entry.value, f"{text!r} is not a path", "write one like /health", key=name)
    return Ready(http=text)


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
    """Yield the keys that do not go together with `cmd`, or not without: key, message, remedy."""
    if values.get("cmd") is None:
        for key, remedy in OF_PROGRAMS.items():
            if key in values:
                yield key, f"{key} is for programs that cmd runs", remedy
        return
    for key in OF_LLAMA_SERVER:
        if key in values and key in ("model", "hf"):
            yield key, f"the preset has a cmd, too: {key} is for llama-server", "keep one of them"
        elif key in values:
            remedy = "remove it; the words of cmd are all that the program is told"
            yield key, f"{key} is for llama-server, and cmd runs another program", remedy


def starts_container(words: Sequence[str]) -> str | None:
    """Return the name of the program in a command that starts a container, if one does."""
    program = next((word for word in words if not is_runner(word)), "").rpartition("/")[2]
    return program if program in CONTAINERS else None


def is_runner(word: str) -> bool:
    """Return whether a word of a command stands before its program."""
    return word.rpartition("/")[2] in RUNNERS or "=" in word or word.startswith("-")


def as_program(values: dict[str, Any]) -> dict[str, Any]:
    """Return the merged keys of a preset with `cmd` without what it inherits for llama-server."""
    without: dict[str, Any] = {"args": {}, "extra": (), "fit": "exact", "sleep": None}
    return values | without | {"model": "", "prefer": "fit", "resume": False, "keep_kv": False}
