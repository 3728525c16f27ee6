"""The requests that lswap's own client makes, each with what it answers. Pure.

They are described once, and `remote` sends them in two ways: commands wait for an answer, the
dashboard goes on meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from llamaswap_py.client.address import path_of
from llamaswap_py.client.answers import (
    DecisionList,
    EventLines,
    LoadReport,
    OpenRequests,
    PinReport,
    ReservationLine,
    ServerEvent,
    UnloadReport,
)
from llamaswap_py.snapshot import ReloadReport, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_T = TypeVar("_T")
_NOTHING = type(None)
_EVENTS = "/lswap/v1/events"
_FEED_SILENCE = 30.0
"""Seconds: the feed sends a comment every 10 s, so one that is silent for longer is dead."""
_KEPT_SILENCE = 5.0
"""Seconds: less than between two comments, so that no feed is followed for ever."""


@dataclass(frozen=True, slots=True)
class ApiCall(Generic[_T]):
    """A request that is answered in one piece, by JSON of type `answer`."""

    method: str
    path: str
    answer: type[_T]
    params: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    patient: bool = False
    """Whether the answer may take as long as it takes: it comes when something is done."""

    def silence(self, patience: float) -> float | None:
        """Return the seconds that may pass before the answer; None: as many as it takes."""
        return None if self.patient else patience

    def decode(self, data: bytes) -> _T:
        """Return the answer; raises msgspec.MsgspecError or UnicodeDecodeError for another."""
        if self.answer is _NOTHING:
            return self.answer()
        return msgspec.json.decode(data, type=self.answer)


@dataclass(frozen=True, slots=True)
class ApiStream(Generic[_T]):
    """A request that is answered line by line.

    `parser` returns what takes each line and returns an item, or None where no item ends.
    """

    method: str
    path: str
    parser: Callable[[], Callable[[str], _T | None]]
    params: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    dead_after: float | None = None
    """Seconds without a byte after which it counts as dead; None: it may be silent for ever."""

    def silence(self, _patience: float) -> float | None:
        """Return the seconds that may pass between two bytes of the answer."""
        return self.dead_after


def state() -> ApiCall[Snapshot]:
    """Ask for everything that lswap knows of itself now."""
    return ApiCall("GET", "/lswap/v1/state", Snapshot)


def requests() -> ApiCall[OpenRequests]:
    """Ask for the open requests and the counts of tokens."""
    return ApiCall("GET", "/lswap/v1/requests", OpenRequests)


def decisions(model: str | None = None, limit: int = 20) -> ApiCall[DecisionList]:
    """Ask for the newest decisions, newest last."""
    params = {"limit": str(limit)} | ({"model": model} if model else {})
    return ApiCall("GET", "/lswap/v1/decisions", DecisionList, params)


def load(model: str, *, wait: bool = True) -> ApiCall[LoadReport]:
    """Load a model; answered when it is ready, or at once when `wait` is False."""
    return ApiCall("POST", _model(model, "load"), LoadReport, {"wait": _word(wait)}, patient=True)


def unload(model: str, *, force: bool = False, wait: bool = True) -> ApiCall[UnloadReport]:
    """Unload a model: drained first, unless `force`."""
    params = {"force": _word(force), "wait": _word(wait)}
    return ApiCall("POST", _model(model, "unload"), UnloadReport, params, patient=True)


def pin(model: str, *, pinned: bool) -> ApiCall[PinReport]:
    """Pin a model against eviction, or unpin it."""
    return ApiCall("POST", _model(model, "pin" if pinned else "unpin"), PinReport)


def reload() -> ApiCall[ReloadReport]:
    """Have the configuration read again."""
    return ApiCall("POST", "/lswap/v1/reload", ReloadReport, patient=True)


def cancel(request: str) -> ApiCall[None]:
    """End an open request."""
    return ApiCall("POST", f"/lswap/v1/requests/{path_of(request)}/cancel", _NOTHING)


def release(reservation: str) -> ApiCall[None]:
    """Give a reservation back."""
    return ApiCall("DELETE", f"/lswap/v1/reservations/{path_of(reservation)}", _NOTHING)


def tell_pid(reservation: str, pid: int) -> ApiCall[None]:
    """Say which process (with all below it) uses a reservation."""
    path = f"/lswap/v1/reservations/{path_of(reservation)}/heartbeat"
    return ApiCall("POST", path, _NOTHING, content=msgspec.json.encode({"pid": pid}))


def reserve(memory: dict[str, str]) -> ApiStream[ReservationLine]:
    """Ask for memory, which is given back when the stream ends."""
    content = msgspec.json.encode({"memory": memory, "stream": True})
    return ApiStream("POST", "/lswap/v1/reservations", _reservation_lines, content=content)


def logs(model: str | None, *, tail: int = 100, follow: bool = False) -> ApiStream[str]:
    """Ask for the last lines of a model's llama-server, then (`follow`) new ones as they come.

    Without a model: those of lswap itself.
    """
    path = "/lswap/v1/logs" if model is None else f"/lswap/v1/logs/{path_of(model)}"
    return ApiStream("GET", path, lambda: str, {"tail": str(tail), "follow": _word(follow)})


def kept_events() -> ApiStream[ServerEvent]:
    """Ask for the events that are kept, oldest first; an lswap before 0.2 goes on, and is left."""
    params, silence = {"after": "0", "follow": "false"}, _KEPT_SILENCE
    return ApiStream("GET", _EVENTS, lambda: EventLines().take, params, dead_after=silence)


def events(after: int) -> ApiStream[ServerEvent]:
    """Ask for the kept events after number `after`, then for new ones as they come."""
    params, silence = {"after": str(after)}, _FEED_SILENCE
    return ApiStream("GET", _EVENTS, lambda: EventLines().take, params, dead_after=silence)


def _reservation_lines() -> Callable[[str], ReservationLine | None]:
    decoder = msgspec.json.Decoder(ReservationLine)
    return lambda line: decoder.decode(line) if line.strip() else None


def _model(name: str, action: str) -> str:
    return f"/lswap/v1/models/{path_of(name)}/{action}"


def _word(value: bool) -> str:
    return "true" if value else "false"
