"""Connections to children: made, kept for another use where that is safe, and dropped."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Final

from ..dialing import open_tcp
from .repeated import KnownAnswers
from .upstream import UpstreamConnection

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from ..endpoint import Endpoint

#: llama-server closes idle connections after 5 s: stay below, or a request meets its FIN.
_IDLE_LIMIT: Final = 4.0
_MOST_IDLE: Final = 32
_CONNECT_LIMIT: Final = 10.0
#: First and longest pause before a full listen queue of a unix socket is tried again.
_BACKLOG_PAUSE: Final = (0.002, 0.05)


class UpstreamPool:
    """Owns every connection to a child; as a context manager it closes them all at its end."""

    def __init__(self) -> None:
        self._idle: dict[Endpoint, list[UpstreamConnection]] = {}
        self._connections: set[UpstreamConnection] = set()
        self._closed = False
        #: heads that children have answered with
        self.answers = KnownAnswers()

    async def __aenter__(self) -> UpstreamPool:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        for connection in list(self._connections):
            connection.abort()

    def __repr__(self) -> str:
        idle = sum(map(len, self._idle.values()))
        return f"<UpstreamPool {len(self._connections)} connections, {idle} idle>"

    @property
    def idle(self) -> int:
        """How many connections wait for another use."""
        return sum(map(len, self._idle.values()))

    def take(self, endpoint: Endpoint) -> UpstreamConnection | None:
        """Return the connection that was idle for the shortest time, if it is still good."""
        idle = self._idle.get(endpoint)
        while idle:
            connection = idle.pop()
            if connection.closed:
                continue
            if time.monotonic() - connection.idle_since < _IDLE_LIMIT:
                return connection
            connection.abort()
        return None

    def keep(self, connection: UpstreamConnection) -> None:
        """Take back a connection after a complete answer."""
        idle = self._idle.get(connection.endpoint)
        if idle is None:
            idle = self._idle[connection.endpoint] = []
        if self._closed or len(idle) >= _MOST_IDLE:
            connection.abort()
            return
        connection.idle_since = time.monotonic()
        idle.append(connection)

    def drop(self, endpoint: Endpoint) -> None:
        """Close what is idle, and keep nothing that is busy: the child is about to stop."""
        for connection in self._idle.pop(endpoint, []):
            connection.abort()
        for connection in self._connections:
            if connection.endpoint == endpoint:
                connection.retire()

    def forget(self, connection: UpstreamConnection) -> None:
        """The connection is lost."""
        self._connections.discard(connection)
        idle = self._idle.get(connection.endpoint)
        if idle and connection in idle:
            idle.remove(connection)
        if not idle:
            self._idle.pop(connection.endpoint, None)

    async def connect(
        self, endpoint: Endpoint, *, wanted: Callable[[], bool] = lambda: True
    ) -> UpstreamConnection:
        """Return a fresh connection. Raises OSError; also when it is no longer wanted."""

        def make() -> UpstreamConnection:
            return UpstreamConnection(endpoint, self)

        loop = asyncio.get_running_loop()
        if endpoint.path is None:
            async with asyncio.timeout(_CONNECT_LIMIT):
                sock = await open_tcp(endpoint)
            _, connection = await loop.create_connection(make, sock=sock)
        else:
            sock = await _connect_unix(endpoint.path, wanted)
            _, connection = await loop.create_unix_connection(make, sock=sock)
        self._connections.add(connection)
        if connection.closed:
            self._connections.discard(connection)
        return connection


async def _connect_unix(path: str, wanted: Callable[[], bool]) -> socket.socket:
    """Connect to a unix socket; where its listen queue is full the kernel offers no wait."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _CONNECT_LIMIT
    pause, longest = _BACKLOG_PAUSE
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:
                if loop.time() > deadline or not wanted():
                    raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
            else:
                return sock
    except BaseException:
        sock.close()
        raise
