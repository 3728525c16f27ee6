"""Where something listens: a unix socket path, or a TCP host and port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias

Confirm: TypeAlias = Callable[[], Awaitable[bool]]
"""Tells whether a connection that was just made reached whom it should; False: make another one.

Raises ConnectionRefusedError where the port is not its owner's any more.
"""
OnRefused: TypeAlias = Callable[[int], None]
"""Hears the error number of a connection that was refused."""


class Endpoint(NamedTuple):
    """A unix socket (`path` set) or a TCP address (`path` is None).

    A child's TCP port could be taken by somebody else as soon as the child has let go of it. So
    its endpoint has a `confirm`, which is asked about each new connection before a byte is sent.
    `on_refused` hears that nobody listens there (proxy/dial.py), from whoever meets that.
    """

    path: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    confirm: Confirm | None = None
    on_refused: OnRefused | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The base URL for TCP (`http://host:port`), `unix:PATH` for a socket."""
        return str(self) if self.path is not None else f"http://{self}"
