"""Advice for a wrong command line: what to type instead.

It knows words of other programs, and files and models that stand where a command belongs.
"""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_SAME: Final = {
    "lswap": {"serve": "up", "list": "models", "ls": "models", "down": "stop", "log": "logs"},
    "lswap key": {"create": "new", "add": "new", "ls": "list", "rm": "revoke", "delete": "revoke"},
    "lswap engine": {"ls": "list", "upgrade": "update"},
    "lswap service": {"remove": "uninstall"},
}
"""By command group: a word that means a command of ours."""
_ASK = "start `lswap up`, then send a request with the model's name: lswap loads it"
_KEEP = "`lswap up` serves until Ctrl-C, `lswap service install --now` keeps it running"
_STOP = "`lswap stop` ends lswap, `lswap unload MODEL` a model"
_UPGRADE = (
    "install the new version and restart lswap; `lswap engine update` installs a newer llama-server"
)
_FILE = "`lswap init` writes a file, `lswap check` finds what is wrong with it"
_INSTEAD: Final[dict[str, dict[str, str]]] = {
    "lswap": {
        **dict.fromkeys(("run", "chat", "ask"), _ASK),
        **dict.fromkeys(("start", "daemon", "background"), _KEEP),
        **dict.fromkeys(("kill", "quit", "exit", "shutdown"), _STOP),
        **dict.fromkeys(("config", "edit", "new"), _FILE),
        **dict.fromkeys(("validate", "test", "lint"), "`lswap check FILE`"),
        **dict.fromkeys(("upgrade", "update"), _UPGRADE),
        **dict.fromkeys(
            ("search", "download", "fetch"),
            "`lswap pull user/repo` (--list only shows what there is)",
        ),
        **dict.fromkeys(("remove", "delete", "del"), "`lswap rm MODEL`"),
        **dict.fromkeys(
            ("ui", "web", "open"), "open the address that `lswap status` prints in a browser"
        ),
        **dict.fromkeys(("build", "doctor", "use"), "`lswap engine build`, `use` and `doctor`"),
        **dict.fromkeys(("bug", "issue", "diagnose", "debug"), "`lswap report` writes a report"),
        "install": "`lswap engine install` for llama-server, `lswap service install` for systemd",
        "restart": "`lswap stop`, then `lswap up`; `lswap reload` only reads the file again",
        "show": "`lswap models` lists all models, `lswap why MODEL` explains one",
        "help": "`lswap --help`, `lswap COMMAND --help`",
        "launch": "docs/clients.md has the settings of each client",
        "keys": "`lswap key list`",
        "create": "`lswap import ollama` takes Ollama's models, `lswap init` writes a file",
    },
    "lswap service": {
        **dict.fromkeys(
            ("start", "stop", "restart", "enable", "disable"),
            "systemctl does that, with --user for a service of your own",
        ),
        **dict.fromkeys(("log", "logs"), "`lswap service status` says the command"),
    },
    "lswap engine": {
        **dict.fromkeys(("rm", "remove"), "`lswap engine list` prints its folder: delete that"),
    },
}
"""By command group: a word for which there is no such command, and what to do instead."""
_FILES: Final = (".gguf", ".yaml", ".yml", ".ini", ".json")


def same_word(path: str, word: str) -> str:
    """Return the command that a word means; the word itself if it has no other meaning."""
    return _SAME.get(path, {}).get(word, word)


def advice(path: str, word: str, known: Iterable[str]) -> str | None:
    """Return what was probably meant by `PATH WORD`, or None."""
    if (told := _INSTEAD.get(path, {}).get(word)) is not None:
        return told
    if (guess := _GUESSES.get(path)) is not None and (told := guess(word)) is not None:
        return told
    near = difflib.get_close_matches(word, list(known), 1)
    if near:
        return f"did you mean `{path} {near[0]}`?"
    return f"`lswap key new {word}` makes a key of that name" if path == "lswap key" else None


def option_advice(path: str, option: str, *, near: bool) -> str | None:
    """Return what was probably meant by an option that a command does not have.

    `near`: the command has an option with a similar name, which is suggested already.
    """
    if path == "lswap":
        return f"options follow their command: `lswap up {option} …`"
    if path == "lswap up":
        name = option.lstrip("-")
        if name in _OPTIONS_OF_UP or near:
            return _OPTIONS_OF_UP.get(name)
        return (
            "an option of llama-server goes into the file: "
            f"`defaults: {{args: {{{name}: …}}}}` (`lswap init` writes one)"
        )
    if path == "lswap import command":
        return "put the command in quotes: `lswap import command 'llama-server -m …'`"
    if option in ("--host", "--port"):
        return "name the running lswap by its address: --url http://HOST:PORT"
    if option in ("--config", "-c", "--file", "-f"):
        return f"name the file without an option: `{path} FILE`"
    return None


_OPTIONS_OF_UP: Final = {
    "p": "the port is --port",
    **dict.fromkeys(("d", "detach", "daemon", "background"), _KEEP),
    "api-key": "make a key with `lswap key new NAME` and start with --keys keys.yaml",
}


def _to_be_served(word: str) -> str | None:
    if word.isdecimal():
        return f"`lswap up --port {word}` serves there"
    if _is_a_place(word) or "/" in word or word.startswith("hf:"):
        return f"`lswap up {word}` serves it"
    return None


def _to_be_imported(word: str) -> str | None:
    """Return the command that imports a file, a folder or a command line."""
    if "llama-server" in word:
        return f"`lswap import command '{word}'`"
    if not _is_a_place(word):
        return None
    kind = "ollama" if os.path.isdir(word) else "llama-swap"
    if word.lower().endswith(".ini"):
        kind = "llama-cpp"
    return f"name the program it is from: `lswap import {kind} {word} -o lswap.yaml`"


def _to_be_installed(word: str) -> str | None:
    return f"`lswap service install {word}`" if _is_a_place(word) else None


def _is_a_place(word: str) -> bool:
    return word.lower().endswith(_FILES) or os.path.exists(os.path.expanduser(word))


_GUESSES: Final[dict[str, Callable[[str], str | None]]] = {
    "lswap": _to_be_served,
    "lswap import": _to_be_imported,
    "lswap service": _to_be_installed,
}
