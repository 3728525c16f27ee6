"""Who asks: the key of a request, what it may do, and how many of its requests are open."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from llamaswap_py.errors import ApiError

if TYPE_CHECKING:
    from llamaswap_py.config.keyfile import ApiKey, KeyRing, Right
    from llamaswap_py.wire.messages import RequestHead

_log: Final = logging.getLogger("lswap")
_BEARER: Final = b"bearer "
_REMEMBERED: Final = 1024
"""Header values of known keys that are kept, so that a request costs no hashing."""


class Access:
    """Finds the key of each request; without keys everybody may do everything."""

    def __init__(self, keys: KeyRing | None) -> None:
        self.keys = keys
        self._known: dict[bytes, ApiKey] = {}
        self._in_flight: dict[str, int] = {}
        self._told: set[str] = set()

    def replace(self, keys: KeyRing | None) -> None:
        """Take another set of keys; requests that are open go on."""
        self.keys = keys
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

    def tell_ignored(self, key: ApiKey) -> None:
        """Say once in the log that the `keep_alive` of a key's requests changes nothing."""
        if key.name not in self._told:
            self._told.add(key.name)
            _log.info(
                "the key %r sends keep_alive, which changes nothing: models keep their own ttl. "
                "Its entry in the key file may say rights: [ttl]",
                key.name,
            )

    def enter(self, key: ApiKey | None, *, replaces: bool = False) -> None:
        """Count a request of a key; raises ApiError `too_many_requests`.

        One that `replaces` another that is counted may be one too many until that has ended.
        """
        if key is None or key.max_in_flight is None:
            return
        count = self._in_flight.get(key.name, 0)
        if count >= key.max_in_flight + replaces:
            raise ApiError(
                "too_many_requests",
                f"the key {key.name!r} has {count} requests open, as many as it may",
                remedy="wait for one of them, or raise its max_in_flight",
            )
        self._in_flight[key.name] = count + 1

    def leave(self, key: ApiKey | None) -> None:
        """A counted request ended."""
        if key is None or key.max_in_flight is None:
            return
        count = self._in_flight.get(key.name, 0) - 1
        if count > 0:
            self._in_flight[key.name] = count
        else:
            self._in_flight.pop(key.name, None)


def _secret(head: RequestHead) -> bytes:
    """Return what a client shows: `Authorization: Bearer …`, else `x-api-key` (Anthropic's)."""
    given = head.get(b"authorization")
    if given is not None and given[: len(_BEARER)].lower() == _BEARER:
        return given[len(_BEARER) :].strip()
    return (head.get(b"x-api-key") or b"").strip()


def lacks(key: ApiKey, right: Right) -> ApiError:
    """Return the error of a request whose key has not the right to it."""
    return ApiError(
        "forbidden",
        f"the key {key.name!r} may not do this: it takes the right {right!r}, or an admin key",
        remedy=f"rights: [{right}] in its entry of the key file gives it that right",
    )


def _unauthorized(*, given: bool) -> ApiError:
    return ApiError(
        "unauthorized",
        "this key is not known here" if given else "this server wants an API key",
        remedy="send it as `Authorization: Bearer KEY`; `lswap key new NAME` makes one",
    )
