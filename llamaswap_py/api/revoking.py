"""Ends requests when the keys change: those of revoked keys, and those that are no longer allowed.

The key file is read again while requests run. If a key was revoked, all its requests end: streams,
WebSockets, followed events, waiting requests, and answers that continue without a client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamaswap_py.errors import ApiError
from llamaswap_py.proxy.principals import principal_of

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call, Services
    from llamaswap_py.config.api_keys import ApiKey, KeyRing


def take_keys(services: Services, keys: KeyRing | None) -> None:
    """Use other keys from now on, and end open requests that they no longer allow."""
    before = services.access.keys
    services.access.replace(keys)
    if before is None or keys is None:
        return
    for key in before:
        _leave_behind(services, key, keys.same(key))
    for call in list(services.calls.values()):
        if call.key is None:
            continue
        now = keys.same(call.key)
        if (error := _lost(call, call.key, now)) is not None:
            call.end(error)
        elif now is not None:
            call.key = now


def _leave_behind(services: Services, key: ApiKey, now: ApiKey | None) -> None:
    """End work of a key that has no open request: its loads, and answers without a client."""

    def may_use(preset: str) -> bool:
        return now is not None and now.may_use(preset)

    if now is not None and (now.models is None or now.models == key.models):
        return
    supervisor, client = services.supervisor, principal_of(key.name, "")
    supervisor.leases.turn_away(client, may_use, _revoked(key) if now is None else _narrowed(key))
    supervisor.streams.disown(client, may_use)


def _lost(call: Call, key: ApiKey, now: ApiKey | None) -> ApiError | None:
    """Return the error that ends a request whose key has become `now`; None if it may go on."""
    route = call.route
    if now is None:
        return _revoked(key)
    right = route.right is None or now.may(route.right)
    if right and (now.is_admin or not route.admin) and (not call.model or now.may_use(call.model)):
        return None
    return _narrowed(key)


def _revoked(key: ApiKey) -> ApiError:
    return ApiError("unauthorized", f"the key {key.name!r} was revoked")


def _narrowed(key: ApiKey) -> ApiError:
    return ApiError("forbidden", f"the key {key.name!r} is no longer allowed to do this")
