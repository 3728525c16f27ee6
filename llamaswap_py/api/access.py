"""Who asks: the key of a request, what it may do, and how many of its requests are open."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from llamaswap_py.errors import ApiError
from llamaswap_py.principals import principal_of
from llamaswap_py.wire.places import Places

if TYPE_CHECKING:
    from llamaswap_py.config.keyfile import ApiKey, KeyRing, Right
    from llamaswap_py.wire.exchange import Exchange
    from llamaswap_py.wire.messages import RequestHead

_log: Final = logging.getLogger("lswap")
_BEARER: Final = b"bearer "
_REMEMBERED: Final = 1024
"""Header values of known keys that are kept, so that a request costs no hashing."""


class Access:
    """Finds the key of each request; without keys everybody may do everything."""

    def __init__(self, keys: KeyRing | None, places: Places | None = None) -> None:
        self.keys = keys
        self._places = Places() if places is None else places
        self._known: dict[bytes, ApiKey] = {}
        self.in_flight: dict[str, int] = {}
        """Open requests that count, by principal."""
        self._told: set[str] = set()

    def replace(self, keys: KeyRing | None) -> None:
        """Use other keys for new requests; revoking.py ends open ones that are not allowed now."""
        self.keys = keys
        self._places.keyed = keys is not None
        self._known.clear()

    def check(self, head: RequestHead, *, admin: bool, right: Right | None = None) -> ApiKey | None:
        """Return the key of a request, None where none is needed.

        Raises ApiError `unauthorized` without a known key, `forbidden` where it takes an admin key
        or a `right` that the key has not.
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
                f"the key {key.name!r} may not do this: it takes an admin key",
                remedy="`lswap key new NAME --kind admin` makes one",
            )
        if right is not None and not key.may(right):
            raise lacks(key, right)
        return key

    def claim(self, key: ApiKey | None, exchange: Exchange) -> None:
        """Count a connection as its key's; raises ApiError `too_many_requests`."""
        if key is not None and not exchange.connection.claim(principal_of(key.name, exchange.peer)):
            raise ApiError(
                "too_many_requests",
                f"the key {key.name!r} has half of all connections open, each with an answer",
                remedy="wait until one of the answers has ended, or close some connections",
            )

    def tell_ignored(self, key: ApiKey) -> None:
        """Say once in the log that the `keep_alive` of a key's requests is ignored."""
        if key.name not in self._told:
            self._told.add(key.name)
            _log.info(
                "the key %r sends keep_alive, which is ignored: it takes the right ttl. Models "
                "keep their own ttl. rights: [ttl] in its entry of the key file allows it",
                key.name,
            )

    def enter(
        self, principal: str, key: ApiKey | None, default: int, *, replaces: bool = False
    ) -> None:
        """Count a request of a principal; raises ApiError `too_many_requests`.

        `default` is the limit if the key has none of its own; 0: no limit. A request that
        `replaces` a counted one may exceed the limit by one, until the older one has ended.
        """
        most = limit_of(key, default)
        count = self.in_flight.get(principal, 0)
        if most and count >= most + replaces:
            raise _too_many(principal, key, count)
        self.in_flight[principal] = count + 1

    def leave(self, principal: str) -> None:
        """A counted request ended."""
        in_flight = self.in_flight
        count = in_flight.get(principal, 0)
        if count > 1:
            in_flight[principal] = count - 1
        elif count:
            del in_flight[principal]


def limit_of(key: ApiKey | None, default: int) -> int:
    """Return how many requests may be open at once; 0: no limit."""
    return default if key is None or key.max_in_flight is None else key.max_in_flight


def _too_many(principal: str, key: ApiKey | None, count: int) -> ApiError:
    who = principal if key is None else f"the key {key.name!r}"
    more = "raise `limits.max_in_flight`"
    if key is not None:
        own = key.max_in_flight is not None
        more = "raise its max_in_flight" if own else f"give it a max_in_flight, or {more}"
    return ApiError(
        "too_many_requests",
        f"{who} has {count} requests open, as many as it may",
        remedy=f"wait for one of them, or {more}",
    )


def _secret(head: RequestHead) -> bytes:
    """Return what a client shows: `Authorization: Bearer …`, else `x-api-key` (Anthropic's)."""
    given = head.get(b"authorization")
    if given is not None and given[: len(_BEARER)].lower() == _BEARER:
        return given[len(_BEARER) :].strip()
    return (head.get(b"x-api-key") or b"").strip()


def lacks(key: ApiKey, right: Right) -> ApiError:
    """Return the error of a request whose key lacks a right."""
    return ApiError(
        "forbidden",
        f"the key {key.name!r} may not do this: it takes the right {right!r}, or an admin key",
        remedy=f"write rights: [{right}] in the key's entry of the key file",
    )


def _unauthorized(*, given: bool) -> ApiError:
    return ApiError(
        "unauthorized",
        "this key is not known here" if given else "this server wants an API key",
        remedy="send it as `Authorization: Bearer KEY`; `lswap key new NAME` makes one",
    )
