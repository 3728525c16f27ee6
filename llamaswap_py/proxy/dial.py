"""Opens connections to a child, and makes sure that no other process gets the request.

A TCP connection is opened first and checked then: once it exists, no other process can take it
over. Nothing is sent before the check. The module also tells the owner of an endpoint about
refusals.
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
"""How often to connect: a server restarted inside its child is recognized at the second try."""
_REFUSALS: Final = (errno.ECONNREFUSED, errno.ENOENT)
"""No process listens there, or the socket file does not exist."""


def is_refusal(number: int | None) -> bool:
    """Return whether an error number means that no process listens at an endpoint."""
    return number in _REFUSALS


def note_refusal(endpoint: Endpoint, number: int | None) -> bool:
    """Tell the owner of an endpoint if a connection was refused; return whether it was.

    It must be called after every failed connection to a child, so that no more leases are granted.
    """
    if number is None or not is_refusal(number):
        return False
    if endpoint.on_refused is not None:
        endpoint.on_refused(number)
    return True


async def open_tcp(endpoint: Endpoint) -> socket.socket:
    """Return a connected socket after the endpoint has confirmed which process it reaches.

    Raises OSError if no process listens there, or (ECONNREFUSED) if it is not the right one.
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
    """Return the result of `opening`, which makes a transport and its protocol for a socket.

    If this call is cancelled, `opening` runs to its end, and its result is closed then. To cancel
    `opening` itself is dangerous: uvloop up to 0.22 would continue to watch the socket, and abort
    the process when the socket is closed (libuv: `uv__epoll_ctl_flush` aborts on EBADF).
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
