"""The principal of a request: its key, or else the address that it comes from.

Shares and limits count by principal: places in a queue, turns, requests in flight, connections,
bytes of bodies. A client must not become another principal by a choice of its own: another
connection, port, header, or address within its own network.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

UNIX: Final = "unix"
"""The address and the principal of all clients of a unix socket."""
_KEY: Final = "key "
_LOOPBACK: Final = "127.0.0.1"
_HOST_BITS: Final = 64
"""The prefix of an IPv6 network; a client can choose the other bits (RFC 4291 section 2.5.4)."""


def principal_of(key_name: str | None, peer: str) -> str:
    """Return the principal of a request; `key_name` is None if it has no key."""
    return of_address(peer) if key_name is None else f"{_KEY}{key_name}"


def is_key(principal: str) -> bool:
    """Return whether a principal is a key, not an address."""
    return principal.startswith(_KEY)


@lru_cache(maxsize=4096)
def of_address(peer: str) -> str:
    """Return the principal of a peer address: IPv4 as it is, IPv6 by its /64.

    An IPv4 address written as IPv6 counts as the IPv4 address. All addresses of this machine
    are one principal, because a program may connect from any of 127.0.0.0/8.
    """
    try:
        address = ip_address(peer)
    except ValueError:
        return peer
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return _LOOPBACK
    if isinstance(address, IPv4Address):
        return str(address)
    network = IPv6Address(int(address) >> _HOST_BITS << _HOST_BITS)
    zone = f"%{address.scope_id}" if address.scope_id else ""
    return f"{IPv6Network((network, 128 - _HOST_BITS))}{zone}"
