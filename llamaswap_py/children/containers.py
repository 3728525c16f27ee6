"""Processes of a program that are not below it: those of a container that it started.

`docker run` is a client: the container's processes are children of a daemon. They are found by the
container's id, which the path of its cgroup contains; the engine tells the id of a name. Where that
fails, the process that holds the program's port counts, with its whole container if it is in one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from llamaswap_py.children.cgroups import Group, group_named, places_of
from llamaswap_py.children.holders import holder_outside
from llamaswap_py.endpoint import Endpoint

_ENGINES: Final = ("docker", "podman", "nerdctl")
_SHELLS: Final = ("sh", "bash", "dash", "ash")
_ID: Final = re.compile(r"[0-9a-f]{64}")
_PATIENCE: Final = 10.0


class ContainerCommand(NamedTuple):
    """A command that runs a container: how its engine is called, and what names the container.

    `engine` are the words before `run`, with global options; `name` or `cidfile` may be "".
    """

    engine: tuple[str, ...]
    name: str
    cidfile: str


@dataclass(frozen=True, slots=True)
class Outside:
    """What a program has outside of its own process tree: a cgroup, or a process."""

    group: Group | None = None
    process: psutil.Process | None = None

    def roots(self) -> list[int]:
        """Return the processes that have all others of it below them; none once it is gone."""
        if self.group is None:
            alive = self.process is not None and self.process.is_running()
            return [self.process.pid] if self.process is not None and alive else []
        pids = set(self.group.pids())
        return sorted(pid for pid in pids if _parent(pid) not in pids)


def _parent(pid: int) -> int | None:
    try:
        return psutil.Process(pid).ppid()
    except psutil.Error:
        return None


def read_command(words: Sequence[str]) -> ContainerCommand | None:
    """Return what a command line says of a container that it runs; None if it runs none. Pure."""
    words = _inner(words)
    names = [Path(word).name for word in words]
    at = next((at for at, name in enumerate(names) if name in _ENGINES), None)
    if at is None:
        return None
    verb = next((at for at in range(at + 1, len(words)) if words[at] in ("run", "start")), None)
    if verb is None:
        return None
    engine = [word for word in words[:verb] if word != "container"]
    rest = words[verb + 1 :]
    name = _value(rest, "--name")
    if words[verb] == "start":
        name = next((word for word in reversed(rest) if not word.startswith("-")), "")
    cidfile = _value(rest, "--cidfile")
    return ContainerCommand(tuple(engine), name, cidfile) if name or cidfile else None


def _inner(words: Sequence[str]) -> Sequence[str]:
    """Return the words of a command inside `sh -c`."""
    if len(words) > 2 and Path(words[0]).name in _SHELLS and words[1] == "-c":
        with contextlib.suppress(ValueError):
            return shlex.split(words[2])
    return words


def _value(words: Sequence[str], option: str) -> str:
    for at, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and at + 1 < len(words):
            return words[at + 1]
    return ""


def words_of(pid: int) -> list[str]:
    """Return the command line of a process; empty if it is gone."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    return text.rstrip("\0").split("\0")


async def find_container(
    command: ContainerCommand, env: Mapping[str, str], folder: str | None
) -> Outside | None:
    """Return the cgroup of a container that runs; None if there is none that this system shows."""
    known = await asyncio.to_thread(_read_id, command.cidfile, folder)
    if not known and command.name:
        known = await _ask_id(command, env, folder)
    if not _ID.fullmatch(known):
        return None
    group = await asyncio.to_thread(group_named, known)
    return None if group is None else Outside(group)


def _read_id(cidfile: str, folder: str | None) -> str:
    try:
        return Path(folder or ".", cidfile).read_text(encoding="ascii").strip() if cidfile else ""
    except (OSError, ValueError):
        return ""


async def _ask_id(command: ContainerCommand, env: Mapping[str, str], folder: str | None) -> str:
    """Ask the engine for the id of a container; "" if it does not tell."""
    words = [*command.engine, "inspect", "--type", "container", "--format", "{{.Id}}"]
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            command.name,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, **env},
            cwd=folder,
        )
    except OSError:
        return ""
    try:
        async with asyncio.timeout(_PATIENCE):
            told, _ = await process.communicate()
    except TimeoutError:
        return ""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return told.decode(errors="replace").strip()


def find_holder(pid: int, endpoint: Endpoint) -> Outside | None:
    """Return what holds the endpoint of the program `pid`, if no process of the program does.

    A process in a container stands for all of its container. Blocks for some milliseconds.
    """
    if (holder := holder_outside(pid, endpoint)) is None:
        return None
    for place in places_of(holder):
        if (found := _ID.search(place)) and (group := group_named(found[0])) is not None:
            return Outside(group)
    with contextlib.suppress(psutil.Error):
        return Outside(process=psutil.Process(holder))
    return None
