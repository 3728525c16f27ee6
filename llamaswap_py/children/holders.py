"""Which process holds the port of a child: one of the child's own, or another.

Any local user can listen on a port that a child has not taken yet, or no longer holds, and would
get its prompts. So lswap uses a port only while one of the child's processes holds the socket that
listens there. It finds that out once for each socket, and remembers the socket's inode, which is
unique. After that, each new connection costs only a look for that inode in the kernel's table.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pwd
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import psutil

from llamaswap_py.children.family import family_of, sockets_of
from llamaswap_py.children.listeners import asks_kernel, can_tell, table, takers

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.children.child_events import ChildSpec
    from llamaswap_py.children.listeners import Listener
    from llamaswap_py.endpoint import Endpoint

_LOOKS: Final = 3
_PAUSE: Final = 0.05
"""Seconds until the next look for a socket that is passing from one process to another."""
_UNHELD: Final = 3
"""Accepted connections in a row, to a port without a listener, that count as a stranger's. One
alone may be a server that has just closed its socket, or a connection of the kernel to itself."""
REMEDY: Final = "if cmd only talks to a container or a service, add `served_by: container`"
REMEDY_OF_STRANGER: Final = (
    "end that process, or have cmd listen on {socket} instead of {port}: others cannot take that"
)
REMEDY_OF_ENGINE: Final = "take an engine that listens on a unix socket: `lswap engine install`"


class ProcessFamily(NamedTuple):
    """Sockets of a child's processes (inodes), and the users whose sockets the system hides."""

    sockets: frozenset[int]
    hidden: frozenset[int]


def serves_itself(pid: int, endpoint: Endpoint) -> bool:
    """Tell whether a process of the family holds the socket that listens at `endpoint`.

    A program that is only the client of another one (`docker run`, `ssh`) does not hold it.
    """
    return not listening(endpoint).isdisjoint(look_at(pid).sockets)


def holder_outside(pid: int, endpoint: Endpoint) -> int | None:
    """Return a process that holds the socket at `endpoint`, if none of the family does.

    Processes of lswap itself do not count, nor those that this user may not look at.
    """
    inodes = listening(endpoint)
    if not inodes or not inodes.isdisjoint(look_at(pid).sockets):
        return None
    for one in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if inodes.isdisjoint(sockets_of(one.pid)):
                continue
            above = {each.pid for each in one.parents()} | {one.pid}
            return None if os.getpid() in above else one.pid
    return None


def listening(endpoint: Endpoint) -> set[int]:
    """Return the inodes of the sockets that listen at `endpoint`; none if that is not shown."""
    try:
        if endpoint.path is None:
            return {one.inode for one in takers(endpoint.host, endpoint.port)}
        return {int(each[6]) for each in table("unix") if each[-1] == endpoint.path}
    except OSError:
        return set()


def look_at(pid: int) -> ProcessFamily:
    """Return what a child's processes hold."""
    sockets: set[int] = set()
    hidden: set[int] = set()
    for one in family_of(pid):
        try:
            sockets |= sockets_of(one)
        except PermissionError:  # of another user, or with privileges of its own
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(one)
                if process.status() != psutil.STATUS_ZOMBIE:
                    hidden.add(process.uids().effective)
        except OSError:  # it has ended
            continue
    return ProcessFamily(frozenset(sockets), frozenset(hidden))


