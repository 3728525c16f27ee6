"""Decides which path of a child a request may use, and in which spelling it is sent.

The steps, in this order: bring the path into one spelling; check the key that its route needs;
refuse what lswap does itself.

`llamacpp/server_routes.py` lists the routes of llama-server, as does docs/security.md. A route that
is not in the list needs an admin key, because a route of a later engine may do anything.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote_to_bytes

from llamaswap_py.api.request import Way
from llamaswap_py.errors import ApiError
from llamaswap_py.llamacpp.server_routes import Role, folded, role_at_program, role_of

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call

_PLAIN: Final = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)+")
_ESCAPE: Final = re.compile("%([0-9A-Fa-f]{2})")
_BROKEN: Final = re.compile("%(?![0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_UNRESERVED: Final = re.compile("[A-Za-z0-9_.~-]")
_KEPT: Final = "/%!$&'()*+,;=:@"


def reach(call: Call, preset: str, path: str) -> Way:
    """Return the spelling of `path` for a child of a preset.

    Raises ApiError: `bad_request` for a path that could be read in several ways, `forbidden` if the
    key of the request may not use it, `not_implemented` if lswap does itself what it asks for.
    """
    if call.supervisor.config.models[preset].cmd is None:
        known = call.match.way
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
    if role is Role.INFERENCE:  # any key may use it, at any llama-server
        call.match.way = way
    return way


def _check_native(call: Call, preset: str, read: str, role: Role | None) -> None:
    head = call.exchange.head
    if role is None and call.key is not None and not call.key.is_admin:
        what = f"{head.method} {read[:200]}"
        raise ApiError(
            "forbidden",
            f"lswap does not know the route {what} of {preset}, so it needs an admin key",
            remedy="use an admin key; docs/security.md lists the routes that lswap knows",
        )
    _check(call, role or Role.INFERENCE)


def _check_program(call: Call, read: str) -> None:
    head = call.exchange.head
    _check(call, role_at_program(head.method, read))
    # The program may be another lswap, so lswap's own routes need the same key there as here.
    ours = call.services.route_of(head.method, folded(read))
    if ours is not None:
        call.services.access.check(head, admin=ours.admin, right=ours.right)


def _check(call: Call, role: Role) -> None:
    if role is Role.SLOTS:
        call.need("slots")
    elif role is Role.ADMIN:
        call.services.access.check(call.exchange.head, admin=True)


def check_slot_files(call: Call, preset: str, path: str) -> None:
    """Refuse `POST /slots/N?action=…` of a model with `keep_kv`; raises ApiError.

    lswap saves the slots of such a model itself. Otherwise a client could fill the folder with
    files, or restore another client's conversation. `path` is as the child reads it.
    """
    asks = call.exchange.head.method == "POST" and path.startswith("/slots/")
    if asks and call.supervisor.kv_cache.guards(preset):
        message = f"lswap saves the slots of {preset} itself (keep_kv)"
        raise ApiError("not_implemented", message, remedy=f"write keep_kv: false for {preset}")


def canonical(path: str) -> tuple[str, str]:
    """Return a path encoded, as it is sent, and decoded, as the child reads it.

    Raises ApiError `bad_request` for a path that programs read differently.
    """
    if _PLAIN.fullmatch(path):
        return path, path
    if found := _BROKEN.search(path):
        raise _odd(
            path,
            f"{path[found.start() :][:6]!r} is not an escape",
            "encode its letters as UTF-8, and % as %25",
        )
    try:
        text = unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise _odd(path, "its escapes are not UTF-8", "encode its letters as UTF-8") from None
    if _CONTROL.search(text):
        raise _odd(path, "it has a control character", "remove the character")
    parts = text.replace("\\", "/").split("/")
    if any(part.partition(";")[0] in (".", "..") for part in parts):
        raise _odd(path, "it has a part `.` or `..`", "write the path without such parts")
    return _ESCAPE.sub(_normal, quote(path, safe=_KEPT)), text


def one_reading(sent: str, text: str) -> None:
    """Refuse a path that has more parts when decoded than as written (`%2F`)."""
    if sent.count("/") != text.count("/"):
        raise _odd(sent, "it has an escaped slash", "write %2F as /")


def _normal(found: re.Match[str]) -> str:
    char = chr(int(found[1], 16))
    return char if _UNRESERVED.fullmatch(char) else found[0].upper()


def _odd(path: str, why: str, remedy: str) -> ApiError:
    return ApiError("bad_request", f"the path {path[:200]} is refused: {why}", remedy=remedy)
