"""The data plane: HTTP in, bytes out. It knows nothing of models, schedulers or routes.

server    listens, and owns one task per client connection
places    who holds the connections that there can be, and which give way
client    the life of a client connection, whose requests are answered one after another
incoming, pending     from its bytes to its requests, in their order
eager     a handler that begins, and may end, without the connection's task
exchange  one request and its answer, as a handler sees them
intake    the body of a request, on its way to its reader
relay     one answer on its way from a child to a client
upstream  connections to children, and the pool that keeps those which may be used again
parsers   the strict parsers of requests and responses (pure)
messages  records, and the rules for heads (pure)
sockets, deadline     what asyncio has no word for
"""

from __future__ import annotations

from llamaswap_py.proxy.exchange import Exchange
from llamaswap_py.proxy.messages import (
    Body,
    BodyTooLarge,
    Headers,
    RelayOutcome,
    RelayResult,
    RequestHead,
    UpstreamRequest,
    WireError,
    WireLimits,
    forward_headers,
)
from llamaswap_py.proxy.server import Server, serve
from llamaswap_py.proxy.sockets import bind
from llamaswap_py.proxy.upstream import UpstreamPool

__all__ = [
    "Body",
    "BodyTooLarge",
    "Exchange",
    "Headers",
    "RelayOutcome",
    "RelayResult",
    "RequestHead",
    "Server",
    "UpstreamPool",
    "UpstreamRequest",
    "WireError",
    "WireLimits",
    "bind",
    "forward_headers",
    "serve",
]
