"""What a path of a request means at a child, and whether its key may ask for that."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from llamaswap_py.api.child_routes import Role, folded, role_at_program, role_of
from llamaswap_py.api.paths import canonical, one_reading
from llamaswap_py.api.slot_files import check_slot_files
from llamaswap_py.errors import ApiError

if TYPE_CHECKING:
    from llamaswap_py.api.call import Call


class Way(NamedTuple):
    """A path as it is sent to a child, and as the child reads it."""

    sent: str
    read: str


def reach(call: Call, preset: str, path: str) -> Way:
    """Return how `path` goes to a child of a preset.

    Raises ApiError `bad_request` for a path that could be read in several ways, `forbidden` if the
    key of the request may not use it, `not_implemented` for what lswap does itself.
    """
    sent, read = canonical(path)
    if call.supervisor.config.models[preset].cmd is None:
        one_reading(sent, read)
        _check_native(call, preset, read)
    else:
        _check_program(call, read)
    check_slot_files(call, preset, read)
    return Way(sent, read)


def _check_native(call: Call, preset: str, read: str) -> None:
    head = call.exchange.head
    role = role_of(head.method, read)
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
    ours = call.app.route_of(head.method, folded(read))
    if ours is not None:
        call.app.access.check(head, admin=ours.admin, right=ours.right)


def _check(call: Call, role: Role) -> None:
    if role is Role.SLOTS:
        call.need("slots")
    elif role is Role.ADMIN:
        call.app.access.check(call.exchange.head, admin=True)
