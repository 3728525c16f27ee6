"""Turns a command that is not llama-server into a preset with `cmd`. Pure.

lswap reaches a program at 127.0.0.1, on a port that lswap chooses. Parts of a command that name
another machine, a container or a path stay unchanged, and a note names them: only the user knows
what they mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from llamaswap_py.config.model_forms import CONTAINERS, is_runner
from llamaswap_py.importing.command import split_command
from llamaswap_py.importing.draft import Draft
from llamaswap_py.llamacpp.env_variables import RESERVED

_MACRO: Final = "${PORT}"
_PORT: Final = "{port}"
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "0.0.0.0", "::1", "::", ""})
# Programs that run a command elsewhere: the words after them do not apply to this machine.
_STARTERS: Final = CONTAINERS | {
    *("docker-compose", "podman-compose", "lxc", "incus", "wsl", "srun"),
    *("distrobox", "toolbox", "machinectl", "systemctl"),
}
"""Programs that start a process which is not their child and which holds the port itself."""
_ELSEWHERE: Final = _STARTERS | {"ssh", "autossh", "mosh", "sshpass", "kubectl", "oc"}
_SHELLS: Final = frozenset({"sh", "bash", "dash", "zsh", "ash"})
_LISTENS: Final = re.compile(r"port|listen|bind|addr|host|serve|url", re.IGNORECASE)
_PUBLISH: Final = re.compile(r"(-p|--publish)(=?)(.*)", re.DOTALL)
# Variables that a preset of lswap cannot set: another program uses them with another meaning.
_NOT_ENV: Final = tuple(RESERVED)


class Address(NamedTuple):
    """The address of a program; `port` None is the port that llama-swap gives it."""

    host: str
    port: str | None
    path: str
    secure: bool = False

    @property
    def is_local(self) -> bool:
        return self.host.lower() in _LOCAL


def read_address(proxy: str) -> Address:
    """Return the address in llama-swap's `proxy`; raises ValueError if it is not an address."""
    marked = proxy.replace(_MACRO, "1")  # a number, as far as the reading of addresses goes
    parts = urlsplit(marked if "://" in marked else f"http://{marked}")
    standard = 443 if parts.scheme == "https" else 80
    port = None if _MACRO in proxy else str(parts.port or standard)
    return Address(parts.hostname or "", port, parts.path.rstrip("/"), parts.scheme == "https")


def read_program(
    place: str, words: Sequence[str], env: Mapping[str, str], model: Mapping[str, Any], draft: Draft
) -> dict[str, Any]:
    """Return the preset for a command of llama-swap's that is not llama-server.

    What it cannot say is noted in `draft`.
    """
    proxy = str(model.get("proxy") or f"http://localhost:{_MACRO}")
    check = str(model.get("checkEndpoint") or "/health")
    kept, before = _environment(env)
    name = place.removeprefix("models.")
    try:
        address = read_address(proxy)
    except ValueError:
        draft.note(f"{place}.proxy", f"{proxy!r} is not an address")
        address = Address("localhost", None, "")
    if address.is_local and not any(_MACRO in word for word in words):
        words = with_port(words, address.port)
    words = [*before, *words]
    if address.is_local:  # else the command stays unchanged: lswap cannot reach it at {port}
        words = [word.replace(_MACRO, _PORT) for word in words]
    preset: dict[str, Any] = {"cmd": list(words)}
    told = any(_PORT in word for word in words)
    if not told:
        draft.failing[name] = None
    _note_address(place, proxy, address, told, draft)
    if any("${PID}" in word for word in words):
        draft.note(f"{place}.cmd", "lswap does not replace ${PID} here")
    if check == "none":
        text = "set how lswap sees that it is ready: `ready: {line: TEXT}`, or another path"
        draft.note(f"{place}.checkEndpoint", text)
        check = "/"
    preset["ready"] = {"http": address.path + (check if check.startswith("/") else f"/{check}")}
    if stop := _stop_words(str(model.get("cmdStop") or ""), place, draft):
        preset["stop_cmd"] = stop
    if not _STARTERS.isdisjoint(_programs(words)):
        preset["served_by"] = "container"
    if told:
        draft.note(place, "its first load runs alone, to measure its memory (or set `memory:`)")
    if model.get("useModelName"):
        preset["request"] = {"set": {"model": str(model["useModelName"])}}
    if kept:
        preset["env"] = kept
    return preset


