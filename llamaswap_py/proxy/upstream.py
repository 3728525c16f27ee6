"""Connections to children: the pool that opens, reuses and closes them, and one connection.

A connection is reused only where that is safe. It does its own flow control.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Final, Protocol, cast

from llamaswap_py.proxy.dial import open_tcp, opened
from llamaswap_py.proxy.head_cache import KnownAnswers
from llamaswap_py.proxy.parsers import DecodingWatch, ResponseWatch
from llamaswap_py.proxy.pending import Pending
from llamaswap_py.proxy.sockets import end_output
from llamaswap_py.units import KIB

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from llamaswap_py.endpoint import Endpoint
    from llamaswap_py.proxy.messages import Body


#: llama-server closes idle connections after 5 s. lswap closes them before, or a request could be
#: sent into a connection that is being closed.
_IDLE_LIMIT: Final = 4.0
_MOST_IDLE: Final = 32
_CONNECT_LIMIT: Final = 10.0
#: The first and the longest pause before a full listen queue of a unix socket is tried again.
_BACKLOG_PAUSE: Final = (0.002, 0.05)


class UpstreamPool:
    """Owns all connections to children; as a context manager it closes them at its end."""

    def __init__(self) -> None:
        self._idle: dict[Endpoint, list[UpstreamConnection]] = {}
        self._connections: set[UpstreamConnection] = set()
        self._closed = False
        #: the cached heads of children's answers
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
        """The number of idle connections."""
        return sum(map(len, self._idle.values()))

    def take(self, endpoint: Endpoint) -> UpstreamConnection | None:
        """Remove and return the connection that was idle for the shortest time, if it is usable."""
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
        """Store a connection after a complete answer."""
        idle = self._idle.get(connection.endpoint)
        if idle is None:
            idle = self._idle[connection.endpoint] = []
        if self._closed or len(idle) >= _MOST_IDLE:
            connection.abort()
            return
        connection.idle_since = time.monotonic()
        idle.append(connection)

    def drop(self, endpoint: Endpoint) -> None:
        """Close idle connections to a child that is about to stop, and busy ones after use."""
        for connection in self._idle.pop(endpoint, []):
            connection.abort()
        for connection in self._connections:
            if connection.endpoint == endpoint:
                connection.retire()

    def forget(self, connection: UpstreamConnection) -> None:
        """Remove a connection that was lost."""
        self._connections.discard(connection)
        idle = self._idle.get(connection.endpoint)
        if idle and connection in idle:
            idle.remove(connection)
        if not idle:
            self._idle.pop(connection.endpoint, None)

    async def connect(
        self, endpoint: Endpoint, *, wanted: Callable[[], bool] = lambda: True
    ) -> UpstreamConnection:
        """Return a new connection. Raises OSError, also if it is no longer wanted."""

        def make() -> UpstreamConnection:
            return UpstreamConnection(endpoint, self)

        loop = asyncio.get_running_loop()
        if endpoint.path is None:
            async with asyncio.timeout(_CONNECT_LIMIT):
                sock = await open_tcp(endpoint)
            opening = loop.create_connection(make, sock=sock)
        else:
            sock = await _connect_unix(endpoint.path, wanted)
            opening = loop.create_unix_connection(make, sock=sock)
        _, connection = await opened(opening, lambda pair: pair[1].abort())
        self._connections.add(connection)
        if connection.closed:
            self._connections.discard(connection)
        return connection


async def _connect_unix(path: str, wanted: Callable[[], bool]) -> socket.socket:
    """Connect to a unix socket; if its listen queue is full, try again.

    The kernel cannot wait for a place in the queue of a non-blocking unix socket.
    """
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


#: A body is sent in slices of this size, so that a large one does not stop the event loop.
ONE_WRITE: Final = 256 * KIB
#: llama-server sends `Connection: close` with the 100th answer of a connection, so stay below.
_MOST_USES: Final = 99
#: Answers that are decoded or translated are processed in steps of so many bytes, because a child
#: may send an event or a chunk in every six bytes. A turn of the loop takes one step, and more as
#: long as it has taken less than `_TURN` seconds.
STEP: Final = 4 * KIB
_TURN: Final = 0.001


class TunnelInput(Protocol):
    """The client's side of a tunnel, as far as its input is concerned."""

    def pause_input(self) -> None:
        """Stop reading for now."""

    def resume_input(self) -> None:
        """Read again."""


class Use(Protocol):
    """A use of a connection to a child, which is a relay."""

    tunnelling: bool

    @property
    def client(self) -> TunnelInput:
        """The client's connection."""

    def upstream_finished(self) -> bool:
        """Note that the child has sent its last byte; return whether the connection stays open."""

    def upstream_lost(self, error: Exception | None) -> None:
        """Note that the child's connection was lost."""