class PortWatch:
    """Watches over the port of one child; `pid()` is the child's process.

    If another program holds the port, it calls `on_taken` with the message about that.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        served_by: str,
        pid: Callable[[], int | None],
        on_taken: Callable[[str], None],
        remedy: str = REMEDY,
    ) -> None:
        self._endpoint = endpoint
        self._served_by = served_by
        self._pid = pid
        self._on_taken = on_taken
        self._remedy = remedy
        self._known: frozenset[int] = frozenset()
        self._unheld = 0

    async def confirm(self) -> bool:
        """Tell whether a connection that was just made reached the child (`endpoint.Confirm`).

        It did if all sockets that could take it are known as the child's: they still listen.
        """
        found = await self._takers()
        if found and self._known.issuperset(one.inode for one in found):
            self._unheld = 0
            return True
        if found:
            await self._learn(found)
            return False
        if self._served_by == "container":  # the kernel forwards it, by rules of root
            return True
        self._unheld += 1
        if self._unheld >= _UNHELD:
            port = self._endpoint.port
            said = f"something answers on port {port}, which no process of this machine holds"
            self._on_taken(f"{said} - {self._remedy}")
        raise self._refused()

    async def _takers(self) -> list[Listener]:
        host, port = self._endpoint.host, self._endpoint.port
        if asks_kernel():
            return takers(host, port)
        return await asyncio.to_thread(takers, host, port)

    async def _learn(self, found: list[Listener]) -> None:
        """Remember the sockets that listen there, if they are the child's."""
        self._unheld = 0
        self._known, stranger = await asyncio.to_thread(self._judge, found)
        if stranger is not None:
            self._on_taken(await asyncio.to_thread(self._describe, stranger))
            raise self._refused()

    def _judge(self, found: list[Listener]) -> tuple[frozenset[int], Listener | None]:
        """Return the inodes of these sockets if all are the child's, else one that is not. Blocks.

        It returns neither if that one has closed meanwhile. Sockets of another user's process
        (`sudo -u`) are hidden from us. So any socket of that user counts as the child's: that user
        can read the memory of its processes anyway.
        """
        pid = self._pid()
        for number in range(_LOOKS):
            if number:
                time.sleep(_PAUSE)
            family = look_at(pid) if pid is not None else ProcessFamily(frozenset(), frozenset())
            users = family.hidden
            if self._served_by == "container":
                users |= {0, os.geteuid()}
            strange = [
                one for one in found if one.inode not in family.sockets and one.uid not in users
            ]
            if not strange:
                return frozenset(one.inode for one in found), None
            found = takers(self._endpoint.host, self._endpoint.port)
            if strange[0] not in found:
                return frozenset(), None
        return frozenset(), strange[0]

    def _describe(self, stranger: Listener) -> str:
        """Return which process holds the port, and the remedy. Blocks."""
        remedy = self._remedy
        if remedy == REMEDY and stranger.uid not in (
            0,
            os.geteuid(),
        ):  # root or our own user holds a container's port
            remedy = REMEDY_OF_STRANGER
        try:
            user = pwd.getpwuid(stranger.uid).pw_name
        except KeyError:
            user = str(stranger.uid)
        holder = f"a process of user {user}"
        for pid in psutil.pids():
            with contextlib.suppress(OSError, psutil.Error):
                if stranger.inode in sockets_of(pid):
                    holder = f"process {pid} ({psutil.Process(pid).name()}, user {user})"
                    break
        port = self._endpoint.port
        said = f"port {port} is held by {holder}, not by a process that this preset started"
        return f"{said} - {remedy}"

    def _refused(self) -> ConnectionRefusedError:
        text = f"{self._endpoint} is not held by the child"
        return ConnectionRefusedError(errno.ECONNREFUSED, text)


def port_watch(
    spec: ChildSpec, pid: Callable[[], int | None], on_taken: Callable[[str], None]
) -> Callable[[Endpoint], Endpoint]:
    """Return the function that makes a child's endpoint confirm each of its connections.

    Unix sockets do not need it: they lie in a folder that no other user may enter.
    """
    program = spec.program
    served_by = "cmd" if program is None else program.served_by
    remedy = REMEDY_OF_ENGINE if program is None else REMEDY

    def watched(endpoint: Endpoint) -> Endpoint:
        if endpoint.path is not None or served_by == "anyone" or not can_tell():
            return endpoint
        watch = PortWatch(endpoint, served_by, pid, on_taken, remedy)
        return endpoint._replace(confirm=watch.confirm)

    return watched
