"""Limits of lswap's own requests: where redirects may lead, and how long an answer may be.

The server of a download may redirect lswap. Without these checks it could make lswap send requests
to this machine's own ports, to its network, or to the address where clouds keep secrets. It could
also send an endless answer, or a byte a minute.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from llamaswap_py.client.lean_httpx import httpx
from llamaswap_py.errors import LswapError
from llamaswap_py.units import KIB, MIB, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_SAID: Final = MIB
"""The most bytes in the body of an error."""
_WINDOW: Final = 60.0
_LEAST: Final = 60 * KIB
"""The least bytes that must arrive in each window of time; any usable connection is faster."""
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


class OutgoingError(LswapError):
    """Raised for an answer that redirects to a forbidden address, or is too slow or too long."""


def kind_of(address: str) -> str:
    """Return the kind of an IP address: `public`, `private`, `loopback`, `link-local`."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return kind_of(str(inner))
    if ip.is_link_local:
        return "link-local"
    if ip.is_loopback or ip.is_unspecified:
        return "loopback"
    return "public" if ip.is_global and not ip.is_multicast else "private"


def kinds_of(host: str, port: int) -> set[str]:
    """Return the kinds of a host's addresses; empty for a name without an address."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {kind_of(str(entry[4][0])) for entry in found}


class Guard:
    """Event hooks of an httpx client, for requests that begin at the configured `url`.

    A redirect may lead to public addresses, and to addresses of the same kind as those of `url`. It
    never gets a token. If a proxy is set, the proxy resolves names, so lswap cannot check them.
    """

    def __init__(self, url: str) -> None:
        self._origin = _origin(url)
        self._may: set[str] | None = None

    def watch(self, client: httpx.Client) -> None:
        """Check every request of a client, redirected ones too, and every answer."""
        client.event_hooks = {
            "request": [*client.event_hooks["request"], self.request],
            "response": [*client.event_hooks["response"], self.response],
        }

    def request(self, request: httpx.Request) -> None:
        """Raise OutgoingError for a request that must not be sent."""
        url = str(request.url)
        if not same_place(self._origin, url):
            # huggingface_hub would send the token to other ports of a host, and without TLS.
            request.headers.pop("authorization", None)
        if _origin(url) == self._origin:
            return
        host, port = _place(url)
        if is_proxied(url) and not _is_address(host):
            return
        self._check(host, kinds_of(host, port))

    def response(self, answer: httpx.Response) -> None:
        """Raise OutgoingError if the address that answered is forbidden; else limit the body."""
        url = str(answer.request.url)
        stream = answer.extensions.get("network_stream")
        if stream is not None and _origin(url) != self._origin and not is_proxied(url):
            peer = stream.get_extra_info("server_addr")
            if isinstance(peer, tuple):
                self._check(_place(url)[0], {kind_of(str(peer[0]))})
        inner = answer.stream
        assert isinstance(inner, httpx.SyncByteStream)
        most = None if answer.is_success else _MOST_SAID
        answer.stream = _Bounded(inner, _place(url)[0], most)

    def _check(self, host: str, kinds: set[str]) -> None:
        if self._may is None:
            self._may = {"public"} | kinds_of(*_place(self._origin))
        if wrong := sorted(kinds - self._may):
            raise OutgoingError(
                f"the answer of {self._origin} leads to {host}, a {wrong[0]} address",
                remedy="lswap does not follow it; use a server that sends the files itself",
            )


class _Bounded(httpx.SyncByteStream):
    """The body of an answer, with limits of its size and its speed."""

    def __init__(self, inner: httpx.SyncByteStream, host: str, most: int | None) -> None:
        self._inner = inner
        self._host = host
        self._most = most

    def __iter__(self) -> Iterator[bytes]:
        size = begun = 0
        waited, asked = 0.0, time.monotonic()
        for chunk in self._inner:
            waited += time.monotonic() - asked
            size += len(chunk)
            if self._most is not None and size > self._most:
                what = f"{self._host} sends an error of more than {format_size(self._most)}"
                raise OutgoingError(what, remedy="ask another server")
            if waited > _WINDOW:
                if size - begun < _LEAST:
                    what = f"{self._host} sends less than {format_size(_LEAST)} a minute"
                    raise OutgoingError(what, remedy="try again; the bytes so far are kept")
                begun, waited = size, 0.0
            yield chunk
            asked = time.monotonic()

    def close(self) -> None:
        """Close the stream of the connection."""
        self._inner.close()


def is_proxied(url: str) -> bool:
    """Return whether requests for a URL go through a proxy that the environment sets."""
    parts = urlsplit(url)
    proxies = getproxies()
    if not (proxies.get(parts.scheme) or proxies.get("all")):
        return False
    return not proxy_bypass(parts.hostname or "")


def same_place(first: str, second: str) -> bool:
    """Return whether two URLs are on the same server, the second with TLS if the first has it."""
    one, other = _origin(first), _origin(second)
    return other in (one, one.replace("http:", "https:", 1))


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}"


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
