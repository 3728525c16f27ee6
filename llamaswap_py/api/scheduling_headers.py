"""Reads the request headers that set scheduling options: priority, waiting, substitutes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llamaswap_py.errors import ApiError
from llamaswap_py.supervisor.leases import SchedulingOptions
from llamaswap_py.units import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.proxy.messages import RequestHead

WHEN_FULL: Final = b"x-lswap-when-full"
_PRIORITY: Final = b"x-lswap-priority"
_MAX_WAIT: Final = b"x-lswap-max-wait"
_PARENT: Final = b"x-lswap-parent"
_ALL: Final = (WHEN_FULL, _PRIORITY, _MAX_WAIT, _PARENT)
_SUBSTITUTABLE: Final = SchedulingOptions(substitutable=True)
NOT_SUBSTITUTABLE: Final = SchedulingOptions(substitutable=False)
_LOWEST: Final = -100


def has_scheduling_headers(head: RequestHead) -> bool:
    """Return whether a head has any scheduling header."""
    return not head.first.keys().isdisjoint(_ALL)


def read_scheduling_headers(
    head: RequestHead,
    *,
    substitutable: bool,
    highest: int = 0,
    allowed: tuple[str, ...] | None = None,
    is_own: Callable[[str], bool] = lambda _: True,
    weight: int = 1,
) -> SchedulingOptions:
    """Return the options of the headers; raises ApiError `bad_request` that names the header.

    `highest` is the key's priority: the default of its requests, and the most they may ask for.
    `allowed` are the models of the key, `weight` is its weight. `is_own` tells whether a request id
    is the client's own. Only then may it be a parent: a child request may pass a queue that is
    closed to others, so a client could jump the queue with the id of another client's request.
    """
    if highest == 0 and weight == 1 and not has_scheduling_headers(head):
        return _SUBSTITUTABLE if substitutable else NOT_SUBSTITUTABLE
    parent = _text(head, _PARENT)
    return SchedulingOptions(
        priority=_priority(_text(head, _PRIORITY), highest),
        when_full=_when_full(_text(head, WHEN_FULL)),
        patience=_patience(_text(head, _MAX_WAIT)),
        substitutable=substitutable,
        parent=parent if parent and is_own(parent) else None,
        allowed=None if allowed is None else frozenset(allowed),
        weight=weight,
    )


def _text(head: RequestHead, name: bytes) -> str:
    given = head.get(name) or b""
    try:
        return given.decode().strip()
    except UnicodeDecodeError:
        return given.decode("latin-1").strip()


def _priority(text: str, highest: int) -> int:
    if not text:
        return highest
    try:
        return max(_LOWEST, min(int(text[:9]), highest))
    except ValueError:
        raise _bad(_PRIORITY, text, "a whole number, like -1") from None


def _when_full(text: str) -> str:
    kind, _, name = (part.strip() for part in text.partition(":"))
    if kind in ("", "wait", "refuse") and not name:
        return kind
    if kind == "substitute" and name:
        return f"substitute:{name}"
    raise _bad(WHEN_FULL, text, "wait, refuse, substitute: NAME or substitute: loaded")


def _patience(text: str) -> float | None:
    if not text:
        return None
    try:
        return float(text) if text.replace(".", "", 1).isdigit() else parse_duration(text)
    except ValueError:
        raise _bad(_MAX_WAIT, text, "a duration, like 30s") from None


def _bad(name: bytes, text: str, want: str) -> ApiError:
    header = name.decode()
    return ApiError("bad_request", f"{header}: {text[:80]!r} is not {want}", param=header)
