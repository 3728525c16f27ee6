"""Origins of web pages: their spelling, what they match, and the section `cors`. Pure.

A browser sends an origin as scheme, host and port in lower case, without the scheme's default port
(the Fetch and URL standards). An origin in any other spelling would silently match nothing. So it
is refused, and the error says the right spelling.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Annotated, Final

from llamaswap_py.config.forms import Form, Record, key, read_list, read_text
from llamaswap_py.config.yaml_tree import Invalid, Node

if TYPE_CHECKING:
    from llamaswap_py.config.forms import Base

EVERY: Final = "*"
NONE: Final = "null"
"""The origin of pages without one: those from a file, or in a sandboxed frame."""
_PARTS: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[^\]]*\]|[^:/?#@\[\]\s]*)(?::(?P<port>[^/?#]*))?"
    r"(?P<rest>.*)",
    re.DOTALL,
)
_USUAL_PORTS: Final = {"http": "80", "https": "443"}
_WEB: Final = tuple(_USUAL_PORTS)
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_HOST: Final = re.compile(r"(\*|(\*\.)?[a-z0-9._~%!$&'()+,;=-]*)")
_WILD: Final = "`*` stands for a whole host, for the part before its first dot, or for any port"


def origin_of(text: str) -> str:
    """Return an origin, or a pattern of origins, as it is compared.

    Raises ValueError with message and remedy.
    """
    low = text.strip().lower()
    if low in (EVERY, NONE):
        return low
    found = _PARTS.fullmatch(low)
    if found is None:
        raise ValueError(f"{text!r} is not an origin", f"write {_guess(low)}")
    scheme, host, port = found["scheme"], found["host"], found["port"]
    if found["rest"] not in ("", "/"):
        short = low[: len(low) - len(found["rest"])]
        raise ValueError(f"{text!r} goes on after the host", f"write {short}")
    if scheme in ("ws", "wss"):
        raise ValueError("no page has such an origin", f"write http{low.removeprefix('ws')}")
    if not host and (scheme != "file" or port is not None):
        raise ValueError(f"{text!r} names no host", f"write {scheme}://*, or a host")
    host = _host(text, scheme, host)
    if port not in (None, EVERY):
        if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
            raise ValueError(f"{port!r} is not a port", f"write {scheme}://{host}:* for any port")
        port = str(int(port))
    if port is None or port == _USUAL_PORTS.get(scheme):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port}"


def _host(text: str, scheme: str, host: str) -> str:
    if host.startswith("["):
        try:
            return f"[{ipaddress.IPv6Address(host[1:-1])}]"
        except ValueError:
            raise ValueError(f"{host} is not an address", "write one like [::1]") from None
    if not host.isascii():
        raise ValueError(f"browsers spell {host!r} in ASCII", f"write {_ascii(scheme, host)}")
    if not _HOST.fullmatch(host):
        remedy = _WILD if EVERY in host else "write a host's name or address"
        raise ValueError(f"{text!r} is not an origin that a browser sends", remedy)
    if scheme in _WEB and _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise ValueError(f"{host} is not an address", "write one like 127.0.0.1") from None
    return host


def _ascii(scheme: str, host: str) -> str:
    try:
        return f"{scheme}://{host.encode('idna').decode()}"
    except UnicodeError:
        return "it as the browser's address bar copies it"


def _guess(low: str) -> str:
    """Return the origin that a text without a known scheme may mean."""
    low = low.rpartition("://")[2]  # a scheme like *
    scheme, colon, rest = low.partition(":")
    host = low.partition("/")[0]
    if colon and not rest.strip("/"):
        return f"{scheme}://*"
    if low.endswith(("-extension", "-webview")):
        return f"{low}://*"
    name = host.partition(":")[0]
    local = name in ("localhost", "*") or name.replace(".", "").isdecimal()
    if local and ":" not in host:
        return f"http://{host}:* (any port)"
    return f"{'http' if local else 'https'}://{host}"


def pattern_of(origin: str) -> re.Pattern[bytes]:
    """Return the expression that matches the origins of a pattern, in lower case."""
    found = _PARTS.fullmatch(origin)
    if found is None:  # "*", "null"
        return re.compile(b".*" if origin == EVERY else re.escape(origin.encode()), re.DOTALL)
    host, port = found["host"], found["port"]
    start = re.escape(f"{found['scheme']}://")
    if host == EVERY and port is None:
        return re.compile(f"{start}[^/@?#\\s]*".encode())
    name = re.escape(host)
    if host.startswith(EVERY):
        name = r"(?:\[[0-9a-f:.]+\]|[^/:@?#\[\]\s]+)" + re.escape(host[1:])
    end = {None: "", EVERY: "(?::[0-9]+)?"}.get(port, f":{port}")
    return re.compile(f"{start}{name}{end}".encode())


def _origins(node: Node, _: Base) -> tuple[str, ...]:
    found: list[str] = []
    for item in read_list(node, 'origins like ["https://chat.lan"]'):
        text = read_text(item, "an origin like https://chat.lan")
        try:
            origin = origin_of(text)
        except ValueError as error:
            raise Invalid(item, *map(str, error.args)) from None
        if origin in found:
            raise Invalid(item, f"{text!r} is here twice", "remove one of them")
        found.append(origin)
    return tuple(found)


ORIGINS: Final = Form(
    _origins,
    {"type": "array", "items": {"type": "string", "minLength": 1}, "uniqueItems": True},
    list,
)


class Cors(Record, frozen=True):
    """Pages of other origins that may use this server from a browser."""

    origins: Annotated[
        tuple[str, ...],
        key(
            "Origins of the pages: https://chat.lan, http://localhost:* (any port), "
            "https://*.lan, chrome-extension://* (any extension), app://obsidian.md; or * for "
            "all.",
            ORIGINS,
            ["https://chat.lan", "app://obsidian.md"],
        ),
    ] = ()
