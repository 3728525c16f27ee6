"""Who may talk to an lswap without keys: the Host/Origin rule.

A web page that points its own name at 127.0.0.1 (DNS rebinding) sends that name as Host, and
its own Origin: both must name this machine. An IP address cannot be rebound, so any will do as
Host; as Origin it means a page of whoever has that address, and must be this machine's own.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from typing import TYPE_CHECKING, Final

from llamaswap_py.config.origins import NONE, origin_of, pattern_of
from llamaswap_py.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llamaswap_py.config.records import Config
    from llamaswap_py.wire.messages import RequestHead

_LABEL: Final = rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_HOST: Final = re.compile(
    rb"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>" + _LABEL + rb"(?:\." + _LABEL + rb")*)\.?)"
    rb"(?::(?P<port>[0-9]{1,5}))?"
)
_SCHEME: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*")
_LAST_PORT: Final = 65535
_REMEMBERED: Final = 256
"""Accepted header values kept, so that the rule costs a set lookup per request."""


class Origins:
    """The origins of pages that the file names, patterns among them."""

    def __init__(self, written: Iterable[str]) -> None:
        self.written = tuple(written)
        self._patterns = [pattern_of(one) for one in self.written]
        self._known: set[bytes] = set()

    def __bool__(self) -> bool:
        return bool(self.written)

    def match(self, origin: bytes) -> bool:
        """Tell whether a request's Origin is one of them."""
        if origin in self._known:
            return True
        low = origin.strip().lower()
        if not any(pattern.fullmatch(low) for pattern in self._patterns):
            return False
        if len(self._known) < _REMEMBERED:
            self._known.add(origin)
        return True

    def refusal(self, origin: bytes) -> ApiError:
        """Return the error for another one, with the very line that lets it in."""
        shown = origin.decode("latin-1")[:200]
        try:
            line = json.dumps([*self.written, origin_of(shown)], ensure_ascii=False)
        except ValueError:
            line = ""
        if shown == NONE or not line:
            remedy = "open the page from a web server, not from a file or in a sandboxed frame"
        else:
            line = f"cors: {{origins: {line}}}"
            remedy = f"if it should be, put this line into the file and restart lswap: {line}"
        return ApiError(
            "forbidden", f"pages of the origin {shown!r} are not trusted here", remedy=remedy
        )


class HostRule:
    """Accept requests whose Host and Origin are IP literals, localhost or names of this machine."""

    def __init__(self, names: Iterable[str], origins: Iterable[str] = ()) -> None:
        self.names = frozenset(name.lower().rstrip(".") for name in names)
        self._origins = Origins(origins)
        self._hosts: set[bytes] = set()
        self._pages: set[bytes] = set()

    def check(self, head: RequestHead) -> None:
        """Raise ApiError `forbidden`, naming the line to add to the file."""
        host, origin = head.get(b"host"), head.get(b"origin")
        if host is not None and host not in self._hosts:
            self._judge_host(host)
        if origin is not None and origin not in self._pages and not self._origins.match(origin):
            self._judge_origin(origin, host or b"")

    def _judge_host(self, value: bytes) -> None:
        name = parse_host(value)
        if name is None:
            raise ApiError(
                "forbidden",
                f"the Host header {value.decode('latin-1')[:80]!r} is not HOST or HOST:PORT",
                remedy="send the name or address of this machine",
            )
        if not (is_ip(name) or is_localhost(name) or name in self.names):
            raise ApiError(
                "forbidden",
                f"the Host header names {name!r}, which is not this machine",
                remedy=f"if it should be trusted, add it to the file: allowed_hosts: [{name}]",
            )
        _remember(self._hosts, value)

    def _judge_origin(self, value: bytes, host: bytes) -> None:
        name = parse_origin(value)
        if name is not None and is_ip(name):
            if name == parse_host(host):
                return  # a page of this very server; not remembered, for the next Host may differ
            known = ipaddress.ip_address(name).is_loopback or name in self.names
        else:
            known = name is not None and (is_localhost(name) or name in self.names)
        if not known:
            raise self._origins.refusal(value)
        _remember(self._pages, value)


def _remember(known: set[bytes], value: bytes) -> None:
    if len(known) < _REMEMBERED:
        known.add(value)


class Cors:
    """Lets pages of the origins that the file names read answers (CORS, in the Fetch standard)."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = Origins(origins)
        self.on = bool(self._origins)
        """Whether the file names any origin."""

    def headers(self, head: RequestHead) -> list[tuple[bytes, bytes]]:
        """Return what to send besides; nothing for a request of no such page."""
        origin = head.get(b"origin")
        if not self.on or origin is None:
            return []
        if not self._origins.match(origin):
            return [(b"vary", b"Origin")]
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"*"),
            (b"vary", b"Origin"),
        ]

    def preflight(self, head: RequestHead) -> list[tuple[bytes, bytes]] | None:
        """Return the headers that answer a preflight; None where it is none.

        Raises ApiError `forbidden` for one of another page, with the line that lets it in.
        """
        origin = head.get(b"origin")
        asked = head.get(b"access-control-request-method")
        if head.method != "OPTIONS" or asked is None or origin is None:
            return None
        if not self._origins.match(origin):
            raise self._origins.refusal(origin)
        wanted = head.get(b"access-control-request-headers") or b"*"
        headers = [
            *self.headers(head),
            (b"access-control-allow-methods", asked),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", b"600"),
        ]
        if head.get(b"access-control-request-private-network") == b"true":
            headers.append((b"access-control-allow-private-network", b"true"))
        return headers


def own_names(config: Config) -> set[str]:
    """Return the names this machine goes by: its host name, the listeners' and `allowed_hosts`."""
    host = socket.gethostname()
    short = host.partition(".")[0]
    listeners = {listen.host for listen in config.listen if listen.path is None}
    return {host, short, f"{short}.local", *listeners, *config.allowed_hosts}


def parse_host(value: bytes) -> str | None:
    """Return the host of a Host header (RFC 9110 section 7.2), lower-cased; None for another text.

    Addresses come in one spelling (`[0::1]:80` -> `::1`), names without the dot of the root.
    """
    found = _HOST.fullmatch(value)
    if found is None or int(found["port"] or 0) > _LAST_PORT:
        return None
    if found["v6"] is not None:
        try:
            return str(ipaddress.IPv6Address(found["v6"].decode()))
        except ValueError:
            return None
    return found["name"].decode().lower()


def parse_origin(value: bytes) -> str | None:
    """Return the host of an Origin header (RFC 6454 section 7), as parse_host() does.

    None for `null` (a sandboxed frame, a local file) and for what is not an origin.
    """
    scheme, mark, rest = value.partition(b"://")
    return parse_host(rest) if mark and _SCHEME.fullmatch(scheme) else None


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
