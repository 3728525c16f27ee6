"""What the head of a request means here, worked out once for all requests that repeat it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from llamaswap_py.api import routes
from llamaswap_py.api.auth import limit_of
from llamaswap_py.api.errors import family_of
from llamaswap_py.api.inference import relay
from llamaswap_py.api.scheduling_headers import asks_nothing
from llamaswap_py.proxy.messages import forward_lines

if TYPE_CHECKING:
    from llamaswap_py.api.child_routes import Way
    from llamaswap_py.api.errors import Family
    from llamaswap_py.api.request import Route
    from llamaswap_py.config.api_keys import ApiKey, KeyRing
    from llamaswap_py.config.records import Config
    from llamaswap_py.proxy.exchange import Exchange
    from llamaswap_py.proxy.messages import RequestHead

_JSON: Final = b"application/json"
_PARTICULAR: Final = frozenset({b"x-request-id", b"x-conversation-id"})
"""Headers that name one request."""


@dataclass(slots=True)
class Meaning:
    """Facts of one head on one connection, under one configuration.

    `methods` is None where there is no such path, `route` where it does not take this method.
    """

    config: Config
    methods: dict[str, Route] | None
    route: Route | None
    captured: str
    family: Family
    template: str
    wishless: bool
    """No header asks anything of the scheduler."""
    relayed: bool
    """A body of JSON is sent to a child as it is, once more where a child died unseen."""
    trusted: bool = False
    """The Host/Origin rule has been asked."""
    express: bool = False
    """A request was let in that nothing is asked of but whether its model is ready."""
    keys: KeyRing | None = None
    key: ApiKey | None = None
    """Which keys were asked then, and whose request it was."""
    principal: str = ""
    most: int = 0
    """Whose it counts as then, and how many that one may have open; 0: as many as there are."""
    way: Way | None = None
    """How a path goes to a llama-server, where any key may ask for that."""
    _start: bytes = b""
    _lines: dict[frozenset[bytes], bytes] = field(default_factory=dict)

    def lines(self, exchange: Exchange, dropped: frozenset[bytes]) -> bytes:
        """Return the header lines that a child gets to see, without those in `dropped`."""
        lines = self._lines.get(dropped)
        if lines is None:
            lines = forward_lines(exchange.head, drop=dropped, peer=exchange.peer)
            self._lines[dropped] = lines
        return lines

    def start(self, exchange: Exchange, dropped: frozenset[bytes]) -> bytes:
        """Return what the head for a child begins with: the request line and those lines."""
        if not self._start:
            head = exchange.head
            line = f"{head.method} {head.path} HTTP/1.1\r\n".encode()
            self._start = line + self.lines(exchange, dropped)
        return self._start

    def let_in(self, keys: KeyRing | None, key: ApiKey | None, principal: str) -> None:
        """A request was let in: those like it are while the `keys` are these."""
        self.keys, self.key, self.principal = keys, key, principal
        self.most = limit_of(key, self.config.limits.max_in_flight)
        self.express = self.relayed and (key is None or (key.models is None and not key.priority))


def meaning_of(exchange: Exchange, config: Config) -> Meaning:
    """Return what the head of `exchange` means under `config`."""
    head = exchange.head
    known = head.memo
    if isinstance(known, Meaning) and known.config is config:
        return known
    methods, captured = routes.look_up(head.path)
    route = None if methods is None else routes.pick(methods, head.method)
    family, template = family_of(head.path), routes.template(head.path)
    wishless = asks_nothing(head)
    relayed = wishless and route is not None and _is_relayed(head, route)
    meaning = head.memo = Meaning(
        config, methods, route, captured, family, template, wishless, relayed
    )
    return meaning


def _is_relayed(head: RequestHead, route: Route) -> bool:
    return (
        route.handle is relay
        and route.retry
        and head.method == "POST"
        and not head.query
        and (head.get(b"content-type") or _JSON).lower().startswith(_JSON)
        and head.first.keys().isdisjoint(_PARTICULAR)
    )
