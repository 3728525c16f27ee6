"""Where a running lswap is: addresses as people type them, and names in paths. Pure."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

DEFAULT_URL: Final = "http://127.0.0.1:8080"
_PORT: Final = re.compile(r":\d*\Z", re.ASCII)
_VERSION_PATH: Final = re.compile(r"(?:/+lswap)?/+v1(?:/.*)?\Z", re.DOTALL)
_HERE: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "[::]": "[::1]"}
"""What is typed for every address of this machine, and the address to ask."""


def base_of(url: str) -> tuple[str, str | None]:
    """Return the base of every URL at `url`, and the path of the unix socket, if it is one.

    People paste what they gave their clients: a path that begins with `/v1` is cut off, a missing
    scheme is http, a missing host this machine. `0.0.0.0` is where lswap listens, not where it is.
    """
    text = url.strip()
    if text.startswith("unix:"):
        return "http://localhost", text.removeprefix("unix:")
    scheme, separator, rest = text.rpartition("://")
    scheme = scheme.lower()
    place, _, path = rest.partition("/")
    if not separator:
        scheme = "http"
        place = f":{place}" if place.isdecimal() else place
        place += "" if _PORT.search(place) else ":8080"
    host, port = _split_port(place)
    place = _HERE.get(host, host) + port
    return f"{scheme}://{place}{_VERSION_PATH.sub('', f'/{path}').rstrip('/')}", None


def _split_port(place: str) -> tuple[str, str]:
    found = _PORT.search(place)
    return (place, "") if found is None else (place[: found.start()], found[0])


def path_of(name: str) -> str:
    """Return a name as one segment of a path, whatever is in it."""
    # A client drops `.` and `..` from a path, or takes a step back for them.
    return quote(name, safe="") if name.strip(".") else name.replace(".", "%2E")