class UpstreamConnection(asyncio.Protocol):
    """A connection that serves one relay at a time; input goes to `on_bytes`, the relay's state."""

    def __init__(self, endpoint: Endpoint, pool: UpstreamPool) -> None:
        self.endpoint = endpoint
        self.closed = False
        self.idle_since = 0.0
        self.loop = asyncio.get_running_loop()
        self.pool = pool
        self.answers = pool.answers
        self._transport = cast("asyncio.Transport", None)
        self._uses = 0
        # Whether the client is slow, and whether the transport has stopped reading
        self._slow = self._paused = False
        # Whether the relay decodes its input, and then the input that is left for the next turns
        self._stepwise = False
        self._rest = Pending()
        self._turn: asyncio.Handle | None = None
        # Whether the connection was lost before `_rest` was empty, and the reason
        self._gone = False
        self._error: Exception | None = None
        self._may_write = True
        self._drained: asyncio.Future[None] | None = None
        self._uploaded = True
        # The running relay
        self.relay: Use | None = None
        self.watch = ResponseWatch()
        self.on_bytes: Callable[[bytes], None] = self._on_idle

    # --- protocol interface -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._stepwise or (len(data) <= STEP and not self._rest.size):
            self.on_bytes(data)
            return
        self._rest.add(data)
        self._steer()

    def eof_received(self) -> bool:
        return self.relay is not None and self.relay.upstream_finished()

    def connection_lost(self, exc: Exception | None) -> None:
        aborted, self.closed = self.closed, True
        self.pool.forget(self)
        self._wake_upload()
        if self._rest.size and not aborted:
            self._gone, self._error = True, exc
            self._steer()
        else:
            self._lose(exc)

    def _lose(self, exc: Exception | None) -> None:
        self._rest.clear()
        if self.relay is not None:
            self.relay.upstream_lost(exc)
        self.watch.close()
        del self.on_bytes

    def pause_writing(self) -> None:
        self._may_write = False
        if self.relay is not None and self.relay.tunnelling:
            self.relay.client.pause_input()

    def resume_writing(self) -> None:
        self._may_write = True
        self._wake_upload()
        if self.relay is not None and self.relay.tunnelling:
            self.relay.client.resume_input()

    def _on_idle(self, data: bytes) -> None:
        """Close the connection, because a child that sends without a request is not reliable."""
        self.abort()

    # --- commands -----------------------------------------------------------------------------

    def abort(self) -> None:
        """Close at once, which makes the child stop generating within a millisecond."""
        if not self.closed:
            # After this the transport must not be used: uvloop raises, though asyncio does not.
            self.closed = True
            self._transport.abort()

    def retire(self) -> None:
        """Close after the running answer."""
        self._uses = _MOST_USES

    def pause(self) -> None:
        """Stop reading, because the client is slow."""
        self._slow = True
        self._steer()

    def resume(self) -> None:
        """Read again."""
        self._slow = False
        self._steer()

    def _steer(self) -> None:
        """Schedule a turn for the rest of the input, and read more only if there is no rest."""
        if self._rest.size:
            if not self._slow and self._turn is None:
                self._turn = self.loop.call_soon(self._take_steps)
        elif self._gone:
            self._gone = False
            self._lose(self._error)
        paused = self._slow or self._rest.size > 0
        if self._paused is not paused and not self.closed:
            self._paused = paused
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _take_steps(self) -> None:
        """Process a few steps of the input, so that other connections get their turn."""
        self._turn = None
        until = time.monotonic() + _TURN
        try:
            while self._rest.size and not self._slow:
                self.on_bytes(self._rest.take(STEP))
                if time.monotonic() >= until:
                    break
        except BaseException:
            self._rest.clear()
            self.abort()
            raise
        finally:
            self._steer()

    def send(self, data: bytes) -> None:
        """Send a request of at most ONE_WRITE bytes, or bytes of a tunnel."""
        if not self.closed:
            self._transport.write(data)

    def finish_sending(self) -> None:
        """Pass on the end of a tunnel's input. In no other case is a child's input half-closed."""
        if not self.closed:
            end_output(self._transport)

    # --- one use ------------------------------------------------------------------------------

    def begin(self, relay: Use, *, decoding: bool) -> None:
        """Give the input to `relay`; with `decoding` bodies come without their framing."""
        self._uses += 1
        self.relay = relay
        if self._stepwise is not decoding:
            self._stepwise = decoding
            self.watch.close()
            self.watch = DecodingWatch() if decoding else ResponseWatch()
        if self.watch.used:
            self.watch.begin()

    def end(self, *, over: bool) -> None:
        """End the use; keep the connection if the answer is `over` and all of it was processed."""
        self.relay = None
        self.on_bytes = self._on_idle
        if self._drained is not None:
            self._wake_upload()
        if self._rest.size:
            over = False
            self._rest.clear()
        if self._gone:
            self.loop.call_soon(self._steer)
        if over and not self.closed and self._uploaded and self._uses < _MOST_USES:
            if self._slow:
                self.resume()
            self.pool.keep(self)
        else:
            self.abort()

    async def upload(self, head: bytes, body: Body) -> None:
        """Send a request; return early if the connection or the relay ends meanwhile."""
        self._uploaded = False
        self._transport.write(head)
        for piece in body.pieces:
            view = memoryview(piece)
            for start in range(0, len(piece), ONE_WRITE):
                await self._writable()
                if self.closed or self.relay is None:
                    return
                self._transport.write(view[start : start + ONE_WRITE])
        self._uploaded = True

    async def _writable(self) -> None:
        if self._may_write:
            # With a fast child the buffer is never full, so let other streams run between slices.
            await asyncio.sleep(0)
            return
        self._drained = self.loop.create_future()
        await self._drained

    def _wake_upload(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
