"""Where something listens: a unix socket path, or a TCP host and port."""

from __future__ import annotations

from typing import NamedTuple


class Endpoint(NamedTuple):
    """A unix socket (`path` set) or a TCP address (`path` is None)."""

    path: str | None = None
    host: str = "127.0.0.1"
    port: int = 0

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The base URL for TCP (`http://host:port`), `unix:PATH` for a socket."""
        return str(self) if self.path is not None else f"http://{self}"
