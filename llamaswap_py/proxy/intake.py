"""The body of one request, on its way from the client's connection to its reader."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from llamaswap_py.errors import ApiError, without_frames
from llamaswap_py.proxy.bodies import FREE
from llamaswap_py.proxy.messages import Body, BodyTooLarge
from llamaswap_py.units import KIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from llamaswap_py.proxy.bodies import Bodies
    from llamaswap_py.proxy.messages import RequestHead, WireError

#: The bytes that may wait for the reader before lswap stops reading from the client.
_HIGH_WATER: Final = 256 * KIB
#: A body above this size is scanned while it arrives; at once it would stop all streams meanwhile.
SCANNED_FROM: Final = 256 * KIB
#: An unread rest of a body up to this size is read and dropped, to keep the connection.
_SMALL_REST: Final = 64 * KIB
#: So many small pieces are joined, because a piece costs more than its bytes.
_MANY: Final = 256
_LITTLE: Final = 64 * KIB


class Sender(Protocol):
    """The client's connection, as far as the body needs it."""

    bodies: Bodies
    owner: str

    def write(self, data: bytes) -> None:
        """Write to the client, unless it has disconnected."""

    def await_body(self, waiting: bool) -> None:
        """Start the time limit for the next piece of the body, or stop it."""

    def pause_input(self) -> None:
        """Read no more from the client for now."""

    def resume_input(self) -> None:
        """Read again."""


class Intake:
    """Collects the pieces of a body; its reader wakes up only if it has something to do."""

    #: bytes of the body that have arrived
    received = 0
    complete = False
    _length: int | None = None
    _continue_owed = False
    _limit: int | None = None
    _streaming = False
    _discarding = False
    _error: WireError | ApiError | None = None
    _scan: Callable[[bytes], int] | None = None
    _shown = 0
    _joined = 0
    #: bytes that may arrive before more are counted, the counted ones, and their owner
    _room = FREE
    _counted = 0
    _owner = ""
    #: the future for which its reader waits
    waiter: asyncio.Future[None] | None = None

    def __init__(self, connection: Sender, head: RequestHead, whole: bytes | None = None) -> None:
        self._connection = connection
        if whole is None:
            self._length = head.content_length
            self._continue_owed = head.expects_continue
            self._body = Body()
        else:
            self.complete = True
            self.received = size = len(whole)
            self._body = Body([whole], size) if size else Body()

    # --- for the reader -----------------------------------------------------------------------

    async def read(self, limit: int, scan: Callable[[bytes], int] | None) -> Body:
        """Return the whole body; raises BodyTooLarge and WireError.

        A body that is larger than SCANNED_FROM is passed to `scan`, piece by piece as it arrives.
        `scan` returns how many bytes it has kept so far; these are counted as well.
        """
        if (self._length or 0) > limit or self._body.size > limit:
            raise BodyTooLarge(limit)
        self._limit = limit
        self._scan = scan
        if not self.complete:
            self._start()
            while not self.complete:
                if self._error is not None:
                    raise self._error
                try:
                    await self._wait()
                finally:
                    self._end_wait()
        self._show()
        if self._error is not None:
            raise self._error
        return self._body

    def small(self, limit: int) -> Body | None:
        """Return the body if it is complete and needs no scan, else None."""
        if not self.complete or self._error is not None:
            return None
        return self._body if self._body.size <= min(limit, SCANNED_FROM) else None

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the pieces as they arrive; raises WireError."""
        self._streaming = True
        self._start()
        while True:
            pieces, self._body = self._body.pieces, Body()
            self._joined = 0
            for piece in pieces:
                yield bytes(piece)
            if self.complete:
                return
            self._connection.resume_input()
            await self._event()

    def _start(self) -> None:
        if self._continue_owed and not self.received and not self.complete:
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._continue_owed = False
        self._connection.resume_input()

    async def _event(self) -> None:
        if self._error is not None:
            raise self._error
        try:
            await self._wait()
        finally:
            self._end_wait()
        if self._error is not None:
            raise self._error

    def _wait(self) -> asyncio.Future[None]:
        self.waiter = waiter = asyncio.get_running_loop().create_future()
        self._connection.await_body(True)
        return waiter

    def _end_wait(self) -> None:
        self.waiter = None
        self._connection.await_body(False)

    # --- for the client's connection ----------------------------------------------------------

    def add(self, piece: bytes) -> None:
        """Add a piece."""
        self.received += len(piece)
        if self._discarding or self._error is not None:
            return
        body = self._body
        body.pieces.append(piece)
        body.size += len(piece)
        if self._limit is not None:
            if body.size > self._limit:
                self.fail(BodyTooLarge(self._limit))
            elif body.size > self._room:
                self._count(body.size)
            self._show()
        elif body.size > _HIGH_WATER:
            self._connection.pause_input()
        if len(body.pieces) - self._joined >= _MANY:
            self._join(body.pieces)
        if self._streaming:
            self._wake()

    def _count(self, size: int) -> None:
        """Count the body's bytes against the limit for all bodies."""
        if not self._counted:
            self._owner = self._connection.owner
        try:
            while size > self._room:
                step = self._connection.bodies.take(self._owner)
                self._counted += step
                self._room += step
        except ApiError as error:
            self.fail(error)

    def _join(self, pieces: list[bytes | memoryview]) -> None:
        """Join the last pieces if they are small; either all or none of them have been scanned."""
        new = pieces[self._joined :]
        if sum(map(len, new)) <= _LITTLE:
            if self._shown:
                self._shown -= len(new) - 1
            pieces[self._joined :] = [b"".join(new)]
        self._joined = len(pieces)

    def _show(self) -> None:
        if self._scan is not None and self._body.size > SCANNED_FROM:
            beside = 0
            for piece in self._body.pieces[self._shown :]:
                beside = self._scan(bytes(piece))
            self._shown = len(self._body.pieces)
            if self._body.size + beside > self._room:
                self._count(self._body.size + beside)

    def finish(self) -> None:
        """Note that the body is complete."""
        self.complete = True
        self._wake()

    def fail(self, error: WireError | ApiError) -> None:
        """Note that the body will never be complete; its reader gets `error`."""
        if self._error is None:
            without_frames(error)
            self._error = error
            self._body = Body()
            self._wake()

    @property
    def ends_soon(self) -> bool:
        """Whether the rest is so small that reading it costs less than a new connection."""
        if self.complete:
            return True
        if self._error is not None or self._continue_owed or self._length is None:
            return False
        return self._length - self.received <= _SMALL_REST

    def discard(self) -> bool:
        """Drop the rest as it arrives; return False if closing the connection is better."""
        if not self.ends_soon:
            return False
        self._discarding = True
        self._body = Body()
        self._connection.resume_input()
        return True

    def release(self) -> None:
        """Drop the references to the body, its reader and its error after the request has ended.

        They refer to the connection, so such a cycle would stay until the garbage collector runs.
        """
        if self._counted:
            self._connection.bodies.give_back(self._owner, self._counted)
            self._counted = 0
        self._discarding = True
        self._body = Body()
        if self._limit is not None or self._error is not None:
            self._scan = self._error = self.waiter = None

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)
