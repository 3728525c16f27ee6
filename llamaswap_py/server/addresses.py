"""The addresses that the command line makes lswap listen on, and their URLs for people."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.config.listen import check_listeners
from llamaswap_py.config.parse import parse_listen
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llamaswap_py.config.sections import Config

_EVERY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Hosts that mean every interface, and the name of this machine for each."""
_NOT_THE_LAN: Final = ("docker", "br-", "veth", "virbr", "podman", "cni")
"""Interfaces that lead to containers, not to other machines."""
_PORT: Final = 8080


def listen_elsewhere(config: Config, endpoints: Sequence[Endpoint]) -> Config:
    """Return `config` with other addresses. Raises ConfigError if an address needs keys."""
    allow, keys = config.allow_unauthenticated, config.keys.file is not None
    check_listeners(endpoints, allow_unauthenticated=allow, keys=keys)
    return msgspec.structs.replace(config, listen=tuple(endpoints))


def asked_listeners(
    given: Sequence[Endpoint], listen: Sequence[str], host: str | None, port: int | None
) -> tuple[Endpoint, ...] | None:
    """Return the addresses of --listen, --host and --port; None if none of them is given.

    `given` are the file's addresses; --host and --port replace a part of them. Raises ConfigError.
    """
    home, here = os.path.expanduser("~"), os.getcwd()
    if listen and (host is not None or port is not None):
        remedy = "leave out --host and --port: --listen HOST:PORT says both"
        raise ConfigError("--listen cannot be used with --host or --port", remedy=remedy)
    if listen:
        return tuple(parse_listen(text, base_dir=here, home=home) for text in listen)
    if host is None and port is None:
        return None
    old = [one for one in given if one.path is None] or [Endpoint(port=_PORT)]
    if host is not None:
        text = f"[{host}]" if ":" in host and not host.startswith("[") else host
        host = parse_listen(f"{text}:0", base_dir=here, home=home).host
    new = (
        Endpoint(host=one.host if host is None else host, port=one.port if port is None else port)
        for one in old
    )
    return tuple(dict.fromkeys([*new, *(one for one in given if one.path is not None)]))


def typeable(endpoints: Iterable[Endpoint]) -> tuple[str, ...]:
    """Return the URLs of listeners, ready to type; those for this machine first."""
    urls: dict[str, None] = {}
    for endpoint in endpoints:
        hosts = [endpoint.host]
        if endpoint.path is None and endpoint.host in _EVERY:
            hosts = [_EVERY[endpoint.host], *_lan_hosts(endpoint.host)]
        for host in hosts:
            urls[endpoint._replace(host=host).url] = None
    return tuple(urls)


def _lan_hosts(every: str) -> list[str]:
    """Return this machine's addresses in its networks, and its name."""
    import psutil

    family = socket.AF_INET6 if every == "::" else socket.AF_INET
    up = {name for name, one in psutil.net_if_stats().items() if one.isup}
    hosts = [
        one.address
        for name, addresses in psutil.net_if_addrs().items()
        if name in up and not name.startswith(_NOT_THE_LAN)
        for one in addresses
        if one.family == family and not one.address.startswith(("127.", "169.254.", "fe80", "::1"))
    ]
    name = socket.gethostname()
    if family == socket.AF_INET and name and not name.startswith("localhost"):
        hosts.append(name)
    return hosts
