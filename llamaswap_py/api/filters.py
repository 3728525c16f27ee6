"""Change a request's JSON as its preset says, without touching what is not named. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from llamaswap_py.config.forms import Filters

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def filter_body(body: bytes, filters: Filters, name: str) -> bytes:
    """Return a JSON body with the changes that `filters` make for a request that asked for `name`.

    The values of members that stay are copied as they came, byte for byte. What is not JSON object
    stays as it is.
    """
    try:
        members: dict[str, Any] = _MEMBERS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    return msgspec.json.encode(filtered(members, filters, name))


def filtered(members: dict[str, Any], filters: Filters, name: str) -> dict[str, Any]:
    """Return the members of a request after all changes: the preset's, then the name's own."""
    found = _applied(members, filters)
    inner = filters.per_name.get(name)
    return found if inner is None else _applied(found, inner)


def _applied(members: dict[str, Any], filters: Filters) -> dict[str, Any]:
    kept = {key: value for key, value in members.items() if key not in filters.strip}
    return {**filters.default, **kept, **filters.set}
