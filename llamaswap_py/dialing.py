"""A TCP connection to a child, made so that nothing is said to anybody else.

It is made first and judged then, because only a connection that exists cannot be taken away any
more. Not a byte is sent before.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llamaswap_py.endpoint import Endpoint

_TRIES: Final = 4
"""A server that is started anew inside of its child is known from the second connection on."""


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
    raise ConnectionRefusedError(errno.ECONNREFUSED, f"{endpoint} changes hands all the time")
