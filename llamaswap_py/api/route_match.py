"""Finds the route of a request's head, once for all requests that repeat the head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llamaswap_py.api import routes
from llamaswap_py.api.errors import family_of
from llamaswap_py.api.request import RouteMatch
from llamaswap_py.api.scheduling_headers import has_scheduling_headers

if TYPE_CHECKING:
    from llamaswap_py.api.request import Route
    from llamaswap_py.config.sections import Config
    from llamaswap_py.proxy.exchange import Exchange
    from llamaswap_py.proxy.messages import RequestHead

_JSON: Final = b"application/json"


def match_route(exchange: Exchange, config: Config) -> RouteMatch:
    """Return the route of the head of `exchange` under `config`, stored with the head."""
    head = exchange.head
    known = head.memo.value
    if isinstance(known, RouteMatch) and known.config is config:
        return known
    methods, captured = routes.look_up(head.path)
    route = None if methods is None else routes.pick(methods, head.method)
    family, template = family_of(head.path), routes.template(head.path)
    unscheduled = not has_scheduling_headers(head)
    relayed = unscheduled and route is not None and _is_relayed(head, route)
    match = head.memo.value = RouteMatch(
        config, methods, route, captured, family, template, unscheduled, relayed
    )
    return match


def _is_relayed(head: RequestHead, route: Route) -> bool:
    return (
        route.relayed
        and route.retry
        and head.method == "POST"
        and not head.query
        and (head.get(b"content-type") or _JSON).lower().startswith(_JSON)
        and b"x-conversation-id" not in head.first
    )
