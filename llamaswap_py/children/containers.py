"""Processes of a program that are not below it: those of a container that it started.

`docker run` is a client: the container's processes are children of a daemon. They are found by the
container's id, which the path of its cgroup contains; the engine knows the id by the name or by the
port. Where that fails, the process that holds the program's port counts. Its whole cgroup counts
with it, if that is a container's, or if every process in it began after the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from llamaswap_py.children.cgroups import Group, group_named, groups_around, places_of
from llamaswap_py.children.holders import holder_outside
from llamaswap_py.endpoint import Endpoint

_ENGINES: Final = ("docker", "podman", "nerdctl")
_VERBS: Final = ("run", "start", "compose", "up")
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
    """What a program has outside of its own process tree: a cgroup, or a process.

    A container has an `id`, and `engine` are the words that call its engine, if they are known.
    """

    group: Group | None = None
    process: psutil.Process | None = None
    id: str = field(default="", compare=False)
    engine: tuple[str, ...] = field(default=(), compare=False)

    def pids(self) -> list[int]:
        """Return its processes; none once it is gone."""
        if self.group is not None:
            return [pid for pid in self.group.pids() if not _is_zombie(pid)]
        if self.process is None:
            return []
        try:
            return (
                []
                if _is_zombie(self.process.pid) or not self.process.is_running()
                else [self.process.pid, *(one.pid for one in self.process.children(recursive=True))]
            )
        except psutil.Error:
            return []

    def roots(self) -> list[int]:
        """Return the processes that have all others of it below them; none once it is gone."""
        if self.group is None:
            alive = self.process is not None and self.process.is_running()
            return [self.process.pid] if self.process is not None and alive else []
        return tops(self.group.pids())

    def began_after(self, moment: float) -> bool:
        """Return whether it runs, and none of its processes began before that moment."""
        began = [began_at(pid) for pid in self.roots()]
        return bool(began) and all(one >= moment for one in began)

    def __str__(self) -> str:
        first = next(iter(self.roots()), None)
        name = ""
        with contextlib.suppress(psutil.Error):
            name = "" if first is None else f", {psutil.Process(first).name()}"
        told = f"process {first}{name}" if first is not None else "no process"
        if self.id:
            return f"container {self.id[:12]} ({told})"
        return told.replace(", ", " (", 1) + ")" if name else told


def began_at(pid: int) -> float:
    """Return when a process began, in seconds of the system's clock; 0 if it is gone."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def tops(pids: Sequence[int]) -> list[int]:
    """Return those of the processes whose parent is not among them."""
    known = set(pids)
    return sorted(pid for pid in known if _parent(pid) not in known)


def _parent(pid: int) -> int | None:
    try:
        return psutil.Process(pid).ppid()
    except psutil.Error:
        return None


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def read_command(words: Sequence[str]) -> ContainerCommand | None:
    """Return what a command line says of a container that it runs; None if it runs none. Pure."""
    engine, rest = _divided(words, ("run", "start"))
    name = _value(rest, "--name")
    if rest[:1] == ["start"]:
        name = next((word for word in reversed(rest[1:]) if not word.startswith("-")), "")
    cidfile = _value(rest, "--cidfile")
    return ContainerCommand(engine, name, cidfile) if name or cidfile else None


def read_engine(words: Sequence[str]) -> tuple[str, ...]:
    """Return how a command calls a container engine, with global options; () if it calls none.

    Pure. It also knows commands that name no container: `docker run IMAGE`, `docker compose up`.
    """
    return _divided(words, _VERBS)[0]


def _divided(words: Sequence[str], verbs: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the words that call a container engine, and those from the verb on; empty if none."""
    words = _inner(words)
    at = next((at for at, word in enumerate(words) if Path(word).name in _ENGINES), len(words))
    verb = next((at for at in range(at + 1, len(words)) if words[at] in verbs), None)
    if verb is None:
        return (), []
    return tuple(word for word in words[:verb] if word != "container"), list(words[verb:])


def removes(words: Sequence[str]) -> bool:
    """Return whether a command has its container removed once that has ended. Pure."""
    return not {"--rm", "--rm=true"}.isdisjoint(_inner(words))


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
        words = [*command.engine, "inspect", "--type", "container", "--format", "{{.Id}}"]
        known = (await ask_engine([*words, command.name], env, folder)).strip()
    return await _with_id(known, command.engine)


async def find_publisher(
    engine: tuple[str, ...], port: int, env: Mapping[str, str], folder: str | None
) -> Outside | None:
    """Return the container that publishes a port of this machine, by its engine's list."""
    words = [*engine, "ps", "--no-trunc", "--format", "{{.ID}} {{.Ports}}"]
    for line in (await ask_engine(words, env, folder)).splitlines():
        known, _, ports = line.partition(" ")
        if f":{port}->" in ports:
            return await _with_id(known, engine)
    return None


async def _with_id(known: str, engine: tuple[str, ...]) -> Outside | None:
    if not _ID.fullmatch(known):
        return None
    group = await asyncio.to_thread(group_named, known)
    return None if group is None else Outside(group, id=known, engine=engine)


def _read_id(cidfile: str, folder: str | None) -> str:
    try:
        return Path(folder or ".", cidfile).read_text(encoding="ascii").strip() if cidfile else ""
    except (OSError, ValueError):
        return ""


async def ask_engine(
    words: Sequence[str],
    env: Mapping[str, str],
    folder: str | None,
    patience: float = _PATIENCE,
) -> str:
    """Run a command of a container engine; return what it prints, "" if it fails or hangs."""
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, **env},
            cwd=folder,
        )
    except (OSError, ValueError):  # ValueError: a NUL byte in a word
        return ""
    try:
        async with asyncio.timeout(patience):
            told, _ = await process.communicate()
    except TimeoutError:
        return ""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return told.decode(errors="replace")


def find_holder(pid: int, endpoint: Endpoint, since: float = math.inf) -> Outside | None:
    """Return what holds the endpoint of the program `pid`, if no process of the program does.

    A process in a container stands for its whole container. A process in a cgroup where every
    process began at `since` or later, like that of a systemd unit, stands for the whole cgroup.
    Blocks for some milliseconds.
    """
    if (holder := holder_outside(pid, endpoint)) is None:
        return None
    for place in places_of(holder):
        if (found := _ID.search(place)) and (group := group_named(found[0])) is not None:
            return Outside(group, id=found[0])
    for group in _groups_after(holder, since):
        return Outside(group)
    with contextlib.suppress(psutil.Error):
        return Outside(process=psutil.Process(holder))
    return None


def _groups_after(pid: int, moment: float) -> Iterator[Group]:
    """Yield the cgroups of a process in which every process began after that time."""
    for group in groups_around(pid):
        pids = group.pids()
        if pid in pids and all(began_at(one) >= moment for one in pids):
            yield group
