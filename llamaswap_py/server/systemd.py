"""What the service manager and lswap tell each other: sd_notify(3) and sd_listen_fds(3).

lswap sends its state in datagrams of KEY=VALUE lines. The service manager may hand over listening
sockets that it has opened before.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import StateError
from llamaswap_py.tasks.tick import BEAT, until_beat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping
    from types import TracebackType


_log: Final = logging.getLogger("lswap")
_UNSENT: Final = 8
"""Messages kept while the service manager does not read; pings are not kept."""


class Notifier:
    """The service manager at `address`; if that is None, all methods do nothing.

    It wants a sign of life every `watchdog` seconds. No method raises or blocks, because lswap
    serves also if the service manager is slow or has ended.
    """

    def __init__(self, address: str | None, watchdog: float | None = None) -> None:
        self.watchdog = watchdog
        self._socket: socket.socket | None = None
        name = _socket_name(address) if address else None
        self._address = name or ""
        self._unsent: list[bytes] = []
        self._status = ""
        self._failing = False
        if name is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    @classmethod
    def take(cls, env: MutableMapping[str, str]) -> Notifier:
        """Return the service manager that `env` names, and hide it from our children."""
        address = env.pop("NOTIFY_SOCKET", None)
        seconds = env.pop("WATCHDOG_USEC", "")
        pid = env.pop("WATCHDOG_PID", "")
        ours = pid in ("", str(os.getpid()))
        valid = seconds.isascii() and seconds.isdecimal() and int(seconds) > 0
        return cls(address, int(seconds) / 1e6 if ours and valid else None)

    @property
    def active(self) -> bool:
        """Whether there is a service manager."""
        return self._socket is not None

    def __enter__(self) -> Notifier:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ready(self) -> None:
        """Say that lswap serves: at its start, and after each reload."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that lswap takes no new requests."""
        self._send("STOPPING=1")

    def ping(self) -> None:
        """Give a sign of life."""
        self._send("WATCHDOG=1", keep=False)

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows; sent only when it has changed."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Say that the configuration is being read again, and at the end that lswap serves.

        The time is CLOCK_MONOTONIC in microseconds, by which a service manager with
        `Type=notify-reload` knows which reload this is.
        """
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self.ready()

    async def run(self, status: Callable[[], str]) -> None:
        """Ping at half the watchdog's interval, and keep the status line true, until cancelled.

        With each beat the line is compared, and sent if it has changed.
        """
        if not self.active:
            return
        half = self.watchdog / 2 if self.watchdog else None
        pause = BEAT if half is None else min(half, BEAT)
        loop = asyncio.get_running_loop()
        pinged = -float("inf")
        while True:
            # A late ping means a restart: if the next round would be too late, ping now.
            if half is not None and time.monotonic() + 1.125 * pause > pinged + half:
                self.ping()
                pinged = time.monotonic()
            self.status(status())
            await asyncio.sleep(until_beat(loop.time()) if pause == BEAT else pause)

    def _send(self, text: str, *, keep: bool = True) -> None:
        if self._socket is None:
            return
        waiting = [*self._unsent, text.encode()]
        self._unsent.clear()
        for number, message in enumerate(waiting):
            try:  # by name each time: a service manager that restarts opens another socket
                self._socket.sendto(message, self._address)
            except OSError as error:  # its queue is full, or it has ended: try again with the next
                self._unsent = (waiting[number:] if keep else waiting[number:-1])[-_UNSENT:]
                self._complain(error)
                return
        self._failing = False

    def _complain(self, error: OSError) -> None:
        if not self._failing:
            _log.warning("cannot send the state to the service manager: %s", error.strerror)
        self._failing = True


def _socket_name(address: str) -> str | None:
    """Return the path, or the abstract name that is written as `@name`; None for others."""
    if address.startswith("@"):
        return f"\0{address[1:]}"
    if address.startswith("/"):
        return address
    _log.warning("NOTIFY_SOCKET is neither a path nor an abstract name: %s", address)
    return None


_FIRST: Final = 3
"""SD_LISTEN_FDS_START: the number of the first descriptor."""
_REMEDY: Final = "let ListenStream= of the .socket unit name TCP addresses or socket paths"


def inherited_sockets(env: MutableMapping[str, str], first: int = _FIRST) -> list[socket.socket]:
    """Return the sockets that `env` hands to this process, and remove them there.

    The list is empty if there are none, or if they are for another process. Raises StateError for
    a descriptor that is not a listening stream socket.
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
    """Return the address of a listening socket."""
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
