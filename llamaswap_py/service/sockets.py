"""Listening sockets that the service manager opened for us: sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import StateError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_FIRST: Final = 3
"""SD_LISTEN_FDS_START: the descriptors are this one and those after it."""
_REMEDY: Final = "let ListenStream= of the .socket unit name TCP addresses or socket paths"


def inherited_sockets(env: MutableMapping[str, str], first: int = _FIRST) -> list[socket.socket]:
    """Return the sockets that `env` hands to this process, and remove them there.

    An empty list where there are none, or where they are for another process. Raises StateError
    for a descriptor that is not a listening stream socket.
    """
    pid, count = env.pop("LISTEN_PID", ""), env.pop("LISTEN_FDS", "")
    for name in ("LISTEN_FDNAMES", "LISTEN_PIDFDID"):
        env.pop(name, None)
    if pid != str(os.getpid()) or not (count.isascii() and count.isdecimal()):
        return []
    with ExitStack() as undo:
        found = []
        for fd in range(first, first + int(count)):
            sock = _adopt(fd)
            undo.callback(sock.close)
            _check(sock, fd)
            found.append(sock)
        undo.pop_all()
    return found


def endpoint_of(sock: socket.socket) -> Endpoint:
    """Return where a listening socket listens."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return Endpoint(path=name if isinstance(name, str) else f"@{name[1:].decode()}")
    return Endpoint(host=name[0], port=name[1])


def _adopt(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise StateError(
            f"descriptor {fd}, which LISTEN_FDS names, is not a socket: {error.strerror}",
            remedy=_REMEDY,
        ) from None
    sock.setblocking(False)
    return sock


def _check(sock: socket.socket, fd: int) -> None:
    families = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
    listens = (
        sock.family in families
        and sock.type == socket.SOCK_STREAM
        and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    )
    if not listens:
        raise StateError(
            f"descriptor {fd}, which LISTEN_FDS names, is not a listening stream socket",
            remedy=f"{_REMEDY}, with Accept=no",
        )
