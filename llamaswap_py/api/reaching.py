"""What a path of a request means at a child, and whether its key may ask for that."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from llamaswap_py.api.child_routes import Role, folded, role_at_program, role_of
from llamaswap_py.api.paths import canonical, one_reading
from llamaswap_py.api.slot_files import check_slot_files
from llamaswap_py.errors import ApiError

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call


class Way(NamedTuple):
    """A path as it was asked for, as it is sent to a child, and as the child reads it."""

    asked: str
    sent: str
    read: str


def reach(call: Call, preset: str, path: str) -> Way:
    """Return how `path` goes to a child of a preset.

    Raises ApiError `bad_request` for a path that could be read in several ways, `forbidden` if the
    key of the request may not use it, `not_implemented` for what lswap does itself.
    """
    if call.supervisor.config.models[preset].cmd is None:
        known = call.meaning.way
        way = known if known is not None and known.asked == path else _to_native(call, preset, path)
    else:
        way = Way(path, *canonical(path))
        _check_program(call, way.read)
    check_slot_files(call, preset, way.read)
    return way


def _to_native(call: Call, preset: str, path: str) -> Way:
    way = Way(path, *canonical(path))
    one_reading(way.sent, way.read)
    role = role_of(call.exchange.head.method, way.read)
    _check_native(call, preset, way.read, role)
    if role is Role.INFERENCE:  # then any key may ask for it, of any llama-server
        call.meaning.way = way
    return way


def _check_native(call: Call, preset: str, read: str, role: Role | None) -> None:
    head = call.exchange.head
    if role is None and call.key is not None and not call.key.is_admin:
        what = f"{head.method} {read[:200]}"
        raise ApiError(
            "forbidden",
            f"lswap does not know the route {what} of {preset}, so it takes an admin key",
            remedy="use an admin key; docs/security.md lists the routes that lswap knows",
        )
    _check(call, role or Role.INFERENCE)


def _check_program(call: Call, read: str) -> None:
    head = call.exchange.head
    _check(call, role_at_program(head.method, read))
    # The program may be a second lswap: a route of lswap takes the same key there as here.
    ours = call.services.route_of(head.method, folded(read))
    if ours is not None:
        call.services.access.check(head, admin=ours.admin, right=ours.right)


def _check(call: Call, role: Role) -> None:
    if role is Role.SLOTS:
        call.need("slots")
    elif role is Role.ADMIN:
        call.services.access.check(call.exchange.head, admin=True)
