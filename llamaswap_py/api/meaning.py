"""What the head of a request means here, worked out once for all requests that repeat it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llamaswap_py.api import table
from llamaswap_py.api.errors import family_of
from llamaswap_py.api.wishes import asks_nothing
from llamaswap_py.wire.messages import forward_lines

if TYPE_CHECKING:
    from llamaswap_py.api.call import Route
    from llamaswap_py.api.errors import Family
    from llamaswap_py.config.records import Config
    from llamaswap_py.wire.exchange import Exchange


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
    trusted: bool = False
    """The Host/Origin rule has been asked."""
    _lines: dict[frozenset[bytes], bytes] = field(default_factory=dict)

    def lines(self, exchange: Exchange, dropped: frozenset[bytes]) -> bytes:
        """Return the header lines that a child gets to see, without those in `dropped`."""
        lines = self._lines.get(dropped)
        if lines is None:
            lines = forward_lines(exchange.head, drop=dropped, peer=exchange.peer)
            self._lines[dropped] = lines
        return lines


def meaning_of(exchange: Exchange, config: Config) -> Meaning:
    """Return what the head of `exchange` means under `config`."""
    head = exchange.head
    known = head.memo
    if isinstance(known, Meaning) and known.config is config:
        return known
    methods, captured = table.look_up(head.path)
    route = None if methods is None else table.pick(methods, head.method)
    family, template = family_of(head.path), table.template(head.path)
    meaning = head.memo = Meaning(
        config, methods, route, captured, family, template, asks_nothing(head)
    )
    return meaning
