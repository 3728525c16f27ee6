"""Slot files of models with `keep_kv` are lswap's: no client has a child write or read one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamaswap_py.errors import ApiError

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call


def check_slot_files(call: Call, preset: str, path: str) -> None:
    """Refuse `POST /slots/N?action=…` where lswap does that itself; raises ApiError.

    `path` is as the child reads it. A client could fill the folder with it, or be given
    somebody else's conversation.
    """
    asks = call.exchange.head.method == "POST" and path.startswith("/slots/")
    if asks and call.supervisor.keeping.guards(preset):
        message = f"lswap keeps the slots of {preset} itself (keep_kv)"
        raise ApiError("not_implemented", message, remedy=f"switch keep_kv off for {preset}")
