"""Listen addresses: how they are written, and which of them are open to other machines."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING, Final

from llamaswap_py.config.forms import Form, read_text
from llamaswap_py.config.yaml_tree import Invalid, Listing
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llamaswap_py.config.forms import Base, Schema
    from llamaswap_py.config.yaml_tree import Node

# sizeof(sockaddr_un.sun_path) is 108 on Linux, of which one byte is the final NUL (unix(7)).
MAX_SOCKET_PATH: Final = 107
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_HOW: Final = "write 127.0.0.1:8080, [::1]:8080, :8080 for every interface, or unix:PATH"


def parse_endpoint(text: str) -> Endpoint:
    """Return the endpoint of `host:port`, `[v6]:port`, `:port` (every interface) or `unix:PATH`.

    A relative path stays relative. Raises ConfigError.
    """
    if text.startswith("unix:"):
        path = re.sub(r"\A//+", "/", text.removeprefix("unix:"))
        if not path or len(path.encode()) > MAX_SOCKET_PATH:
            why = f"a socket path has 1 to {MAX_SOCKET_PATH} bytes, this one {len(path.encode())}"
            raise ConfigError(why, remedy="choose a shorter one")
        return Endpoint(path=path)
    if text.isdecimal():
        remedy = f"write 127.0.0.1:{text} for this machine alone, :{text} for every interface"
        raise ConfigError(f"{text} is only a port", remedy=remedy)
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port[:9]) > 65535:
        raise ConfigError(f"{text!r} is not a listen address", remedy=_HOW)
    return Endpoint(host=_host(host, text), port=int(port))


def _host(host: str, text: str) -> str:
    if host in ("", "*"):
        return "0.0.0.0"
    try:
        if host.startswith("[") and host.endswith("]"):
            return str(ip_address(host[1:-1]))
        if re.fullmatch(r"[0-9.]+", host):
            return str(IPv4Address(host))
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a listen address: {error}", remedy=_HOW) from None
    if not _HOST_NAME.fullmatch(host):
        raise ConfigError(f"{text!r} is not a listen address", remedy=_HOW)
    return host


def is_private(endpoint: Endpoint) -> bool:
    """Return whether only this machine can reach an endpoint: a unix socket or loopback address."""
    if endpoint.path is not None or endpoint.host == "localhost":
        return True
    try:
        return ip_address(endpoint.host).is_loopback
    except ValueError:
        return False


def check_listeners(
    endpoints: Iterable[Endpoint], *, allow_unauthenticated: bool, keys: bool = False
) -> None:
    """Raise ConfigError for an address that other machines can use without a key."""
    for endpoint in endpoints:
        if not allow_unauthenticated and not keys and not is_private(endpoint):
            raise ConfigError(
                f"{endpoint} can be reached from other machines, and nobody needs a key",
                remedy="make one with `lswap key new me --file keys.yaml` and start with "
                "`lswap up --keys keys.yaml` (in a file: `keys: {file: keys.yaml}`); in a network "
                "that you trust, `lswap up --allow-unauthenticated` (in a file: "
                "`allow_unauthenticated: true`)",
            )


def _endpoint(node: Node, base: Base) -> Endpoint:
    text = read_text(node, "an address like 127.0.0.1:8080")
    path = text.removeprefix("unix:")
    try:
        if path != text and not path.startswith("//"):
            return parse_endpoint(f"unix:{base.path(path, node)}")
        return parse_endpoint(text)
    except ConfigError as error:
        raise Invalid(node, error.message, error.remedy) from None


def _listen(node: Node, base: Base) -> tuple[Endpoint, ...]:
    if not isinstance(node, Listing):
        return (_endpoint(node, base),)
    if not node.items:
        raise Invalid(node, "the list is empty", "write at least one address")
    endpoints = tuple(_endpoint(item, base) for item in node.items)
    for item, endpoint in zip(node.items, endpoints, strict=True):
        if endpoints.count(endpoint) > 1 and (endpoint.path or endpoint.port):
            raise Invalid(item, f"{endpoint} is here twice", "remove one of them")
    return endpoints


_ADDRESS: Final[Schema] = {
    "title": "address",
    "type": "string",
    "pattern": r"^unix:.+|^[^/]*:[0-9]{1,5}$",
}
LISTEN: Final = Form(
    _listen,
    {"anyOf": [_ADDRESS, {"type": "array", "items": _ADDRESS, "minItems": 1}]},
    lambda value: str(value[0]) if len(value) == 1 else [str(each) for each in value],
)
