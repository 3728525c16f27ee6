"""Authentication: API keys, the open requests of each key, and the rule for Host and Origin.

The Host/Origin rule protects a server without keys against web pages. A page can point its own name
at 127.0.0.1 (DNS rebinding). Its requests then have that name as Host, and the page's Origin. So
both headers must name this machine. An IP address cannot be rebound, so any address is accepted as
Host. As Origin an address means a page from that machine, so it must be this machine's own.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import socket
from typing import TYPE_CHECKING, Final

from llamaswap_py.config.origins import NONE, origin_of, pattern_of
from llamaswap_py.errors import ApiError
from llamaswap_py.proxy.places import Places
from llamaswap_py.proxy.principals import principal_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llamaswap_py.config.api_keys import ApiKey, KeyRing, Right
    from llamaswap_py.config.sections import Config
    from llamaswap_py.proxy.exchange import Exchange
    from llamaswap_py.proxy.messages import RequestHead

_log: Final = logging.getLogger("lswap")
_BEARER: Final = b"bearer "
_REMEMBERED: Final = 1024
"""How many header values are stored with their keys, so that they need not be hashed again."""
_LABEL: Final = rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_HOST: Final = re.compile(
    rb"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>" + _LABEL + rb"(?:\." + _LABEL + rb")*)\.?)"
    rb"(?::(?P<port>[0-9]{1,5}))?"
)
_SCHEME: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*")
_LAST_PORT: Final = 65535
_REMEMBERED_ORIGINS: Final = 256
"""How many accepted header values are stored, so that the rule costs one set lookup."""


class Access:
    """Finds the key of each request; without keys every client may do everything."""

    def __init__(
        self,
        keys: KeyRing | None,
        places: Places | None = None,
        known: dict[bytes, ApiKey] | None = None,
    ) -> None:
        self.keys = keys
        self._places = Places() if places is None else places
        self._known = {} if known is None else known
        self.in_flight: dict[str, int] = {}
        """The number of open requests that count, by principal."""
        self._told: set[str] = set()

    def replace(self, keys: KeyRing | None) -> None:
        """Use other keys for new requests; revoking.py ends open requests that lost their right."""
        self.keys = keys
        self._places.keyed = keys is not None
        self._known.clear()

    def check(self, head: RequestHead, *, admin: bool, right: Right | None = None) -> ApiKey | None:
        """Return the key of a request, None if lswap has no keys.

        Raises ApiError: `unauthorized` without a known key; `forbidden` if the route needs an admin
        key, or a `right` that the key does not have.
        """
        if self.keys is None:
            return None
        secret = _secret(head)
        key = self._known.get(secret) if secret else None
        if key is None:
            key = self.keys.find(secret) if secret else None
            if key is None:
                raise _unauthorized(given=bool(secret))
            if len(self._known) < _REMEMBERED:
                self._known[secret] = key
        if admin and not key.is_admin:
            raise ApiError(
                "forbidden",
                f"the key {key.name!r} may not do this: an admin key is needed",
                remedy="`lswap key new NAME --kind admin` makes one",
            )
        if right is not None and not key.may(right):
            raise lacks(key, right)
        return key

    def claim(self, key: ApiKey | None, exchange: Exchange) -> None:
        """Count a connection against its key; raises ApiError `too_many_requests`."""
        if key is not None and not exchange.connection.claim(principal_of(key.name, exchange.peer)):
            raise ApiError(
                "too_many_requests",
                f"the key {key.name!r} has half of all connections open, each with an answer",
                remedy="wait until one of the answers has ended, or close some connections",
            )

    def tell_ignored(self, key: ApiKey) -> None:
        """Log once per key that the `keep_alive` of its requests is ignored."""
        if key.name not in self._told:
            self._told.add(key.name)
            _log.info(
                "keep_alive in requests of the key %r is ignored, because the key lacks the right "
                "ttl - write rights: [ttl] in its entry of the key file to allow it",
                key.name,
            )

    def enter(
        self, principal: str, key: ApiKey | None, default: int, *, replaces: bool = False
    ) -> None:
        """Count a request of a principal; raises ApiError `too_many_requests`.

        `default` is the limit of a key that has no limit of its own; 0: no limit. A request that
        `replaces` an older one may exceed the limit by one, until the older one has ended.
        """
        most = default if key is None or key.max_in_flight is None else key.max_in_flight
        count = self.in_flight.get(principal, 0)
        if most and count >= most + replaces:
            raise _too_many(principal, key, count)
        self.in_flight[principal] = count + 1

    def leave(self, principal: str) -> None:
        """Count a request as ended."""
        in_flight = self.in_flight
        count = in_flight.get(principal, 0)
        if count > 1:
            in_flight[principal] = count - 1
        elif count:
            del in_flight[principal]


def _too_many(principal: str, key: ApiKey | None, count: int) -> ApiError:
    who = principal if key is None else f"the key {key.name!r}"
    more = "raise `limits.max_in_flight`"
    if key is not None:
        own = key.max_in_flight is not None
        more = "raise its max_in_flight" if own else f"give it a max_in_flight, or {more}"
    return ApiError(
        "too_many_requests",
        f"{who} has {count} requests open, which is its limit",
        remedy=f"wait for one of them, or {more}",
    )


def _secret(head: RequestHead) -> bytes:
    """Return the secret of a request: `Authorization: Bearer …`, else Anthropic's `x-api-key`."""
    given = head.get(b"authorization")
    if given is not None and given[: len(_BEARER)].lower() == _BEARER:
        return given[len(_BEARER) :].strip()
    return (head.get(b"x-api-key") or b"").strip()


