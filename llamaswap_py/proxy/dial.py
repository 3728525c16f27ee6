"""Connections to a child: made so that nothing is said to anybody else, and what a refusal means.

A TCP connection is made first and judged then, because only a connection that exists cannot be
taken away any more. Not a byte is sent before.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from llamaswap_py.endpoint import Endpoint

_Pair = TypeVar("_Pair")
_TRIES: Final = 4
"""A server that is started anew inside of its child is known from the second connection on."""
_REFUSALS: Final = (errno.ECONNREFUSED, errno.ENOENT)
"""Nobody listens there, or the socket is gone."""


def is_refusal(number: int | None) -> bool:
    """Return whether a connection with that error number failed because nobody serves there."""
    return number in _REFUSALS


def note_refusal(endpoint: Endpoint, number: int | None) -> bool:
    """Tell the owner of an endpoint that a connection was refused, if it was; return whether.

    Whoever connects to a child calls this, so that no further lease of it is granted.
    """
    if number is None or not is_refusal(number):
        return False
    if endpoint.on_refused is not None:
        endpoint.on_refused(number)
    return True


async def open_tcp(endpoint: Endpoint) -> socket.socket:
    """Return a connected socket, of which the endpoint has confirmed whom it reaches.

    Raises OSError: nobody listens there, or somebody else than should (ECONNREFUSED).
    """
    loop = asyncio.get_running_loop()
    for _ in range(_TRIES):
        sock = socket.socket(
            socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET, socket.SOCK_STREAM
        )
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, (endpoint.host, endpoint.port))
            if endpoint.confirm is None or await endpoint.confirm():
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
        except BaseException:
            sock.close()
            raise
        sock.close()
    raise ConnectionRefusedError(
        errno.ECONNREFUSED, f"{endpoint} is taken by one process after another"
    )


async def opened(opening: Coroutine[Any, Any, _Pair], close: Callable[[_Pair], object]) -> _Pair:
    """Return what `opening` makes of a connected socket: a transport, and what is beside it.

    It is never cancelled half-way, but closed once it is there. uvloop up to 0.22 goes on watching
    the socket of an opening that was cancelled, and ends the process when that is closed (libuv:
    `uv__epoll_ctl_flush` aborts on EBADF).
    """
    task = asyncio.get_running_loop().create_task(opening)
    try:
        return await asyncio.shield(task)
    except BaseException:
        task.add_done_callback(partial(_close, close=close))
        raise


def _close(task: asyncio.Task[_Pair], *, close: Callable[[_Pair], object]) -> None:
    if not task.cancelled() and task.exception() is None:
        close(task.result())
