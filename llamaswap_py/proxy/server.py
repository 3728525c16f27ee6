"""The HTTP server: listens for clients, and owns one task for each connection."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from llamaswap_py.proxy.backpressure import Outbox
from llamaswap_py.proxy.bodies import Bodies
from llamaswap_py.proxy.client import ClientConnection
from llamaswap_py.proxy.head_cache import KnownRequests
from llamaswap_py.proxy.messages import WireLimits
from llamaswap_py.proxy.places import Places
from llamaswap_py.proxy.sockets import BACKLOG, remove_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence

    from llamaswap_py.proxy.exchange import Exchange
    from llamaswap_py.proxy.messages import WireErrorRenderer


logger = logging.getLogger(__name__)


class Server:
    """Accepts clients until it is told to stop; made by `serve`."""

    def __init__(
        self,
        handler: Callable[[Exchange], Awaitable[None]],
        limits: WireLimits,
        on_wire_error: WireErrorRenderer,
        group: asyncio.TaskGroup,
        inherited: bool = False,
        places: Places | None = None,
        bodies: Bodies | None = None,
    ) -> None:
        self.handler = handler
        self.places = places or Places()
        self.bodies = bodies or Bodies()
        self.limits = limits
        self.heads = KnownRequests()
        self.outbox = Outbox(asyncio.get_running_loop())
        self.on_wire_error = on_wire_error
        self._group = group
        self._inherited = inherited
        self._clients: dict[asyncio.Task[None], ClientConnection] = {}
        self._listeners: list[tuple[asyncio.Server, socket.socket]] = []
        self._stopping = False
        self._ended = False
        self._empty = asyncio.Event()

    def __repr__(self) -> str:
        state = "stopping" if self._stopping else "listening"
        return f"<Server {state}, {self.connections} connections>"

    @property
    def connections(self) -> int:
        """The number of connected clients."""
        return len(self._clients)

    async def listen(self, sock: socket.socket) -> None:
        """Accept clients on a socket that is bound and listens."""
        loop = asyncio.get_running_loop()
        start = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        listener = await start(lambda: ClientConnection(self), sock=sock, backlog=BACKLOG)
        self._listeners.append((listener, sock))

    def adopt(
        self, connection: ClientConnection, life: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None] | None:
        """Run a connection's task, and own it until it ends; None if the server is closing."""
        if self._ended:
            life.close()
            return None
        task = self._group.create_task(life)
        self._clients[task] = connection
        task.add_done_callback(self._disown)
        if self._stopping:
            connection.retire()
        return task

    def _disown(self, task: asyncio.Task[None]) -> None:
        del self._clients[task]
        if not self._clients:
            self._empty.set()

    async def stop_accepting(self) -> None:
        """Close the listening sockets; connected clients stay."""
        self._stopping = True
        for listener, sock in self._listeners:
            if not self._inherited:
                remove_path(sock)
            listener.close()
        self._listeners.clear()

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - the grace is the server's
        """Close idle connections at once, the others after their exchange or after `timeout`."""
        self._stopping = True
        for connection in list(self._clients.values()):
            connection.retire()
        try:
            async with asyncio.timeout(timeout):
                await self._all_gone()
        except TimeoutError:
            logger.warning("aborting %d connections that did not finish", self.connections)
            self.abort()
            await self._all_gone()

    def close(self) -> None:
        """Refuse all further clients, even one that was accepted a moment ago."""
        self._ended = True
        self.abort()

    def abort(self) -> None:
        """Cut every connection and cancel its handler."""
        for connection in list(self._clients.values()):
            connection.abandon()

    async def _all_gone(self) -> None:
        while self._clients:
            self._empty.clear()
            await self._empty.wait()


@asynccontextmanager
async def serve(
    listens: Sequence[socket.socket],
    handler: Callable[[Exchange], Awaitable[None]],
    limits: WireLimits | None = None,
    *,
    on_wire_error: WireErrorRenderer,
    inherited: bool = False,
    places: Places | None = None,
    bodies: Bodies | None = None,
) -> AsyncIterator[Server]:
    """Serve HTTP on sockets that are bound and listen; leaving the block ends every connection.

    `handler` is called once for each request, and cancelled if its client disconnects. `places`
    limits connections; `bodies` counts large bodies. The paths of unix sockets are removed, unless
    the sockets are `inherited` from a process that continues to listen.
    """
    failure: Exception | None = None
    async with asyncio.TaskGroup() as group:
        server = Server(
            handler, limits or WireLimits(), on_wire_error, group, inherited, places, bodies
        )
        try:
            for sock in listens:
                await server.listen(sock)
            yield server
        except Exception as error:
            failure = error  # raised again below, outside of an exception group
        finally:
            await server.stop_accepting()
            server.close()
    if failure is not None:
        raise failure
