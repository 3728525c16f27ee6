"""Who may talk to an lswap without keys: the Host/Origin rule.

A web page that points its own name at 127.0.0.1 (DNS rebinding) sends that name as Host, and
its own Origin: both must name this machine. An IP address cannot be rebound, so any will do as
Host; as Origin it means a page of whoever has that address, and must be this machine's own.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Final

from llamaswap_py.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llamaswap_py.config.records import Config
    from llamaswap_py.wire.messages import RequestHead

_REMEMBERED: Final = 256
"""Accepted header values kept, so that the rule costs a set lookup per request."""


class HostRule:
    """Accept requests whose Host and Origin are IP literals, localhost or names of this machine."""

    def __init__(self, names: Iterable[str], origins: Iterable[str] = ()) -> None:
        self.names = frozenset(name.lower().rstrip(".") for name in names)
        self._accepted: set[bytes] = {origin.encode() for origin in origins}

    def check(self, head: RequestHead) -> None:
        """Raise ApiError `forbidden`, naming the line to add to the file."""
        for header in (b"host", b"origin"):
            value = head.get(header)
            if header == b"origin" and b"*" in self._accepted:
                continue
            if value is not None and value not in self._accepted:
                self._judge(header.decode(), value, head.get(b"host") or b"")

    def _judge(self, header: str, value: bytes, host: bytes) -> None:
        name = host_name(value.decode("latin-1"))
        if header == "origin" and name is not None and is_ip(name):
            if name == host_name(host.decode("latin-1")):
                return  # a page of this very server; not remembered, for the next Host may differ
            known = ipaddress.ip_address(name).is_loopback or name in self.names
        else:
            known = name is not None and (is_ip(name) or is_localhost(name) or name in self.names)
        if not known:
            shown = name or value.decode("latin-1")[:80]
            raise ApiError(
                "forbidden",
                f"the {header.capitalize()} header names {shown!r}, which is not this machine",
                remedy=f"if it should be trusted, add it to the file: allowed_hosts: [{shown}]",
            )
        if len(self._accepted) < _REMEMBERED:
            self._accepted.add(value)


class Cors:
    """Lets pages of the origins that the file names read answers (CORS, in the Fetch standard)."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.rstrip("/").encode() for origin in origins)
        self.on = bool(self._origins)
        """Whether the file names any origin."""

    def headers(self, head: RequestHead) -> list[tuple[bytes, bytes]]:
        """Return what to send besides; nothing for a request of no such page."""
        origin = head.get(b"origin")
        if not self._origins or origin is None:
            return []
        if origin not in self._origins and b"*" not in self._origins:
            return [(b"vary", b"Origin")]
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"*"),
            (b"vary", b"Origin"),
        ]

    def preflight(self, head: RequestHead) -> list[tuple[bytes, bytes]] | None:
        """Return the headers that answer a preflight; None where it is none, or of no such page."""
        asked = head.get(b"access-control-request-method")
        headers = self.headers(head)
        if head.method != "OPTIONS" or asked is None or len(headers) < 3:
            return None
        wanted = head.get(b"access-control-request-headers") or b"*"
        return [
            *headers,
            (b"access-control-allow-methods", asked),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", b"600"),
        ]


def own_names(config: Config) -> set[str]:
    """Return the names this machine goes by: its host name, the listeners' and `allowed_hosts`."""
    host = socket.gethostname()
    short = host.partition(".")[0]
    listeners = {listen.host for listen in config.listen if listen.path is None}
    return {host, short, f"{short}.local", *listeners, *config.allowed_hosts}


def host_name(value: str) -> str | None:
    """Return the bare host of a Host or Origin header (`http://[::1]:80` -> `::1`), lower-cased.

    None when there is none, as in `Origin: null` (a sandboxed frame, a local file).
    """
    host = value.strip().lower().rpartition("://")[2].partition("/")[0]
    if host.startswith("["):
        return host[1:].partition("]")[0] or None
    host = host.rpartition(":")[0] if ":" in host else host
    host = host.rstrip(".")
    return None if host in ("", "null") else host


def is_ip(name: str) -> bool:
    """Tell whether `name` is an IPv4 or IPv6 literal."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_localhost(name: str) -> bool:
    """Tell whether `name` is localhost or below it (RFC 6761 section 6.3)."""
    return name == "localhost" or name.endswith(".localhost")