def lacks(key: ApiKey, right: Right) -> ApiError:
    """Return the error for a request whose key lacks a right."""
    return ApiError(
        "forbidden",
        f"the key {key.name!r} may not do this: the right {right!r} or an admin key is needed",
        remedy=f"write rights: [{right}] in the key's entry of the key file",
    )


def _unauthorized(*, given: bool) -> ApiError:
    return ApiError(
        "unauthorized",
        "this API key is unknown" if given else "this server needs an API key",
        remedy="send it as `Authorization: Bearer KEY`; `lswap key new NAME` makes one",
    )


class Origins:
    """The origins of the section `cors`, some of which are patterns."""

    def __init__(self, written: Iterable[str]) -> None:
        self.written = tuple(written)
        self._patterns = [pattern_of(one) for one in self.written]
        self._known: set[bytes] = set()

    def __bool__(self) -> bool:
        return bool(self.written)

    def match(self, origin: bytes) -> bool:
        """Return whether a request's Origin is one of them."""
        if origin in self._known:
            return True
        low = origin.strip().lower()
        if not any(pattern.fullmatch(low) for pattern in self._patterns):
            return False
        if len(self._known) < _REMEMBERED_ORIGINS:
            self._known.add(origin)
        return True

    def refusal(self, origin: bytes) -> ApiError:
        """Return the error for another origin, with the line for the file that allows it."""
        shown = origin.decode("latin-1")[:200]
        try:
            line = json.dumps([*self.written, origin_of(shown)], ensure_ascii=False)
        except ValueError:
            line = ""
        if shown == NONE or not line:
            remedy = "open the page from a web server, not from a file or in a sandboxed frame"
        else:
            line = f"cors: {{origins: {line}}}"
            remedy = f"to trust it, put this line into the file and restart lswap: {line}"
        return ApiError(
            "forbidden", f"pages of the origin {shown!r} are not trusted here", remedy=remedy
        )


class HostRule:
    """Accepts requests whose Host and Origin are IP addresses or names of this machine."""

    def __init__(self, names: Iterable[str], origins: Iterable[str] = ()) -> None:
        self.names = frozenset(name.lower().rstrip(".") for name in names)
        self._origins = Origins(origins)
        self._hosts: set[bytes] = set()
        self._pages: set[bytes] = set()

    def check(self, head: RequestHead) -> None:
        """Raise ApiError `forbidden`, with the line for the file that allows the request."""
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
                remedy=f"to trust it, add this line to the file: allowed_hosts: [{name}]",
            )
        _remember(self._hosts, value)

    def _judge_origin(self, value: bytes, host: bytes) -> None:
        name = parse_origin(value)
        if name is not None and is_ip(name):
            if name == parse_host(host):
                return  # a page of this server; not stored, because the next Host may differ
            known = ipaddress.ip_address(name).is_loopback or name in self.names
        else:
            known = name is not None and (is_localhost(name) or name in self.names)
        if not known:
            raise self._origins.refusal(value)
        _remember(self._pages, value)


def _remember(known: set[bytes], value: bytes) -> None:
    if len(known) < _REMEMBERED_ORIGINS:
        known.add(value)


class Cors:
    """Lets pages of the origins in the file read answers (CORS, in the Fetch standard)."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = Origins(origins)
        self.on = bool(self._origins)
        """Whether the file has any origin."""

    def headers(self, head: RequestHead) -> list[tuple[bytes, bytes]]:
        """Return the CORS headers of an answer; none unless a page of such an origin asks."""
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
        """Return the headers that answer a preflight; None if the request is not a preflight.

        Raises ApiError `forbidden` for other origins, with the line for the file that allows it.
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
    """Return the names of this machine: its host name, those of `listen` and `allowed_hosts`."""
    host = socket.gethostname()
    short = host.partition(".")[0]
    listeners = {listen.host for listen in config.listen if listen.path is None}
    return {host, short, f"{short}.local", *listeners, *config.allowed_hosts}


def parse_host(value: bytes) -> str | None:
    """Return the host of a Host header (RFC 9110 section 7.2) in lower case; None if it has none.

    Addresses are returned in one spelling (`[0::1]:80` -> `::1`), names without a final dot.
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
    """Return the host of an Origin header (RFC 6454 section 7), spelled as by parse_host().

    None for `null` (a sandboxed frame, a local file) and for a text that is not an origin.
    """
    scheme, mark, rest = value.partition(b"://")
    return parse_host(rest) if mark and _SCHEME.fullmatch(scheme) else None


def is_ip(name: str) -> bool:
    """Return whether `name` is an IPv4 or IPv6 literal."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_localhost(name: str) -> bool:
    """Return whether `name` is localhost or a name below it (RFC 6761 section 6.3)."""
    return name == "localhost" or name.endswith(".localhost")