def _stop_words(command: str, place: str, draft: Draft) -> list[str]:
    """Return the words of `cmdStop`, with lswap's names for the process and its port."""
    try:
        words = split_command(command)
    except ValueError as error:
        draft.note(f"{place}.cmdStop", f"cannot be read as a command: {error}")
        return []
    return [word.replace("${PID}", "{pid}").replace(_MACRO, _PORT) for word in words]


def _note_address(place: str, proxy: str, address: Address, told: bool, draft: Draft) -> None:
    place += ".proxy"
    if not address.is_local:
        text = (
            "lswap reaches programs at 127.0.0.1 only, so it cannot serve: run lswap there, or have"
            " the command bring its port here, to {port}"
        )
        draft.note(place, text, proxy)
    elif not told:
        text = (
            "the command does not say where to listen, so it cannot serve: put {port} where it says"
            " the port of this machine"
        )
        draft.note(place, text, proxy)
    elif address.secure:
        draft.note(
            place, "lswap uses HTTP without TLS to reach programs: have it serve HTTP", proxy
        )
    if address.path and address.is_local:
        text = (
            "requests reach it without this path in front: start it so that it serves at /, or ask"
            " for it below /upstream/NAME/"
        )
        draft.note(place, text, address.path)


def _environment(env: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables that `env` can have, and the words that set the others."""
    kept, words = {}, []
    for name, value in env.items():
        if _MACRO in value or name.startswith(_NOT_ENV):
            words.append(f"{name}={value}")
        else:
            kept[name] = value
    return kept, ["env", *words] if words else []


def with_port(words: Sequence[str], port: str | None) -> list[str]:
    """Return a command with ${PORT} in the places that certainly mean the port of its address.

    These are the published port of a container, the value of an option for ports and addresses, or
    the only place that has the number. Words of a command that runs elsewhere stay unchanged.
    """
    words = list(words)
    if port is None:
        return words
    program = next((at for at, word in enumerate(words) if not is_runner(word)), 0)
    name = words[program].rpartition("/")[2] if words else ""
    if name in CONTAINERS:
        return _with_published(words, port)
    if not _ELSEWHERE.isdisjoint(_programs(words)):
        return words
    whole = re.compile(rf"(?<![\w.]){port}(?![\w.])")
    places = [at for at, word in enumerate(words) if whole.search(word)]
    if len(places) > 1:
        places = [at for at in places if _is_listening(words, at)]
    return [whole.sub(_MACRO, word) if at in places else word for at, word in enumerate(words)]


def _programs(words: Sequence[str]) -> list[str]:
    """Return the program of a command; of a shell every word that may name one."""
    program = next((at for at, word in enumerate(words) if not is_runner(word)), 0)
    name = words[program].rpartition("/")[2] if words else ""
    return re.findall(r"[\w-]+", " ".join(words[program:])) if name in _SHELLS else [name]


def _is_listening(words: Sequence[str], at: int) -> bool:
    option = words[at].partition("=")[0] if words[at].startswith("-") else words[max(at - 1, 0)]
    return option in ("-p", "-P") or (option.startswith("-") and bool(_LISTENS.search(option)))


def _with_published(words: list[str], port: str) -> list[str]:
    """Return a container's command with ${PORT} as the port of this machine that is published."""
    found: list[str] = []
    for word in words:
        match = _PUBLISH.fullmatch(word)
        before = found[-1] if found else ""
        if before in ("-p", "--publish"):
            found.append(_published(word, port))
        elif match is not None and match[3]:
            found.append(match[1] + match[2] + _published(match[3], port))
        else:
            found.append(word)
    return found


def _published(text: str, port: str) -> str:
    """Return `[address:]port:inside` with ${PORT} for the port."""
    *address, outside, inside = text.rsplit(":", 2) if ":" in text else ("", text)
    if outside != port:
        return text
    return ":".join([*address, _MACRO, inside])
